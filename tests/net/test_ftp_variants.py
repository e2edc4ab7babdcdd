"""Everything of FTP beside the plain transfer, with real sockets and, where there is one, a real peer."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, ROUTER_OUT6, SERVER4, STRANGER4, Lab
from tests.net.ftp_control import Control, fails, port_command, split
from tests.net.ftp_script import PORT, script

SIOCATMARK = 0x8905
PUBLISHED = 2021


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"ports": [21, PORT]}}))
    yield gateway
    assert gateway.stop() == 0, strict_lab.tail_of_logs()
    assert strict_lab.leftovers() == []


def address_of(line: bytes) -> tuple[str, int]:
    """What a PORT line says."""
    numbers = line.removeprefix(b"PORT ").strip().split(b",")
    return b".".join(numbers[:4]).decode(), int(numbers[4]) * 256 + int(numbers[5])


# --- urgent data ----------------------------------------------------------------------------------------------------


def read_with_mark(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """`size` bytes, and at which places among them the kernel said that the urgent one comes."""
    import fcntl

    got, marks = b"", list[int]()
    while len(got) < size:
        assert sock.recv(1, socket.MSG_PEEK), got
        if struct.unpack("i", fcntl.ioctl(sock.fileno(), SIOCATMARK, bytes(4)))[0]:
            marks.append(len(got))
        got += sock.recv(1)
    return got, marks


@pytest.mark.parametrize("towards", ["server", "client"])
def test_urgent_data_keeps_its_place_and_its_urgency(strict_lab: Lab, gateway: Gateway, towards: str) -> None:
    """A Telnet synch before ABOR (RFC 959, 4.1.3): IP, then DM as the urgent byte."""
    with script(strict_lab, gateway) as session:
        source, sink = session.client.socket, session.server
        if towards == "client":
            source, sink = sink, source
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        text = b"ABOR\r\n" if towards == "server" else b"226 closed\r\n"
        for _ in range(3):
            source.sendall(b"\xff\xf4\xff")
            source.send(b"\xf2", socket.MSG_OOB)
            source.sendall(text)
            assert read_with_mark(sink, 4 + len(text)) == (b"\xff\xf4\xff\xf2" + text, [3])


def test_urgent_data_behind_an_edit(strict_lab: Lab, gateway: Gateway) -> None:
    with script(strict_lab, gateway) as session:
        session.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        session.client.send(port_command(CLIENT4, 51210) + b"\xff\xf4\xff")
        session.client.socket.send(b"\xf2", socket.MSG_OOB)
        session.client.send(b"ABOR\r\n")
        assert address_of(session.line())[0] == ROUTER_OUT4
        assert read_with_mark(session.server, 10) == (b"\xff\xf4\xff\xf2ABOR\r\n", [3])


# --- the end of a data connection -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [b"226 done\r\n", b"425 cannot\r\n", b"426 aborted\r\n"])
def test_the_end_of_the_data_connection_ends_the_pinhole(strict_lab: Lab, gateway: Gateway, reply: bytes) -> None:
    with script(strict_lab, gateway) as session:
        session.client.send(port_command(CLIENT4, 51210))
        public = address_of(session.line())
        session.server.sendall(b"200 ok\r\n")
        assert session.client.reply() == "200 ok"
        assert len(gateway.admin("pinholes")) == 1
        session.command(b"RETR a\r\n", b"150 here\r\n")
        session.server.sendall(reply)
        assert session.client.reply() == reply.decode().strip()
        assert gateway.admin("pinholes") == []
        assert fails(strict_lab, "outside", public)


def test_a_connection_that_waits_for_accept_is_not_lost(strict_lab: Lab, gateway: Gateway) -> None:
    """Through SOCKS: the server connects, sends all, closes and says 226 while the worker is not looking at all."""
    listener = strict_lab.listen("outside", SERVER4, PORT)
    data = strict_lab.listen("inside", CLIENT4)
    client = Control(strict_lab, ROUTER_IN4, 1080)
    client.send(b"\5\1\0" + b"\5\1\0\1" + socket.inet_aton(SERVER4) + PORT.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += client.socket.recv(12 - len(answer))
    server = listener.accept()[0]
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert client.reply() == "220 ready"
    for _ in range(20):
        client.send(port_command(CLIENT4, data.getsockname()[1]))
        line = b""
        while not line.endswith(b"\n"):
            line += server.recv(1)
        server.sendall(b"200 ok\r\n")
        assert client.reply() == "200 ok"
        workers = [row["pid"] for row in gateway.admin("status") if row["process"].startswith("worker")]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            with strict_lab.connect("outside", *address_of(line)) as sock:
                sock.sendall(b"all of it")
            server.sendall(b"150 here\r\n226 done\r\n")
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        assert client.reply() == "150 here"
        assert client.reply() == "226 done"
        with data.accept()[0] as sock:
            assert sock.recv(100) == b"all of it"
            assert sock.recv(1) == b""
    for sock in (client.socket, server, listener, data):
        sock.close()
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


def test_pipelined_transfers_have_a_pinhole_each(strict_lab: Lab, gateway: Gateway) -> None:
    """Two transfers in one segment, of which the server does the first only then."""
    with script(strict_lab, gateway) as session:
        first, second = (strict_lab.listen("inside", CLIENT4) for _ in range(2))
        ports = [port_command(CLIENT4, sock.getsockname()[1]) for sock in (first, second)]
        session.client.send(ports[0] + b"RETR a\r\n" + ports[1] + b"RETR b\r\n")
        public = [address_of(session.line())]
        session.expect(b"RETR a\r\n")
        public.append(address_of(session.line()))
        session.expect(b"RETR b\r\n")
        for endpoint, listener in zip(public, (first, second), strict=True):
            session.server.sendall(b"200 ok\r\n150 here\r\n")
            with strict_lab.connect("outside", *endpoint) as sock:
                sock.sendall(b"x")
            assert listener.accept()[0].recv(9) == b"x"
            session.server.sendall(b"226 done\r\n")
            listener.close()
        assert [session.client.reply()[:3] for _ in range(6)] == ["200", "150", "226"] * 2


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(strict_lab: Lab) -> Path:
    """Key and certificate in one file."""
    file = strict_lab.tmp / "server.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=ftp.example.com"]
    strict_lab.run("outside", [*argv, "-keyout", file, "-out", strict_lab.tmp / "cert.pem"])
    with file.open("a") as out:
        out.write((strict_lab.tmp / "cert.pem").read_text())
    file.chmod(0o644)
    return file


CCC_CLIENT = """
import ftplib, ssl, sys
host, user, password, active, version = sys.argv[1:]
context = ssl._create_unverified_context()
context.maximum_version = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
ftp = ftplib.FTP_TLS(host, context=context, timeout=10)
ftp.login(user, password)
ftp.prot_c()
ftp.ccc()
ftp.set_pasv(active == "0")
ftp.retrbinary("RETR pub/here", sys.stdout.buffer.write)
ftp.quit()
"""


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("active", [True, False], ids=["active", "passive"])
def test_ccc_makes_inspection_go_on(
    strict_lab: Lab, gateway: Gateway, certificate: Path, active: bool, version: str
) -> None:
    """Python's client logs in under TLS, then clears the control connection; the data connection needs us."""
    server = strict_lab.pure_ftpd("-Y", "1", "-2", str(certificate))
    server.put("pub/here", b"x" * 5000)
    seen = len(gateway.log_lines())
    argv = [sys.executable, "-c", CCC_CLIENT, SERVER4, server.user, server.password, str(int(active)), version]
    assert strict_lab.run("inside", argv).stdout == "x" * 5000
    gateway.wait_for_log("ftp.tls", after=seen)
    gateway.wait_for_log("ftp.clear", after=seen)
    if active:
        gateway.wait_for_log("alg.edit.*ftp.port", after=seen)
    strict_lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinholes to close")
    server.stop()


