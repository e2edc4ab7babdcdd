"""The library with plain sockets: what a program gets, whatever its proxy does."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.socks.udp import fragments, parse_header
from gateway.client import Proxy, ProxyError, connect, datagrams, listen, resolve, resolve_address, socksified
from gateway.client.blocking import connect_socket
from gateway.client.r import Raccept, Rbind, Rconnect, Rgetsockname, Rinit, Rlisten
from tests.unit.client.scripted import CONNECT, GREETING, receive, scripted

ROOT = Path(__file__).parents[3]
OK4 = b"\0\x5a\0\0\0\0\0\0"
HTTP = (b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n", b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n")


def works(sock: socket.socket) -> None:
    assert sock.gettimeout() is None
    sock.sendall(b"abc")
    assert receive(sock, 3) == b"ABC"
    assert type(sock) is socket.socket


@pytest.mark.parametrize(
    ("scheme", "lines"),
    [
        ("socks5", [GREETING, CONNECT]),
        ("socks5h", [GREETING, CONNECT]),
        ("socks4a", [(b"\4\1\0\x50\0\0\0\1\0a.test\0", OK4)]),
        ("http", [HTTP]),
    ],
)
def test_connect(scheme: str, lines: list[tuple[bytes, bytes]]) -> None:
    with scripted(*lines) as proxy, connect(f"{scheme}://127.0.0.1:{proxy.port}", "a.test", 80, 5) as sock:
        works(sock)


@pytest.mark.parametrize(
    ("scheme", "lines"),
    [("socks5", [GREETING, CONNECT]), ("socks4a", [(b"\4\1\0\x50\0\0\0\1\0a.test\0", OK4)]), ("http", [HTTP])],
)
def test_no_byte_of_the_server_is_taken(scheme: str, lines: list[tuple[bytes, bytes]]) -> None:
    """What comes in one piece with the last answer is the server's."""
    lines = [*lines[:-1], (lines[-1][0], lines[-1][1] + b"220 hello\r\n")]
    with scripted(*lines) as proxy, connect(f"{scheme}://127.0.0.1:{proxy.port}", "a.test", 80, 5) as sock:
        assert receive(sock, 11) == b"220 hello\r\n"
        works_after = sock
        works_after.settimeout(None)
        works(works_after)


def test_a_password() -> None:
    lines = [(b"\5\2\0\2", b"\5\2"), (b"\1\3ann\6secret", b"\1\0"), CONNECT]
    with scripted(*lines) as proxy, connect(f"socks5://ann:secret@127.0.0.1:{proxy.port}", "a.test", 80, 5) as sock:
        works(sock)


FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}


@pytest.mark.parametrize(
    ("own", "proxys", "only"),
    [("IPv6", "127.0.0.1", False), ("IPv6", "127.0.0.1", True), ("IPv6", "::1", True), ("IPv4", "::1", False)],
)
def test_a_socket_of_another_family_than_the_proxys(own: str, proxys: str, only: bool) -> None:
    """A program's socket is of its server's family, which says nothing of the proxy's. It remains of that family where
    that can be: a program may look."""
    with scripted(GREETING, CONNECT, host=proxys) as proxy, socket.socket(FAMILIES[own]) as sock:
        if only:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        connect_socket(sock, Proxy("socks5", proxys, proxy.port), "a.test", 80, 5)
        works(sock)
        assert len(sock.getsockname()) == 4


