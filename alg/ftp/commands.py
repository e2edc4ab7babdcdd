"""FTP command lines (RFC 959, 5.3): the verb, and where its argument stands."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Telnet sequences that a client may send before a command, as IAC IP IAC DM before ABOR (RFC 959, 4.1.3). A DM sent as
# urgent data may be missing, or come apart from its IAC.
_TELNET = re.compile(rb"(?:\xff(?:[\xfb-\xfe].?|[\xf0-\xfa\xff])?|\xf2)*", re.DOTALL)
_COMMAND = re.compile(rb"([A-Za-z]{3,4})(?: (.*?))?\r?\n", re.DOTALL)
_BEGINNING = re.compile(rb"(?:\r|[A-Za-z]{0,4}|[A-Za-z]{3,4}[ \r].*)", re.DOTALL)
# Short enough to look like FTP, but another protocol's: a browser or a mailer was made to speak to this port.
_FOREIGN_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "EHLO", "HELO", "LHLO", "NICK"})
_FOREIGN_VERSION = re.compile(rb" (?:HTTP|SIP|RTSP|ICE)/[0-9.]+$")


@dataclass(frozen=True, slots=True)
class FtpCommand:
    """A command: its verb in upper case, and its argument, which is `line[start:end]`."""

    verb: str
    argument: bytes
    start: int
    end: int

    @property
    def foreign(self) -> bool:
        """True where another protocol than FTP is plainly spoken (an HTTP request line, an SMTP greeting)."""
        return self.verb in _FOREIGN_VERBS or _FOREIGN_VERSION.search(self.argument) is not None


def parse_command(line: bytes) -> FtpCommand | None:
    """Read a whole line, LF included. None where it is not a verb of 3 or 4 letters, alone or with an argument."""
    found = _COMMAND.fullmatch(line, _skip_telnet(line))
    if found is None:
        return None
    start, end = found.span(2) if found[2] is not None else (found.end(1), found.end(1))
    return FtpCommand(found[1].decode("ascii").upper(), line[start:end], start, end)


def may_begin_command(partial: bytes) -> bool:
    """False where no line that begins with `partial` (without LF) can be a command or blank."""
    return _BEGINNING.fullmatch(partial, _skip_telnet(partial)) is not None


def is_blank(line: bytes) -> bool:
    """True for a line with nothing in it: servers do not agree whether it deserves a reply."""
    return line in (b"\r\n", b"\n")


def _skip_telnet(line: bytes) -> int:
    found = _TELNET.match(line)
    return found.end() if found else 0
