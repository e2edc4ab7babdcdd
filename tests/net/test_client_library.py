"""The library (gateway/client) through real proxies: algate, Dante, microsocks, tinyproxy."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client import ProxyError, aio, connect, datagrams, listen, resolve, resolve_address
from gateway.client.r import Raccept, Rbind, Rgetsockname, Rinit, Rlisten
from gateway.policy.users import HASHER
from tests.lab.gateway import Gateway
from tests.lab.kerberos import REALM, Kerberos
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4, SERVER4, SERVER6, STRANGER4, Lab
from tests.net.proxies import PASSWORD, USER, danted, microsocks, three_proxy, tinyproxy

ROOT = Path(__file__).parents[2]
PORT = 7020
SECURED = 1081  # where algate wants a password or a ticket
OURS = f"{ROUTER_IN4}:1080"
DANTE = f"{STRANGER4}:1080"
MICRO = f"socks5://{USER}:{PASSWORD}@{STRANGER4}:1081"
TINY = f"http://{USER}:{PASSWORD}@{STRANGER4}:1082"


@pytest.fixture(scope="module", autouse=True)
def upper(lab: Lab) -> Iterator[None]:
    """A server that says what it gets in upper case, by TCP and by UDP, once it has said hello."""
    listener = lab.listen("outside", "::", PORT)
    listener.settimeout(None)
    with lab.enter("outside"):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", PORT))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    def talk(sock: socket.socket) -> None:
        with sock:
            try:
                sock.sendall(b"hello")
                while data := sock.recv(65536):
                    sock.sendall(data.upper())
            except OSError:
                pass

    def serve_datagrams() -> None:
        while True:
            data, peer = udp.recvfrom(65536)
            if not data:
                return
            udp.sendto(data.upper(), peer)

    threads = [threading.Thread(target=serve), threading.Thread(target=serve_datagrams)]
    for thread in threads:
        thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    with lab.enter("outside"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"", ("127.0.0.1", PORT))
    for thread in threads:
        thread.join()
    listener.close()
    udp.close()


@pytest.fixture(scope="module", autouse=True)
def gateway(lab: Lab, kerberos: Kerberos) -> Iterator[Gateway]:
    """Two of them: who takes anybody, and who wants to know."""
    lab.dns({"upper.example": [SERVER4]})
    danted(lab, "stranger", STRANGER4)
    microsocks(lab, "stranger", STRANGER4, 1081)
    tinyproxy(lab, "stranger", STRANGER4, 1082)
    gateway = lab.start_gateway(deadline=90)
    users = lab.tmp / "users"
    users.write_text(f"ann:{HASHER.hash('secret word')}\n")
    socks = {
        "listen": [f"{ROUTER_IN4}:{SECURED}"],
        "auth": ["gssapi", "password"],
        "users": str(users),
        "gssapi": {"keytab": str(kerberos.keytab), "realm": REALM},
    }
    kerberos.keytab.chmod(0o600)
    pinhole = {"ports": "50000-50999"}
    secured = lab.start_gateway(lab.write_config(socks=socks, pinhole=pinhole), 90, rules=False)
    yield gateway
    assert secured.stop() == 0, lab.tail_of_logs()
    assert gateway.stop() == 0, lab.tail_of_logs()


def receive(sock: socket.socket, count: int) -> bytes:
    sock.settimeout(10)
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, data
        data += part
    return data


def talks(sock: socket.socket) -> None:
    with sock:
        assert receive(sock, 5) == b"hello"
        sock.sendall(b"abc")
        assert receive(sock, 3) == b"ABC"


@pytest.mark.parametrize(
    ("via", "host"),
    [
        (OURS, SERVER4),
        (OURS, SERVER6),
        (OURS, "upper.example"),
        (f"[{ROUTER_IN6}]:1080", "upper.example"),
        (f"socks4://{OURS}", SERVER4),
        (f"socks4a://me@{OURS}", "upper.example"),
        (f"socks5://ann:secret word@{ROUTER_IN4}:{SECURED}", SERVER4),
    ],
)
def test_connect_through_algate(lab: Lab, via: str, host: str) -> None:
    with lab.enter("inside"):
        sock = connect(via, host, PORT, 10)
    talks(sock)


@pytest.mark.parametrize("via", [DANTE, f"socks4://{DANTE}", MICRO, TINY])
def test_connect_through_others(lab: Lab, via: str) -> None:
    with lab.enter("outside"):
        sock = connect(via, SERVER4, PORT, 10)
    talks(sock)


@pytest.mark.parametrize("chain", [[OURS, DANTE, TINY], [OURS, MICRO, f"socks4://{DANTE}"]])
def test_a_chain_of_three(lab: Lab, chain: list[str]) -> None:
    with lab.enter("inside"):
        sock = connect(chain, SERVER4, PORT, 10)
    talks(sock)


def test_asyncio(lab: Lab) -> None:
    async def run() -> bytes:
        reader, writer = await aio.open_connection(OURS, "upper.example", PORT, timeout=10)
        writer.write(b"abc")
        answer = await reader.readexactly(8)
        writer.close()
        return answer

    with lab.enter("inside"):
        assert asyncio.run(run()) == b"helloABC"


@pytest.mark.parametrize(
    ("host", "port", "kind"),
    [
        (SERVER4, 7099, ConnectionRefusedError),
        ("127.0.0.1", 7099, PermissionError),  # a rule of the gateway's own
        ("missing.example", 80, OSError),
    ],
)
def test_errors_are_those_of_a_direct_connection(lab: Lab, host: str, port: int, kind: type[OSError]) -> None:
    with lab.enter("inside"), pytest.raises(kind) as caught:
        connect(OURS, host, port, 10)
    assert isinstance(caught.value, ProxyError)


def test_a_wrong_password(lab: Lab) -> None:
    with lab.enter("inside"), pytest.raises(PermissionError, match="does not accept user and password"):
        connect(f"socks5://ann:wrong@{ROUTER_IN4}:{SECURED}", SERVER4, PORT, 10)


@pytest.mark.parametrize(("via", "role"), [(OURS, "inside"), (f"socks4://{OURS}", "inside"), (DANTE, "outside")])
def test_bind(lab: Lab, via: str, role: str) -> None:
    with lab.enter(role):  # type: ignore[arg-type]
        waiting = listen(via, SERVER4, 0, 10)
    with waiting:
        assert waiting.address[0] == (ROUTER_OUT4 if role == "inside" else STRANGER4)
        with lab.connect("outside", *waiting.address) as peer:
            sock, who = waiting.accept(10)
            assert who == (SERVER4, peer.getsockname()[1])
            peer.sendall(b"first")
            with sock:
                assert receive(sock, 5) == b"first"


def test_the_calls_of_the_first_library(lab: Lab) -> None:
    with lab.enter("inside"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        Rinit(OURS)
        Rbind(sock, ("0.0.0.0", 0), (SERVER4, 20))
    endpoint = Rgetsockname(sock)
    Rlisten(sock, 1)
    with lab.connect("outside", *endpoint) as peer:
        accepted, _ = Raccept(sock)
        sock.close()
        peer.sendall(b"data")
        assert receive(accepted, 4) == b"data"
        accepted.close()
    Rinit()


@pytest.mark.parametrize(
    ("via", "role", "fragment"), [(OURS, "inside", None), (OURS, "inside", 100), (DANTE, "outside", None)]
)
@pytest.mark.parametrize("size", [1, 1400, 9000])
def test_datagrams(lab: Lab, via: str, role: str, fragment: int | None, size: int) -> None:
    with lab.enter(role):  # type: ignore[arg-type]
        udp = datagrams(via, 10)
    with udp:
        udp.settimeout(10)
        udp.fragment = fragment
        data = os.urandom(size // 2).hex().encode() or b"a"
        udp.sendto(data, (SERVER4, PORT))
        assert udp.recvfrom() == (data.upper(), (SERVER4, PORT))


# --- 3proxy, where it is


@pytest.fixture(scope="module")
def three(lab: Lab) -> str:
    three_proxy(lab, "stranger", STRANGER4, 1085)
    return f"{STRANGER4}:1085"


@pytest.mark.parametrize(
    "via", ["socks5://{host}:1085", "socks4://{host}:1085", "socks5://ann:secret@{host}:1086", "http://{host}:1087"]
)
def test_connect_through_3proxy(lab: Lab, three: str, via: str) -> None:
    with lab.enter("outside"):
        sock = connect(via.format(host=STRANGER4), SERVER4, PORT, 10)
        talks(sock)
        with pytest.raises(ProxyError):
            connect(via.format(host=STRANGER4), SERVER4, 7099, 10)


def test_a_wrong_password_for_3proxy(lab: Lab, three: str) -> None:
    with lab.enter("outside"), pytest.raises(PermissionError):
        connect(f"socks5://ann:wrong@{STRANGER4}:1086", SERVER4, PORT, 10)


@pytest.mark.parametrize("scheme", ["socks5", "socks4"])
def test_bind_at_3proxy(lab: Lab, three: str, scheme: str) -> None:
    """Both of its replies."""
    with lab.enter("outside"):
        waiting = listen(f"{scheme}://{three}", SERVER4, 0, 10)
    with waiting:
        assert waiting.address[0] == STRANGER4
        with lab.connect("outside", *waiting.address) as peer:
            sock, who = waiting.accept(10)
            assert who == (SERVER4, peer.getsockname()[1])
            peer.sendall(b"first")
            with sock:
                assert receive(sock, 5) == b"first"


@pytest.mark.parametrize("size", [1, 1400])
def test_datagrams_through_3proxy(lab: Lab, three: str, size: int) -> None:
    with lab.enter("outside"):
        udp = datagrams(three, 10)
    with udp:
        udp.settimeout(10)
        data = os.urandom(size // 2).hex().encode() or b"a"
        udp.sendto(data, (SERVER4, PORT))
        assert udp.recvfrom() == (data.upper(), (SERVER4, PORT))


@pytest.mark.parametrize("chain", [[OURS, f"socks5://{STRANGER4}:1085"], [OURS, DANTE, f"socks4://{STRANGER4}:1085"]])
def test_a_chain_with_3proxy(lab: Lab, three: str, chain: list[str]) -> None:
    with lab.enter("inside"):
        sock = connect(chain, SERVER4, PORT, 10)
    talks(sock)


def test_names(lab: Lab) -> None:
    with lab.enter("inside"):
        assert resolve(OURS, "upper.example", 10) == SERVER4
        assert resolve(f"socks4a://{OURS}", "upper.example", 10) == SERVER4
        with pytest.raises(ProxyError):
            resolve(OURS, "missing.example", 10)
        with pytest.raises(ProxyError):
            resolve_address(OURS, STRANGER4, 10)


_GSSAPI = """
import asyncio, os, socket, sys
from gateway.client import aio, connect, datagrams, listen
via, host, port, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sock = connect(via, host, port, 10)
assert type(sock) is socket.socket
sock.settimeout(10)
data = os.urandom(size).hex().encode()
import threading
thread = threading.Thread(target=sock.sendall, args=(data,))
thread.start()
got = b""
while len(got) < len(data) + 5:
    part = sock.recv(65536)
    assert part, len(got)
    got += part