def test_without_ccc_tls_is_relayed_to_the_end(strict_lab: Lab, gateway: Gateway, certificate: Path) -> None:
    server = strict_lab.pure_ftpd("-Y", "1", "-2", str(certificate))
    argv = ["curl", "-sS", "-k", "--ssl-reqd", "--ftp-ssl-control", "-Q", "PWD", "-I", server.url("")]
    strict_lab.run("inside", argv)
    assert gateway.admin("pinholes") == []
    server.stop()


# --- a server inside ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def publishing(lab: Lab) -> Iterator[Gateway]:
    publish = [
        {"outside": f"{ROUTER_OUT4}:{PUBLISHED}", "inside": f"{CLIENT4}:21"},
        {"outside": f"[{ROUTER_OUT6}]:{PUBLISHED}", "inside": "[fd00:56::10]:21"},
        {"outside": f"{ROUTER_OUT4}:{PORT}", "inside": f"{CLIENT4}:{PORT}"},
    ]
    config = lab.write_config(publish=publish, alg={"ftp": {"ports": [21, PORT]}})
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("program", ["vsftpd", "pyftpdlib"])
@pytest.mark.parametrize(
    "extra",
    [["--ftp-port", "-"], ["--ftp-port", "-", "--disable-eprt"], [], ["--disable-epsv", "--no-ftp-skip-pasv-ip"]],
    ids=["eprt", "port", "epsv", "pasv"],
)
def test_a_published_server(lab: Lab, publishing: Gateway, program: str, version: int, extra: list[str]) -> None:
    if version == 6 and ("--disable-eprt" in extra or "--disable-epsv" in extra):
        pytest.skip("PORT and PASV are IPv4's")
    server = servers.vsftpd(lab, {}, "inside") if program == "vsftpd" else servers.pyftpdlib(lab, "inside")
    server.put("pub/here", b"x" * 50000)
    host = f"{ROUTER_OUT4 if version == 4 else f'[{ROUTER_OUT6}]'}:{PUBLISHED}"
    argv = ["curl", "-sS", "-m", "10", *extra, server.url("pub/here", host=host)]
    assert lab.run("outside", argv).stdout == "x" * 50000
    lab.wait_for(lambda: publishing.admin("flows") == [], 5, "the flows to end")
    assert publishing.admin("pinholes") == []
    server.stop()


