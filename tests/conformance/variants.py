"""Variants of FTP, each played by a client inside and a server outside that are both ours, over real sockets."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.conformance.ways import TIMEOUT, Connect
from tests.lab.lab import CLIENT4, CLIENT6, SERVER4, SERVER6, STRANGER4, Lab, LabError

DATA = b"what is transferred"


class Missing(Exception):
    """Something did not come, or came otherwise."""


@dataclass
class Session:
    """A session to port 21, greeted, and logged in if `login`."""

    lab: Lab
    connect: Connect
    version: int
    login: bool
    greeting: bytes = b"220 ready\r\n"
    client: socket.socket = field(init=False)
    server: socket.socket = field(init=False)

    def __enter__(self) -> Session:
        host = SERVER4 if self.version == 4 else SERVER6
        with self.lab.listen("outside", host, 21) as listener:
            listener.settimeout(TIMEOUT)
            self.client = self.connect(host, 21)
            self.server = listener.accept()[0]
        for sock in (self.client, self.server):
            sock.settimeout(TIMEOUT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reply(self.greeting)
        if self.login:
            self.command(b"USER ann\r\n", b"230 in\r\n")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    @property
    def own(self) -> str:
        return CLIENT4 if self.version == 4 else CLIENT6

    def line(self, sock: socket.socket) -> bytes:
        """The next line of either side."""
        got = b""
        while not got.endswith(b"\n"):
            more = sock.recv(1)
            if not more:
                raise Missing("end of stream")
            got += more
        return got

    def reply(self, data: bytes) -> bytes:
        """The server's reply; its last line as the client got it."""
        self.server.sendall(data)
        for _ in range(data.count(b"\n")):
            line = self.line(self.client)
        return line

    def command(self, data: bytes, reply: bytes) -> bytes:
        """A command that has to pass as it is; its reply."""
        self.client.sendall(data)
        if self.line(self.server) != data:
            raise Missing("the command was changed")
        return self.reply(reply)

    def listen(self) -> tuple[socket.socket, int]:
        """A data listener of the client."""
        listener = self.lab.listen("inside", self.own)
        listener.settimeout(TIMEOUT)
        return listener, listener.getsockname()[1]

    def fetch_active(self, listener: socket.socket, line: bytes) -> None:
        """The server, which was told `line`, connects and sends; the client gets it."""
        with listener, self.lab.connect("outside", *endpoint(line), timeout=TIMEOUT) as data:
            data.sendall(DATA)
            _expect(listener.accept()[0])

    def fetch_passive(self, host: str, port: int, listener: socket.socket) -> None:
        listener.settimeout(TIMEOUT)
        with listener, self.connect(host, port) as data:
            data.settimeout(TIMEOUT)
            accepted = listener.accept()[0]
            accepted.sendall(DATA)
            accepted.close()
            _expect(data)

    def refuses(self, line: bytes) -> None:
        """The server, which was told `line`, must not get to the port that stands in it."""
        host, port = endpoint(line)
        try:
            with self.lab.connect("outside", host, port, timeout=0.3) as sock:
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(1):
                        return
                raise Missing(f"{host}:{port} is open")
        except OSError:  # refused, dropped, or reset at once
            return


def _expect(sock: socket.socket) -> None:
    got = b""
    with sock:
        sock.settimeout(TIMEOUT)
        while len(got) < len(DATA) and (more := sock.recv(100)):
            got += more
    if got != DATA:
        raise Missing("the data")


def endpoint(line: bytes) -> tuple[str, int]:
    """What PORT, EPRT or 227 says."""
    if found := re.search(rb"(\d+),(\d+),(\d+),(\d+),(\d+),(\d+)", line):
        numbers = [int(number) for number in found.groups()]
        return ".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5]
    fields = line.split(b"|")
    return fields[2].decode(), int(fields[3])


def six(host: str, port: int) -> bytes:
    return f"{host.replace('.', ',')},{port >> 8},{port & 255}".encode()