thread.join()
assert got == b"hello" + data.upper()
sock.shutdown(socket.SHUT_WR)
assert sock.recv(1) == b""
udp = datagrams(via, 10)
udp.settimeout(10)
udp.sendto(b"question", (host, port))
assert udp.recvfrom() == (b"QUESTION", (host, port))
udp.close()
async def run():
    reader, writer = await aio.open_connection(via, host, port, timeout=10)
    writer.write(b"abc")
    assert await reader.readexactly(8) == b"helloABC"
    writer.close()
asyncio.run(run())
print("done")
"""


@pytest.mark.parametrize("level", ["confidentiality", "integrity"])
def test_gssapi_with_protection(lab: Lab, kerberos: Kerberos, level: str) -> None:
    via = f"socks5://{ROUTER_IN4}:{SECURED}?gssapi={level}"
    command = [sys.executable, "-c", _GSSAPI, via, SERVER4, str(PORT), "500000"]
    env = {**kerberos.env, "PYTHONPATH": str(ROOT)}
    assert lab.run("inside", command, env=env).stdout == "done\n"


def test_gssapi_is_not_talked_out_of(lab: Lab, kerberos: Kerberos) -> None:
    """A proxy that takes anybody does not get one who asked for protection."""
    command = [sys.executable, "-c", _GSSAPI, f"socks5://{OURS}?gssapi=confidentiality", SERVER4, str(PORT), "1"]
    done = lab.run("inside", command, env={**kerberos.env, "PYTHONPATH": str(ROOT)}, check=False)
    assert "none of our methods" in done.stderr