def test_the_data_port_of_a_published_server_is_for_its_client_alone(lab: Lab, publishing: Gateway) -> None:
    listener, data = lab.listen("inside", CLIENT4, PORT), lab.listen("inside", CLIENT4)
    client = Control(lab, ROUTER_OUT4, PORT, "outside")
    server = listener.accept()[0]
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert client.reply() == "220 ready"
    client.send(b"PASV\r\n")
    assert server.recv(100) == b"PASV\r\n"
    port = data.getsockname()[1]
    server.sendall(b"227 Passive (" + port_command(CLIENT4, port)[5:-2] + b").\r\n")
    reply = client.reply()
    public = address_of(reply[reply.index("(") + 1 : reply.index(")")].encode())
    assert public[0] == ROUTER_OUT4
    (pinhole,) = publishing.admin("pinholes")
    assert split(pinhole["target"]) == (CLIENT4, port)
    assert pinhole["peer"] == SERVER4
    with pytest.raises(ConnectionResetError), lab.connect("stranger", *public) as stranger:
        stranger.recv(1)
    with lab.connect("outside", *public) as peer:
        accepted = data.accept()[0]
        peer.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.close()
    assert fails(lab, "outside", public)
    # A client outside cannot make the server connect to a third host either.
    client.send(port_command(STRANGER4, 51210))
    assert server.recv(100) == port_command(STRANGER4, 51210)
    assert publishing.admin("pinholes") == []
    for sock in (client.socket, server, listener, data):
        sock.close()
    lab.wait_for(lambda: publishing.admin("flows") == [], 10, "the flow to end")
