"""TLS over a gevent socket, against Python's own in a thread: cuts, ends, and peers that stop in the middle."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket as gsocket
import pytest
from gevent import get_hub

from gateway.model.certificates import client_context, common_name, load_authorities, load_chain, server_context
from gateway.net.sockets import close_gently
from gateway.net.tls import TlsError, TlsSocket
from tests.lab.certificates import Authority

HOST = "proxy.example"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    return authority.issue("proxy", hosts=(HOST,))


@pytest.fixture
def both(authority: Authority, certificate: Path) -> Iterator[tuple[TlsSocket, TlsSocket]]:
    """Our two sides, after the handshake."""
    near, far = gsocket.socketpair()
    server = TlsSocket(near, server_context(certificate.read_text()))
    client = TlsSocket(far, client_context(authority.file.read_text()), HOST)
    greenlets = [gevent.spawn(server.handshake), gevent.spawn(client.handshake)]
    gevent.joinall(greenlets, 10, raise_error=True)
    yield server, client
    server.close()
    client.close()


def test_both_ways_at_once(both: tuple[TlsSocket, TlsSocket]) -> None:
    """More than any buffer holds, so that both sides have to read while they send."""
    data = bytes(range(256)) * 8192

    def receive(sock: TlsSocket) -> bytes:
        got = b""
        while part := sock.recv(10_000):
            got += part
        return got

    def send(sock: TlsSocket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    receiving = [gevent.spawn(receive, sock) for sock in both]
    sending = [gevent.spawn(send, sock) for sock in both]
    gevent.joinall(receiving, 20, raise_error=True)
    gevent.joinall(sending, 20, raise_error=True)
    assert [greenlet.value == data for greenlet in receiving] == [True, True]


def test_what_had_come_before_our_end_is_not_lost(both: tuple[TlsSocket, TlsSocket]) -> None:
    server, client = both
    client.sendall(b"abc" * 5000)
    assert server.recv(1) == b"a"  # all of it is in OpenSSL's hands now
    server.shutdown(socket.SHUT_WR)
    client.sendall(b"more")
    client.shutdown(socket.SHUT_WR)
    got = b"a"
    while part := server.recv(7000):
        got += part
    assert got == b"abc" * 5000 + b"more"
    assert client.recv(1) == b""


def test_an_end_that_is_not_told_is_an_error(both: tuple[TlsSocket, TlsSocket]) -> None:
    server, client = both
    client.plain().shutdown(socket.SHUT_RDWR)
    with pytest.raises(TlsError, match="without a close_notify"):
        server.recv(1)


def test_bytes_that_are_nobodys_are_an_error(both: tuple[TlsSocket, TlsSocket]) -> None:
    server, client = both
    client.plain().sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TlsError, match=r"decryption|bad record|record layer failure"):
        server.recv(1)


def test_a_socket_that_does_not_wait(both: tuple[TlsSocket, TlsSocket]) -> None:
    """A part of a record is nothing yet."""
    server, client = both
    plain = client.plain()
    plain.sendall(b"\x17\x03\x03")
    server.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    plain.close()


def test_both_ends_may_be_ended_in_the_hub(both: tuple[TlsSocket, TlsSocket]) -> None:
    done: list[bool] = []

    def end() -> None:
        both[0].shutdown(socket.SHUT_RDWR)
        done.append(True)

    get_hub().loop.run_callback(end)
    gevent.sleep(0)
    assert done


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_handshake_in_pieces_with_pythons_own(authority: Authority, certificate: Path, cut: int) -> None:
    """The client's bytes come a few at a time."""
    near, middle = gsocket.socketpair()
    other, far = socket.socketpair()
    server = TlsSocket(near, server_context(certificate.read_text()))
    other.setblocking(False)
    found: list[bytes] = []

    def client() -> None:
        with ssl.create_default_context(cafile=str(authority.file)).wrap_socket(far, server_hostname=HOST) as stream:
            stream.sendall(b"question")
            found.append(stream.recv(100))

    thread = threading.Thread(target=client)
    thread.start()
    crossing = gsocket.socket(fileno=other.detach())
    crossing.settimeout(10)
    middle.settimeout(10)

    def there() -> None:
        while data := crossing.recv(100_000):
            for start in range(0, len(data), cut):
                middle.sendall(data[start : start + cut])
                gevent.sleep(0)

    def back() -> None:
        while data := middle.recv(100_000):
            crossing.sendall(data)

    ways = [gevent.spawn(there), gevent.spawn(back)]
    with gevent.Timeout(20):
        server.handshake()
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        while thread.is_alive():
            gevent.sleep(0.01)
    assert found == [b"answer"]
    for way in ways:
        way.kill()
    for sock in (server, middle, crossing):
        sock.close()


