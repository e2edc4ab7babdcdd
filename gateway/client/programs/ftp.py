"""`algate ftp`, `rftp`: files of another host (RFC 959), active by BIND and passive by CONNECT."""

from __future__ import annotations

import argparse
import cmd
import contextlib
import ftplib
import getpass
import os
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from alg.socks.errors import ProxyError
from gateway.client.blocking import connect, listen, resolve
from gateway.client.programs.common import EXIT_FAILED, command_line, host_and_port, parser, printable, run
from gateway.client.proxy import Chain, is_address

BLOCK = 65536


class ProxiedFtp(ftplib.FTP):
    """An FTP session whose connections all go through proxies."""

    def __init__(self, chain: Chain, timeout: float) -> None:
        super().__init__()
        self._chain = chain
        self._timeout = timeout

    def connect(self, host: str = "", port: int = 0, timeout: float = -999, source_address: Any = None) -> str:
        """Connect, and return the greeting. If the proxy says to which address it has connected, all connections of the
        session go to that address."""
        self.host = _address_of(self._chain, host, self._timeout)
        self.port = port or ftplib.FTP_PORT
        self.sock = connect(self._chain, self.host, self.port, self._timeout)
        self.sock.settimeout(self._timeout)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        return self.welcome

    def makepasv(self) -> tuple[str, int]:
        """The endpoint for a passive transfer: EPSV (RFC 2428) where the server has it, else the port of PASV, at the
        host of the control connection."""
        assert self.sock is not None
        try:
            return ftplib.parse229(self.sendcmd("EPSV"), (self.host, self.port))
        except ftplib.error_perm:
            return self.host, ftplib.parse227(self.sendcmd("PASV"))[1]

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Begin a transfer: its data connection, and how much will come if the server says it."""
        if self.passiveserver:
            data = connect(self._chain, *self.makepasv(), self._timeout)
            try:
                size = self._begin(cmd, rest)
            except BaseException:
                data.close()
                raise
        else:
            with listen(self._chain, self.host, 0, self._timeout) as waiting:
                address, port = waiting.address
                if ":" in address:
                    self.sendcmd(f"EPRT |2|{address}|{port}|")
                else:
                    self.sendport(address, port)
                size = self._begin(cmd, rest)
                data, _ = waiting.accept(self._timeout)
        data.settimeout(self._timeout)
        return data, size

    def _begin(self, command: str, rest: int | str | None) -> int | None:
        if rest is not None:
            self.sendcmd(f"REST {rest}")
        answer = self.sendcmd(command)
        if answer.startswith("2"):  # some servers say that it is done before they begin
            answer = self.getresp()
        if not answer.startswith("1"):
            raise ftplib.error_reply(answer)
        return ftplib.parse150(answer) if answer.startswith("150") else None


class Shell(cmd.Cmd):
    """The commands of a session. `failed`: whether one of them has not been done."""

    prompt = "ftp> "

    def __init__(self, chain: Chain, options: argparse.Namespace, source: IO[str]) -> None:
        super().__init__(stdin=source)
        self.use_rawinput = source.isatty()
        if not self.use_rawinput:
            self.prompt = ""
        self.failed = False
        self._chain = chain
        self._options = options
        self._ftp = ProxiedFtp(chain, options.timeout)
        self._binary = True

    def begin(self, host: str, port: int) -> None:
        """Connect and log in. Raises ftplib.Error, OSError."""
        self._ftp = ProxiedFtp(self._chain, self._options.timeout)
        self._ftp.set_pasv(not self._options.active)
        print(self._ftp.connect(host, port))
        user = self._options.user or "anonymous"
        password = os.environ.get("FTP_PASSWORD", "")
        if not password and user != "anonymous" and sys.stdin.isatty():
            password = getpass.getpass("Password: ")
        print(self._ftp.login(user, password))

    def onecmd(self, line: str) -> bool:
        try:
            return bool(super().onecmd(line))
        except (ftplib.Error, ProxyError, OSError, EOFError, ValueError) as error:
            self._fail(str(error) or "the connection has ended")
            if isinstance(error, EOFError):
                self._ftp.close()
        except TypeError:
            self._fail(f"{line.split()[0]}: that needs other words (help {line.split()[0]})")
        except AttributeError:
            if self._ftp.sock is not None:
                raise
            self._fail("not connected")
        return False

    def emptyline(self) -> bool:
        return False

    def default(self, line: str) -> None:
        if line == "EOF":
            return
        self._fail(f"{line.split()[0]}: no such command")

    def do_EOF(self, _line: str) -> bool:
        return True

    def do_open(self, line: str) -> None:
        """open HOST[:PORT]: connect and log in"""
        self.begin(*host_and_port(_words(line, 1)[0], ftplib.FTP_PORT))

    def do_user(self, line: str) -> None:
        """user NAME [PASSWORD]"""
        name, *rest = shlex.split(line)
        print(self._ftp.login(name, rest[0] if rest else getpass.getpass("Password: ")))

    def do_ls(self, line: str) -> None:
        """ls [PATH]: list with details"""
        self._ftp.retrlines(f"LIST {line}".rstrip(), _show)

    do_dir = do_ls

    def do_nlist(self, line: str) -> None:
        """nlist [PATH]: list names"""
        self._ftp.retrlines(f"NLST {line}".rstrip(), _show)

    def do_cd(self, line: str) -> None:
        """cd PATH"""
        print(self._ftp.cwd(*_words(line, 1)))

    def do_pwd(self, _line: str) -> None:
        """pwd: show the current directory of the server"""
        print(self._ftp.pwd())

    def do_lcd(self, line: str) -> None:
        """lcd PATH: the directory of this host"""
        os.chdir(*_words(line, 1))
        print(Path.cwd())

    def do_get(self, line: str) -> None:
        """get REMOTE [LOCAL]: fetch a file ("-": to the screen)"""
        remote, *rest = shlex.split(line)
        local = rest[0] if rest else Path(remote).name
        if local == "-":
            self._retrieve(remote, sys.stdout.buffer.write)
            sys.stdout.flush()
            return
        part = Path(f"{local}.part")
        try:
            with part.open("wb") as file:
                self._retrieve(remote, file.write)
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def do_put(self, line: str) -> None:
        """put LOCAL [REMOTE]: store a file"""
        local, *rest = shlex.split(line)
        remote = rest[0] if rest else Path(local).name
        with open(local, "rb") as file:
            store = self._ftp.storbinary if self._binary else self._ftp.storlines
            print(store(f"STOR {remote}", file))

    def do_delete(self, line: str) -> None:
        """delete PATH"""
        print(self._ftp.delete(*_words(line, 1)))

    def do_rename(self, line: str) -> None:
        """rename FROM TO"""
        print(self._ftp.rename(*_words(line, 2)))

    def do_mkdir(self, line: str) -> None:
        """mkdir PATH"""
        print(self._ftp.mkd(*_words(line, 1)))

    def do_rmdir(self, line: str) -> None:
        """rmdir PATH"""
        print(self._ftp.rmd(*_words(line, 1)))

    def do_binary(self, _line: str) -> None:
        """binary: transfer bytes as they are"""
        self._binary = True

    def do_ascii(self, _line: str) -> None:
        """ascii: transfer lines"""
        self._binary = False

    def do_passive(self, line: str) -> None:
        """passive [on|off]: whether this side connects for data (on), or the server does"""
        self._ftp.set_pasv(line != "off" if line else not self._ftp.passiveserver)
        print(f"passive mode {'on' if self._ftp.passiveserver else 'off'}")

    def do_quote(self, line: str) -> None:
        """quote WORDS: a command of the protocol itself"""
        print(self._ftp.sendcmd(line))

    def do_close(self, _line: str) -> None:
        """close: end the session"""
        print(self._ftp.quit())

    def do_quit(self, _line: str) -> bool:
        """quit"""
        if self._ftp.sock is not None:
            with contextlib.suppress(ftplib.Error, OSError, EOFError):
                self._ftp.quit()
        return True

    do_bye = do_quit

    def finish(self) -> None:
        self._ftp.close()

    def _retrieve(self, remote: str, write: Callable[[bytes], Any]) -> None:
        if self._binary:
            print(self._ftp.retrbinary(f"RETR {remote}", write, BLOCK), file=sys.stderr)
        else:
            print(self._ftp.retrlines(f"RETR {remote}", lambda text: write(text.encode() + b"\n")), file=sys.stderr)

    def _fail(self, text: str) -> None:
        self.failed = True
        print(f"ftp: {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. The exit code: 1 if a command has failed that did not come from a terminal."""
    options = parser("Files of another host, through a proxy. Commands come from standard input; help lists them.")
    options.add_argument("-A", "--active", action="store_true", help="the server connects for data (BIND at the proxy)")
    options.add_argument(
        "-u", "--user", metavar="NAME", help="(anonymous); FTP_PASSWORD has the password, or it is asked for"
    )
    options.add_argument("host", nargs="?", metavar="HOST[:PORT]")
    return run(options.parse_args(command_line(arguments)), _session, "ftp")


