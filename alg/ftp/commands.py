"""FTP command lines (RFC 959, 5.3): the verb, where its argument stands, and which lines have to be parsed at all."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Telnet sequences that a client may send before a command, as IAC IP IAC DM before ABOR (RFC 959, 4.1.3). A DM sent as
# urgent data may be missing, or come apart from its IAC. It never gives back what it took, so it is linear.
_TELNET_TEXT = rb"(?>(?:\xff(?:[\xfb-\xfe].?|[\xf0-\xfa\xff])?|\xf2)*)"
_TELNET = re.compile(_TELNET_TEXT, re.DOTALL)
_COMMAND = re.compile(rb"([A-Za-z]{3,4})(?: (.*?))?\r?\n", re.DOTALL)
_BEGINNING = re.compile(rb"(?:\r|[A-Za-z]{0,4}|[A-Za-z]{3,4}[ \r].*)", re.DOTALL)
_SEEN_OF_A_BEGINNING = 256  # bytes; they decide, whatever follows
_BLANK_LINES = re.compile(rb"(?m)^\r?\n")
_BLANKS = re.compile(rb"(?:\r?\n)*")
# Short enough to look like FTP, but another protocol's: a browser or a mailer was made to speak to this port.
_FOREIGN_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "EHLO", "HELO", "LHLO", "NICK"})
_FOREIGN_VERSION = re.compile(rb" (?:HTTP|SIP|RTSP|ICE)/[0-9.]+$")

_DATA = ("PORT", "EPRT", "PASV", "EPSV")
_READ = (*_DATA, "LPRT", "LPSV", "AUTH", "REIN")
# What is secret stands behind these: a password, an account, what GSSAPI says (RFC 959, 4.1.1; RFC 2228).
_SECRET = re.compile(rb"(?im)^(" + _TELNET_TEXT + rb"(?:PASS|ACCT|ADAT|AUTH|MIC|CONF|ENC)[ \t])([^\r\n]+)")
TRANSFERS = ("RETR", "STOR", "STOU", "APPE", "LIST", "NLST", "MLSD")
"""Commands that use the data connection (RFC 959, 5.4; RFC 3659)."""


def conceal(lines: bytes) -> bytes:
    """Return whole lines with asterisks in place of secrets; the length does not change."""
    return _SECRET.sub(lambda found: found[1] + b"*" * len(found[2]), lines)


@dataclass(frozen=True, slots=True)
class FtpCommand:
    """A command: its verb in upper case, and its argument, which is `line[start:end]`."""

    verb: str
    argument: bytes
    start: int
    end: int

    @property
    def is_epsv_all(self) -> bool:
        """True for the promise to use nothing but EPSV (RFC 2428, 4)."""
        return self.verb == "EPSV" and self.argument.upper() == b"ALL"

    @property
    def ends_data(self) -> bool:
        """Whether earlier data connections are void from here on: the client asks for another one, or starts again."""
        return (self.verb in _DATA and not self.is_epsv_all) or self.verb == "REIN"

    @property
    def foreign(self) -> bool:
        """True if the line plainly belongs to a protocol other than FTP (an HTTP request line, an SMTP greeting)."""
        return self.verb in _FOREIGN_VERBS or _FOREIGN_VERSION.search(self.argument) is not None


def parse_command(line: bytes) -> FtpCommand | None:
    """Read a whole line, LF included. None if it is not a verb of 3 or 4 letters, alone or with an argument."""
    found = _COMMAND.fullmatch(line, _skip_telnet(line))
    if found is None:
        return None
    start, end = found.span(2) if found[2] is not None else (found.end(1), found.end(1))
    return FtpCommand(found[1].decode("ascii").upper(), line[start:end], start, end)


def may_begin_command(partial: bytes) -> bool:
    """False if no line that begins with `partial` (without LF) can be a command or blank."""
    beginning = partial[:_SEEN_OF_A_BEGINNING]
    return _BEGINNING.fullmatch(beginning, _skip_telnet(beginning)) is not None


def lines_to_read(transfers: bool) -> re.Pattern[bytes]:
    """Return a search for the beginning of the next line, in whole lines, that has to be parsed; all others are only
    counted.

    It finds more than is needed, never less. `transfers`: lines of those commands too.
    """
    verbs = "|".join((*_READ, *TRANSFERS) if transfers else _READ).encode()
    return re.compile(rb"(?ims)^" + _TELNET_TEXT + rb"(?:" + verbs + rb")[ \r\n]")


def skip_blank(lines: bytes, at: int) -> int:
    """Return where the first line that is not blank begins, searching from the beginning of a line at `at`. Servers do
    not agree whether a blank line gets a reply."""
    found = _BLANKS.match(lines, at)
    return found.end() if found else at


def count_commands(lines: bytes) -> int:
    """Count the whole lines that are not blank."""
    return lines.count(b"\n") - len(_BLANK_LINES.findall(lines))


def _skip_telnet(line: bytes) -> int:
    found = _TELNET.match(line)
    return found.end() if found else 0