def test_what_is_wrong_in_a_file_is_said(authority: Authority, certificate: Path) -> None:
    whole = certificate.read_text()
    chain, key = whole.split("-----BEGIN PRIVATE KEY-----")
    other = authority.issue("other", hosts=(HOST,)).read_text().split("-----BEGIN PRIVATE KEY-----")[1]
    wrong = {
        "": "there is no certificate in it",
        chain: "there is no private key in it",
        f"{chain}-----BEGIN PRIVATE KEY-----{other}": "its key is not the key of its first certificate",
        whole.replace("PRIVATE", "ENCRYPTED PRIVATE"): "its key is encrypted",
        whole[:200] + whole[260:]: "OpenSSL cannot read it",
        f"{chain}-----BEGIN PRIVATE KEY-----{key[:30]}": "OpenSSL cannot read it|no private key",
    }
    for text, says in wrong.items():
        with pytest.raises(ValueError, match=says):
            load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), text)
    with pytest.raises(ValueError, match="there is no certificate in it"):
        load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "nothing")


@pytest.mark.parametrize(
    ("subject", "user"),
    [
        ([("commonName", "ann")], "ann"),
        ([("organizationName", "x"), ("commonName", "ann")], "ann"),
        ([], None),
        ([("commonName", "")], None),
        ([("commonName", "ann\n")], None),
        ([("commonName", "ann"), ("commonName", "root")], None),
    ],
)
def test_whose_a_certificate_is(subject: list[tuple[str, str]], user: str | None) -> None:
    certificate = {"subject": tuple((part,) for part in subject)}
    if user is None:
        with pytest.raises(ValueError, match="common names"):
            common_name(certificate)
    else:
        assert common_name(certificate) == user


def test_a_peer_that_leaves_no_room_for_the_goodbye_is_not_waited_for(both: tuple[TlsSocket, TlsSocket]) -> None:
    server, _ = both
    server.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while True:
            server.send(bytes(4096))
    server.settimeout(None)
    with gevent.Timeout(5):
        close_gently(server, 0.2)
    assert server.fileno() == -1


def test_a_server_that_negotiates_again_costs_no_byte_in_silence(authority: Authority, certificate: Path) -> None:
    """TLS 1.2 lets a server ask for a new handshake at any time (RFC 5246, 7.4.1.1). It is refused; what arrives is
    what was sent, from the first byte without a gap, and what cannot be sent is an error."""
    with gsocket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv: list[str | Path] = [
        "openssl",
        "s_server",
        "-tls1_2",
        "-accept",
        f"127.0.0.1:{port}",
        "-cert",
        certificate,
        "-key",
        certificate,
    ]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        plain = _connected(port)
        client = TlsSocket(plain, client_context(authority.file.read_text()), HOST)
        with gevent.Timeout(20):
            client.handshake()

            def listen() -> None:
                with contextlib.suppress(OSError):
                    client.recv(1000)

            listening = gevent.spawn(listen)
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 20_000:
                    client.sendall(b"line %05d\n" % sent)
                    sent += 1
                    if sent == 50:
                        server.stdin.write(b"R\n")
                        server.stdin.flush()
                    gevent.sleep(0)
            listening.kill()
            client.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.communicate(timeout=1)  # it ends with its input, unless it waits for the next client
        server.terminate()
        heard, _ = server.communicate(timeout=10)
        lines = [int(number) for number in re.findall(rb"^line (\d+)$", heard, re.MULTILINE)]
        assert b"SSL_do_handshake" in heard, heard
        assert lines == list(range(len(lines)))
        assert len(lines) >= 50
    finally:
        server.kill()
        server.wait()


def _connected(port: int) -> gsocket.socket:
    until = time.monotonic() + 10
    while True:
        try:
            return gsocket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > until:
                raise
            gevent.sleep(0.05)