def _session(options: argparse.Namespace, chain: Chain) -> int:
    shell = Shell(chain, options, sys.stdin)
    try:
        if options.host:
            try:
                shell.begin(*host_and_port(options.host, ftplib.FTP_PORT))
            except ftplib.Error as error:
                raise ValueError(str(error)) from error
        shell.cmdloop()
    finally:
        shell.finish()
    return EXIT_FAILED if shell.failed and not sys.stdin.isatty() else 0


def _show(line: str) -> None:
    """Print a line of a server's, without what would steer the terminal."""
    print(printable(line.encode("utf-8", "surrogateescape")))


def _words(line: str, count: int) -> list[str]:
    """The words of a line. ValueError unless there are so many."""
    words = shlex.split(line)
    if len(words) != count:
        raise ValueError(f"that needs {count} word{'s' * (count > 1)} (help)")
    return words


def _address_of(chain: Chain, host: str, timeout: float) -> str:
    """The address of a name, where the proxy can say it; else the name."""
    if is_address(host) or chain.last.kind in ("http", "socks4"):
        return host
    try:
        return resolve(chain, host, timeout)
    except ProxyError as error:
        if error.failure != "failed":
            raise
        return host  # no RESOLVE there


def script() -> None:
    """Entry point of `rftp`."""
    sys.exit(main())