def _port(session: Session, text: Callable[[bytes], list[bytes]]) -> None:
    """PORT in the form that `text` gives it: what is written, one after the other. Its first line is the command."""
    listener, port = session.listen()
    for piece in text(six(session.own, port)):
        session.client.sendall(piece)
    line = session.line(session.server)
    while not re.search(rb"PORT|EPRT", line, re.IGNORECASE):
        line = session.line(session.server)
    session.reply(b"200 ok\r\n")
    session.fetch_active(listener, line)


def port(session: Session) -> None:
    _port(session, lambda argument: [b"PORT " + argument + b"\r\n"])


def port_small(session: Session) -> None:
    _port(session, lambda argument: [b"port " + argument + b"\r\n"])


def port_line_feed(session: Session) -> None:
    _port(session, lambda argument: [b"PORT " + argument + b"\n"])


def port_in_bytes(session: Session) -> None:
    _port(session, lambda argument: [bytes([byte]) for byte in b"PORT " + argument + b"\r\n"])


def port_behind_others(session: Session) -> None:
    _port(session, lambda argument: [b"TYPE I\r\nNOOP\r\nPORT " + argument + b"\r\nRETR a\r\n"])


def port_after_telnet(session: Session) -> None:
    _port(session, lambda argument: [b"\xff\xf4\xff\xf2PORT " + argument + b"\r\n"])


def port_after_auth_refused(session: Session) -> None:
    session.command(b"AUTH TLS\r\n", b"530 no\r\n")
    port(session)


def port_after_host(session: Session) -> None:
    session.command(b"HOST ftp.example.com\r\n", b"220 Host accepted\r\n")
    port(session)


def port_after_long_line(session: Session) -> None:
    session.command(b"SITE " + b"x" * 6000 + b"\r\n", b"200 ok\r\n")
    port(session)


def eprt(session: Session) -> None:
    listener, port = session.listen()
    family = 1 if session.version == 4 else 2
    session.client.sendall(f"EPRT |{family}|{session.own}|{port}|\r\n".encode())
    line = session.line(session.server)
    session.reply(b"200 ok\r\n")
    session.fetch_active(listener, line)


def twice(session: Session) -> None:
    for _ in range(2):
        port(session)
        session.command(b"NOOP\r\n", b"226 done\r\n")


def two_pipelined(session: Session) -> None:
    both = [session.listen() for _ in range(2)]
    text = b"".join(b"PORT " + six(session.own, port) + b"\r\nRETR a\r\n" for _, port in both)
    session.client.sendall(text)
    lines = [session.line(session.server) for _ in range(4)]
    for (listener, _), line in zip(both, lines[::2], strict=True):
        session.reply(b"200 ok\r\n150 here\r\n")
        session.fetch_active(listener, line)
        session.reply(b"226 done\r\n")


def _plainly(argument: bytes) -> bytes:
    return argument


def _pasv(
    session: Session,
    form: str,
    change: Callable[[bytes], bytes] = _plainly,
    command: bytes = b"PASV",
    host: str = SERVER4,
    port: int = 0,
) -> None:
    """A 227 of the given form, whose six numbers `change` has changed, naming `host` in place of the server."""
    with session.lab.enter("outside"):
        listener = socket.create_server((SERVER4, port))
    listening = listener.getsockname()[1]
    reply = form.encode() % change(six(host, listening))
    session.command(command + b"\r\n", reply + b"\r\n")
    session.fetch_passive(SERVER4, listening, listener)