def test_a_chain_of_three() -> None:
    """Each hears of the next one only."""
    second = (b"\5\1\0\1\x7f\0\0\1\0\7", CONNECT[1])
    third = (b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\nProxy-Authorization: Basic YW5uOng=\r\n\r\n", HTTP[1])
    further = ["socks4://me@127.0.0.1:7", "http://ann:x@127.0.0.2:9"]
    lines = [GREETING, second, (b"\4\1\0\x09\x7f\0\0\2me\0", OK4), third]
    with (
        scripted(*lines) as proxy,
        connect([f"127.0.0.1:{proxy.port}", *further], "a.test", 80, 5) as sock,
    ):
        works(sock)


@pytest.mark.parametrize(
    ("reply", "number", "kind"),
    [
        (1, errno.ECONNABORTED, ConnectionAbortedError),
        (2, errno.EACCES, PermissionError),
        (3, errno.ENETUNREACH, OSError),
        (4, errno.EHOSTUNREACH, OSError),
        (5, errno.ECONNREFUSED, ConnectionRefusedError),
        (6, errno.ETIMEDOUT, TimeoutError),
    ],
)
def test_a_refusal_has_its_errno(reply: int, number: int, kind: type[OSError]) -> None:
    with scripted(GREETING, (CONNECT[0], bytes((5, reply)))) as proxy:
        with pytest.raises(kind) as caught:
            connect(f"127.0.0.1:{proxy.port}", "a.test", 80, 5)
        assert isinstance(caught.value, ProxyError)
        assert (caught.value.errno, caught.value.reply) == (number, reply)
        assert str(proxy.port) in str(caught.value), "it says which proxy"


def test_a_refusal_in_a_chain_is_not_the_servers() -> None:
    with scripted(GREETING, (b"\5\1\0\1\x7f\0\0\1\0\7", b"\5\5\0")) as proxy:
        with pytest.raises(ProxyError) as caught:
            connect([f"127.0.0.1:{proxy.port}", "127.0.0.1:7"], "a.test", 80, 5)
        assert caught.value.failure == "failed"


def test_one_deadline_for_all_of_it() -> None:
    """A proxy that always says something and never enough."""
    began = time.monotonic()
    with scripted(GREETING, (CONNECT[0], b"\5\0\0\3\xff" + bytes(255)), dribble=0.05) as proxy:
        with pytest.raises(TimeoutError) as caught:
            connect(f"127.0.0.1:{proxy.port}", "a.test", 80, 0.5)
        assert isinstance(caught.value, ProxyError)
    assert 0.4 < time.monotonic() - began < 4


@pytest.mark.parametrize("answer", [b"", b"\5", b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad\r\n\r\n", b"\5\xff"])
def test_what_is_no_proxy(answer: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            sock.recv(3)
            sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, pytest.raises(ProxyError):
        connect(f"127.0.0.1:{listener.getsockname()[1]}", "a.test", 80, 5)
    thread.join()


def test_a_proxy_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ProxyError, match=str(port)):
        connect(f"127.0.0.1:{port}", "a.test", 80, 5)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(["socks4a", "socks5", "http"]))
def test_any_answer_is_a_success_or_a_proxy_error(answer: bytes, scheme: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            sock.recv(1)
            sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        connect(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", "a.test", 80, 5).close()
    except ProxyError:
        pass
    thread.join()
    listener.close()


# --- BIND and the calls of the first library ------------------------------------------------------------------------

BIND = [
    GREETING,
    (b"\5\2\0\1\xcb\0\x71\x09\0\x14", b"\5\0\0\1\xc0\0\2\1\x9c\x40"),
    (b"", b"\5\0\0\1\xcb\0\x71\x09\0\x14"),
]


def test_listen() -> None:
    with scripted(*BIND) as proxy, listen(f"127.0.0.1:{proxy.port}", "203.0.113.9", 20, 5) as waiting:
        assert waiting.address == ("192.0.2.1", 40000)
        select.select([waiting], [], [], 5)
        sock, peer = waiting.accept(5)
        assert peer == ("203.0.113.9", 20)
        with sock:
            works(sock)


def test_listen_where_the_proxy_does_not_know_its_address() -> None:
    lines = [BIND[0], (BIND[1][0], b"\5\0\0\1\0\0\0\0\x9c\x40")]
    with scripted(*lines) as proxy, listen(f"127.0.0.1:{proxy.port}", "203.0.113.9", 20, 5) as waiting:
        assert waiting.address == ("127.0.0.1", 40000)


def test_nobody_comes() -> None:
    lines = [*BIND[:2], (b"", b"\5\6\0")]
    with (
        scripted(*lines) as proxy,
        listen(f"127.0.0.1:{proxy.port}", "203.0.113.9", 20, 5) as waiting,
        pytest.raises(TimeoutError),
    ):
        waiting.accept(5)


def test_figure_4_of_the_paper() -> None:
    """A file transfer: control by Rconnect; data by Rbind, Rgetsockname (for PORT), Rlisten, Raccept."""
    with scripted(GREETING, (b"\5\1\0\1\xcb\0\x71\x09\0\x15", CONNECT[1])) as control, scripted(*BIND) as data:
        Rinit(f"127.0.0.1:{control.port}")
        ctrl = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        Rconnect(ctrl, ("203.0.113.9", 21))
        works(ctrl)
        Rinit(f"127.0.0.1:{data.port}")
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        Rbind(sock, ("0.0.0.0", 0), ("203.0.113.9", 20))
        assert Rgetsockname(sock) == ("192.0.2.1", 40000)
        Rlisten(sock, 1)
        accepted, peer = Raccept(sock)
        sock.close()
        assert peer == ("203.0.113.9", 20)
        works(accepted)
        accepted.close()
        ctrl.close()
        Rinit()


def test_the_calls_in_the_wrong_order() -> None:
    with socket.socket() as sock:
        with pytest.raises(OSError, match="Rbind"):
            Rlisten(sock, 1)
        with pytest.raises(OSError, match="Rbind"):
            Raccept(sock)


# --- RESOLVE, datagrams ---------------------------------------------------------------------------------------------


def test_names() -> None:
    with scripted(GREETING, (b"\5\xf0\0\3\6a.test\0\0", b"\5\0\0\1\xcb\0\x71\x09\0\0")) as proxy:
        assert resolve(f"127.0.0.1:{proxy.port}", "a.test", 5) == "203.0.113.9"
    with scripted(GREETING, (b"\5\xf1\0\1\xcb\0\x71\x09\0\0", b"\5\0\0\3\6a.test\0\0")) as proxy:
        assert resolve_address(f"127.0.0.1:{proxy.port}", "203.0.113.9", 5) == "a.test"


@pytest.mark.parametrize("bound", [b"\x7f\0\0\1", bytes(4)], ids=["address", "unspecified"])
def test_datagrams_in_fragments_both_ways(bound: bytes) -> None:
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind(("127.0.0.1", 0))
    relay.settimeout(5)
    reply = b"\5\0\0\1" + bound + relay.getsockname()[1].to_bytes(2, "big")
    with scripted(GREETING, (b"\5\3\0\1\0\0\0\0\0\0", reply)) as proxy, datagrams(f"127.0.0.1:{proxy.port}", 5) as udp:
        udp.settimeout(5)
        udp.fragment = 4
        assert udp.sendto(b"question", ("a.test", 53)) == 8
        wires = [relay.recvfrom(100) for _ in range(2)]
        assert [parse_header(wire)[0] for wire, _ in wires] == [(1, "a.test", 53), (0x82, "a.test", 53)]
        assert [wire[parse_header(wire)[1] :] for wire, _ in wires] == [b"ques", b"tion"]
        client = wires[0][1]
        relay.sendto(b"junk", client)
        for part in fragments("2001:db8::1", 53, b"an answer", 3):
            relay.sendto(part, client)
        assert udp.recvfrom() == (b"an answer", ("2001:db8::1", 53))
        udp.settimeout(0.05)
        with pytest.raises(TimeoutError):
            udp.recvfrom()
    relay.close()


def test_the_association_ends_with_its_connection() -> None:
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind(("127.0.0.1", 0))
    reply = b"\5\0\0\1\x7f\0\0\1" + relay.getsockname()[1].to_bytes(2, "big")
    lines = [GREETING, (b"\5\3\0\1\0\0\0\0\0\0", reply), (b"never", b"")]
    with scripted(*lines) as proxy, datagrams(f"127.0.0.1:{proxy.port}", 5) as udp:
        udp._control.shutdown(socket.SHUT_WR)  # the script goes at an end
        udp.settimeout(5)
        with pytest.raises(ConnectionAbortedError):
            udp.recvfrom()
    relay.close()


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for proxy.test and its key, its own authority."""
    file = tmp_path_factory.mktemp("tls") / "proxy.pem"
    names = ["-subj", "/CN=proxy.test", "-addext", "subjectAltName=DNS:proxy.test,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*made, "-days", "2", *names, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True
    )
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


@contextlib.contextmanager
def tls(certificate: Path, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Takes TLS off, and leads on to a port: as stunnel does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)

    def serve() -> None:
        try:
            raw, _ = listener.accept()
            outer = context.wrap_socket(raw, server_side=True)
        except OSError:
            return
        inner = socket.create_connection(("127.0.0.1", port))
        outer.setblocking(False)
        with outer, inner, contextlib.suppress(OSError):
            while True:
                select.select([outer, inner], [], [], 0 if outer.pending() else 5)
                with contextlib.suppress(ssl.SSLWantReadError):
                    data = outer.recv(65536)
                    if not data:
                        return
                    inner.sendall(data)
                if select.select([inner], [], [], 0)[0]:
                    data = inner.recv(65536)
                    if not data:
                        return
                    outer.setblocking(True)
                    outer.sendall(data)
                    outer.setblocking(False)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.mark.parametrize("scheme", ["socks5+tls", "https"])
def test_a_proxy_inside_tls(certificate: Path, scheme: str) -> None:
    lines = [HTTP] if scheme == "https" else [GREETING, CONNECT]
    with (
        scripted(*lines, tail=b"220 hello\r\n") as proxy,
        tls(certificate, proxy.port) as port,
        connect(f"{scheme}://127.0.0.1:{port}?ca={certificate}", "a.test", 80, 5) as sock,
    ):
        assert receive(sock, 11) == b"220 hello\r\n"
        sock.settimeout(None)
        works(sock)
        text = bytes(range(97, 123)) * 20000  # more than fits in any buffer
        thread = threading.Thread(target=sock.sendall, args=(text,))
        thread.start()
        assert receive(sock, len(text)) == text.upper()
        thread.join()


@pytest.mark.parametrize("proxys", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("own", ["IPv6", "IPv4"])
def test_a_pair_in_a_sockets_place_is_of_its_family(certificate: Path, own: str, proxys: str) -> None:
    with (
        scripted(GREETING, CONNECT) as proxy,
        tls(certificate, proxy.port, proxys) as port,
        socket.socket(FAMILIES[own]) as sock,
    ):
        via = Proxy("socks5", proxys, port, tls=True, ca=str(certificate), name="proxy.test")
        connect_socket(sock, via, "a.test", 80, 5)
        works(sock)
        assert len(sock.getsockname()) == (2 if own == "IPv4" else 4)


@pytest.mark.parametrize("options", ["", "&name=other.test"])
def test_a_certificate_that_is_not_good(certificate: Path, options: str) -> None:
    ca = "ca=/etc/ssl/certs/ca-certificates.crt" if not options else f"ca={certificate}"
    with (
        scripted(GREETING) as proxy,
        tls(certificate, proxy.port) as port,
        pytest.raises(PermissionError, match="certificate"),
    ):
        connect(f"socks5+tls://127.0.0.1:{port}?{ca}{options}", "a.test", 80, 5)


# --- socksified -----------------------------------------------------------------------------------------------------


def test_a_library_that_takes_no_proxy() -> None:
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    lines = [GREETING, CONNECT, (b"GET / HTTP/1.1\r\n", answer)]
    with scripted(*lines) as proxy, socksified(f"127.0.0.1:{proxy.port}"):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open("http://a.test/", timeout=5).read() == b"hi"
    assert socket.socket.__name__ == "socket"


@pytest.mark.parametrize("server", ["a.test", "2001:db8::1"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_library_and_a_proxy_of_any_family(server: str, host: str) -> None:
    asked = b"\3\6a.test" if server == "a.test" else b"\4" + socket.inet_pton(socket.AF_INET6, server)
    where = f"[{host}]" if ":" in host else host
    with (
        scripted(GREETING, (b"\5\1\0" + asked + b"\0\x50", CONNECT[1]), host=host) as proxy,
        socksified(f"{where}:{proxy.port}"),
        socket.create_connection((server, 80), 5) as sock,
    ):
        sock.sendall(b"abc")
        assert receive(sock, 3) == b"ABC"


def test_what_would_go_past_the_proxy_is_refused() -> None:
    with scripted(GREETING) as proxy, socksified(f"127.0.0.1:{proxy.port}"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(PermissionError):
            udp.sendto(b"x", ("127.0.0.1", 9))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(PermissionError):
            udp.connect(("127.0.0.1", 9))
        with socket.socket() as tcp, pytest.raises(PermissionError):
            tcp.listen()
        near, far = socket.socketpair()  # what is no network is left alone
        near.send(b"x")
        assert far.recv(1) == b"x"
        near.close()
        far.close()


def test_errors_come_through() -> None:
    refusal = [GREETING, (CONNECT[0], b"\5\5\0")]
    with (
        scripted(*refusal) as proxy,
        socksified(f"127.0.0.1:{proxy.port}"),
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(("a.test", 80), 5)
    with scripted(*refusal) as proxy, socksified(f"127.0.0.1:{proxy.port}"), socket.socket() as sock:
        assert sock.connect_ex(("a.test", 80)) == errno.ECONNREFUSED


# --- where it runs --------------------------------------------------------------------------------------------------

_GEVENT = """
import sys
early = sys.argv[2] == "loaded before"
if early:
    import gateway.client
from gevent import monkey
monkey.patch_all()
import gevent
from gateway.client import connect, ProxyError
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.01)
gevent.spawn(tick)
try:
    connect("127.0.0.1:" + sys.argv[1], "a.test", 80, 0.5)
except ProxyError as error:
    assert error.failure == "timeout", error
else:
    raise AssertionError
assert ticks > 10, ticks
"""


@pytest.mark.parametrize("order", ["loaded before", "loaded after"])
def test_other_greenlets_go_on(order: str) -> None:
    with scripted((b"\5\1\0", b""), (b"never", b"")) as proxy:
        subprocess.run([sys.executable, "-c", _GEVENT, str(proxy.port), order], check=True, cwd=ROOT, timeout=60)


def test_it_needs_the_standard_library_only() -> None:
    """In a Python that finds nothing else."""
    code = "import gateway.client, gateway.client.aio, gateway.client.r, sys; print(*sys.modules)"
    command = [sys.executable, "-S", "-E", "-c", code]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = {name for name in done.stdout.split() if name.startswith(("alg", "gateway"))}
    own = ("alg.socks", "gateway.client", "alg.compiled__mypyc")  # the last is what alg.address is compiled into
    assert {name for name in loaded if not name.startswith(own)} == {"alg", "alg.address", "gateway"}


def test_a_name_that_fits_into_no_message() -> None:
    with scripted() as proxy, pytest.raises(ProxyError, match="name"):
        connect(f"127.0.0.1:{proxy.port}", "a" * 256, 80, 5)