def pasv(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode (%s).")


def pasv_bare(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode %s")


def pasv_multi_line(session: Session) -> None:
    _pasv(session, "227-Look\r\n227 Entering Passive Mode (%s)")


def pasv_blanks(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode( %s )", lambda argument: argument.replace(b",", b", "))


def pasv_zeros(session: Session) -> None:
    _pasv(session, "227 Passive (%s)", lambda argument: b",".join(b"%03d" % int(n) for n in argument.split(b",")))


def pasv_signed(session: Session) -> None:
    def signed(argument: bytes) -> bytes:
        return b",".join(b"%d" % (int(n) - 256 if int(n) > 127 else int(n)) for n in argument.split(b","))

    _pasv(session, "227 Passive (%s)", signed)


def pasv_private(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode (%s).", host="10.9.8.7")


def pasv_zero(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode (%s).", host="0.0.0.0")


def pasv_at_a_service(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode (%s).", port=3389)


def epsv_answered_by_227(session: Session) -> None:
    _pasv(session, "227 Entering Passive Mode (%s).", command=b"EPSV")


def pasv_after_what_cannot_be_read(session: Session) -> None:
    session.command(b"EPSV\r\n", b"229 Entering Extended Passive Mode (||30000|)\r\n")
    pasv(session)


def pasv_after_another_code(session: Session) -> None:
    session.command(b"STOR a\r\n", b"553-no\r\n150 yes\r\n")
    pasv(session)


def _epsv(session: Session, form: str, command: bytes = b"EPSV") -> None:
    host = SERVER4 if session.version == 4 else SERVER6
    listener = session.lab.listen("outside", host)
    port = listener.getsockname()[1]
    session.command(command + b"\r\n", f"229 Extended Passive {form % port}\r\n".encode())
    session.fetch_passive(host, port, listener)


def epsv(session: Session) -> None:
    _epsv(session, "(|||%d|)")


def epsv_delimiter(session: Session) -> None:
    _epsv(session, "(!!!%d!)")


def epsv_bare(session: Session) -> None:
    _epsv(session, "|||%d|")


def pasv_answered_by_229(session: Session) -> None:
    _epsv(session, "(|||%d|)", b"PASV")


def ccc(session: Session) -> None:
    """The framing of TLS, as CCC leaves it (RFC 4217); real TLS is in tests/net/test_ftp_variants.py."""
    session.client.sendall(b"AUTH TLS\r\n")
    session.line(session.server)
    session.reply(b"234 go\r\n")
    records = b"\x16\x03\x01\x00\x02a\n\x17\x03\x03\x00\x02b\n\x15\x03\x03\x00\x02c\n"
    for source, sink in ((session.client, session.server), (session.server, session.client)):
        source.sendall(records)
        for _ in range(3):
            session.line(sink)
    port(session)


def urgent(session: Session) -> None:
    session.client.sendall(b"\xff\xf4\xff")
    session.client.send(b"\xf2", socket.MSG_OOB)
    session.client.sendall(b"ABOR\r\n")
    end = 3
    while end and (more := session.server.recv(end)):
        end -= len(more)
    with contextlib.suppress(LabError):
        session.lab.wait_for(lambda: _urgent_byte(session.server) == b"\xf2", TIMEOUT, "the urgent byte")
        return
    raise Missing("the urgent byte")


def _urgent_byte(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1, socket.MSG_OOB)
    except OSError:  # not there yet, or not urgent
        return b""


def _closed(session: Session, line: bytes) -> None:
    """Whatever the gateway makes of this line: the server must not get through to the client by it."""
    listener, port = session.listen()
    with listener:
        session.client.sendall(line % six(session.own, port))
        line = session.line(session.server)
        while b"," not in line:
            line = session.line(session.server)
        session.reply(b"200 ok\r\n")
        session.refuses(line)


def no_port_in_post(session: Session) -> None:
    session.client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
    _closed(session, b"PORT %s\r\n")


def no_port_after_auth(session: Session) -> None:
    session.command(b"AUTH TLS\r\n", b"234 go\r\n")
    _closed(session, b"PORT %s\r\n")


def no_port_within_line(session: Session) -> None:
    _closed(session, b"MKD a PORT %s\r\n")


def no_port_behind_carriage_return(session: Session) -> None:
    _closed(session, b"MKD a\rPORT %s\r\n")


def no_port_to_low(session: Session) -> None:
    session.client.sendall(b"PORT " + six(session.own, 22) + b"\r\n")
    line = session.line(session.server)
    session.reply(b"200 ok\r\n")
    with session.lab.enter("inside"):
        listener = socket.create_server((session.own, 22))
    with listener:
        session.refuses(line)


def no_second_connection(session: Session) -> None:
    """A PORT is for one connection."""
    listener, port = session.listen()
    session.client.sendall(b"PORT " + six(session.own, port) + b"\r\n")
    line = session.line(session.server)
    session.reply(b"200 ok\r\n")
    with listener:
        with contextlib.suppress(OSError):
            session.lab.connect("outside", *endpoint(line), timeout=TIMEOUT).close()
        session.refuses(line)


def no_227_in_text(session: Session) -> None:
    """A 227 within the text of another reply is none: the client's way out to it stays closed."""
    with session.lab.listen("outside", SERVER4) as listener:
        port = listener.getsockname()[1]
        session.client.sendall(b"STAT\r\n")
        session.line(session.server)
        session.reply(b"211-Status\r\n227 Passive (" + six(SERVER4, port) + b")\r\n211 End\r\n")
        _no_way_out(session, SERVER4, port)


def no_227_to_a_third_host(session: Session) -> None:
    with session.lab.listen("stranger", STRANGER4) as listener:
        port = listener.getsockname()[1]
        session.command(b"PASV\r\n", b"227 Passive (" + six(STRANGER4, port) + b")\r\n")
        _no_way_out(session, STRANGER4, port)


def _no_way_out(session: Session, host: str, port: int) -> None:
    with contextlib.suppress(OSError), session.lab.connect("inside", host, port, timeout=0.3):
        raise Missing(f"the way to {host}:{port} is open")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    what: str
    play: Callable[[Session], None]
    version: int = 4
    login: bool = True
    greeting: bytes = b"220 ready\r\n"


WORKS = (
    Variant("PORT", port),
    Variant("PORT in lower case", port_small),
    Variant("PORT ended by LF alone", port_line_feed),
    Variant("PORT byte by byte", port_in_bytes),
    Variant("PORT behind other commands in one segment", port_behind_others),
    Variant("PORT behind a Telnet synch", port_after_telnet),
    Variant("PORT after AUTH was refused", port_after_auth_refused),
    Variant("PORT after HOST and its 220", port_after_host),
    Variant("PORT after a line of 6,000 bytes", port_after_long_line),
    Variant("PORT after AUTH TLS and CCC", ccc),
    Variant("PORT after a greeting of 200", port, greeting=b"200 ready\r\n"),
    Variant("PORT after text before the greeting", port, greeting=b"All is logged.\r\n220 ready\r\n"),
    Variant("two transfers, one after the other", twice),
    Variant("two transfers in one segment", two_pipelined),
    Variant("EPRT, IPv4", eprt),
    Variant("EPRT, IPv6", eprt, 6),
    Variant("PASV", pasv),
    Variant("PASV, 227 without parentheses", pasv_bare),
    Variant("PASV, 227 of several lines", pasv_multi_line),
    Variant("PASV, 227 with blanks", pasv_blanks),
    Variant("PASV, 227 with leading zeros", pasv_zeros),
    Variant("PASV, 227 with signed numbers", pasv_signed),
    Variant("PASV, 227 with a private address, which the client does not use", pasv_private),
    Variant("PASV, 227 with 0,0,0,0, which the client does not use", pasv_zero),
    Variant("PASV, port 3389", pasv_at_a_service),
    Variant("PASV, answered by 229", pasv_answered_by_229),
    Variant("PASV, after a 229 that cannot be read", pasv_after_what_cannot_be_read),
    Variant("PASV, after a reply that ended with another code", pasv_after_another_code),
    Variant("EPSV, answered by 227", epsv_answered_by_227),
    Variant("EPSV, IPv4", epsv),
    Variant("EPSV, IPv6", epsv, 6),
    Variant("EPSV, 229 with another delimiter", epsv_delimiter),
    Variant("EPSV, 229 without parentheses", epsv_bare),
    Variant("ABOR keeps its urgent byte", urgent),
)
SAFE = (
    Variant("PORT behind an HTTP POST", no_port_in_post, login=False),
    Variant("PORT after AUTH TLS", no_port_after_auth),
    Variant("PORT within another command's argument", no_port_within_line),
    Variant("PORT behind a bare CR", no_port_behind_carriage_return),
    Variant("PORT to port 22 of the client", no_port_to_low),
    Variant("a second connection by one PORT", no_second_connection),
    Variant("227 within a multi-line reply", no_227_in_text),
    Variant("227 that names a third host", no_227_to_a_third_host),
)
