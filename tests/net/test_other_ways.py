"""What is bounded or refused by one way of asking is so by every other: HTTP CONNECT, SOCKS 4a, redirected connections,
BIND, names in datagrams. For one client all of them count together."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT6, ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4, ROUTER_OUT6, SERVER4, Lab, Role
from tests.net.socks_wire import ask5
from tests.net.test_client_limits import reset
from tests.net.test_socks_auth import set_password
from tests.net.udp_client import associate
from tests.unit.spellings import spellings

PORT, SERVICE, PLAIN = 7300, 7777, 7301
LIMITS = {"flows": 20, "lookups": 5}


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    listener = lab.listen("outside", SERVER4, PORT)
    plain = lab.listen("outside", SERVER4, PLAIN)
    with lab.enter("outside"):  # nobody answers there: what is to be resolved waits
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((SERVER4, 5399))
    gateway = lab.start_gateway(
        lab.write_config(
            socks={"protocols": ["socks5", "socks4", "http"]},
            transparent={"ports": [PLAIN]},
            limits=LIMITS,
            dns={"servers": [f"{SERVER4}:5399"], "timeout": 1.0},
            process={"drain_timeout": 1},
        )
    )
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    for sock in (listener, plain, names):
        sock.close()


@pytest.fixture
def opened(lab: Lab, gateway: Gateway) -> Iterator[list[socket.socket]]:
    found: list[socket.socket] = []
    yield found
    for sock in found:
        reset(sock)
    lab.wait_for(lambda: gateway.admin("flows") == [], 20, "the flows to end")


def socks5(lab: Lab, role: Role, host: str, port: int) -> tuple[socket.socket, bool]:
    sock = lab.connect(role, ROUTER_IN4, 1080)
    return sock, ask5(sock, host, port)[0] == 0


def socks4a(lab: Lab, role: Role, host: str, port: int) -> tuple[socket.socket, bool]:
    sock = lab.connect(role, ROUTER_IN4, 1080)
    sock.sendall(b"\4\1" + port.to_bytes(2, "big") + b"\0\0\0\1ann\0" + host.encode() + b"\0")
    return sock, sock.recv(8)[1:2] == b"\x5a"


def http(lab: Lab, role: Role, host: str, port: int) -> tuple[socket.socket, bool]:
    sock = lab.connect(role, ROUTER_IN4, 1080)
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    sock.sendall(f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    return sock, b" 200 " in sock.recv(4096).partition(b"\r\n")[0]


def redirected(lab: Lab, role: Role, host: str, port: int) -> tuple[socket.socket, bool]:
    sock = lab.connect(role, host, PLAIN)
    return sock, True


WAYS: dict[str, Callable[[Lab, Role, str, int], tuple[socket.socket, bool]]] = {
    "SOCKS 5": socks5,
    "SOCKS 4a": socks4a,
    "HTTP": http,
}


def test_flows_count_together(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    served = 0
    for _ in range(LIMITS["flows"]):
        for way in (socks5, socks4a, http, redirected):
            try:
                sock, good = way(lab, "inside", SERVER4, PORT)
            except OSError:
                continue
            opened.append(sock)
            served += good
    lab.wait_for(lambda: len(gateway.admin("flows")) == LIMITS["flows"], 5, "as many flows as there may be")
    assert {row["front"] for row in gateway.admin("flows")} >= {"socks", "transparent"}
    for way in (socks5, socks4a, http):
        sock, good = way(lab, "client2", SERVER4, PORT)
        opened.append(sock)
        assert good, way.__name__


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_names_of_a_silent_server_are_bounded(
    lab: Lab, gateway: Gateway, opened: list[socket.socket], way: Callable[..., tuple[socket.socket, bool]]
) -> None:
    """Also those in datagrams: together they are no more."""
    seen = len(gateway.log_lines())
    with contextlib.closing(associate(lab)) as client:
        for number in range(4):
            client.send(f"d{number}.example.net", PORT, b"x")
        for number in range(LIMITS["lookups"] + 3):
            sock = lab.connect("inside", ROUTER_IN4, 1080)
            opened.append(sock)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                _ask_without_waiting(sock, way, f"n{number}.example.net")
        lab.wait_for(
            lambda: sum("limits.lookups" in line for line in gateway.log_lines()[seen:]) >= 3, 5, "some to be refused"
        )


def _ask_without_waiting(sock: socket.socket, way: Callable[..., tuple[socket.socket, bool]], name: str) -> None:
    class There:
        """A lab whose connection is there already."""

        def connect(self, *_: object) -> socket.socket:
            return sock

    if way is socks5:
        sock.sendall(b"\5\1\0" + b"\5\1\0\3" + bytes([len(name)]) + name.encode() + PORT.to_bytes(2, "big"))
    else:
        way(There(), "inside", name, PORT)


def own_names(lab: Lab) -> list[str]:
    """The router's addresses as names in requests."""
    found = [
        ROUTER_IN4,
        ROUTER_OUT4,
        ROUTER_IN6,
        ROUTER_OUT6,
        "127.0.0.1",
        "127.1",
        "0.0.0.0",
        "0",
        "::",
        "::1",
        "localhost",
    ]
    found += [
        f"{ROUTER_IN4}.",
        "localhost.",
        "LOCALHOST",
        "ip6-localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.1",
    ]
    found += ["3232249858", "0xc0a83802", "192.168.14338", "192.11010050"]
    for text in (ROUTER_IN4, ROUTER_OUT4):
        found += (str(spelling) for _, spelling in spellings(ipaddress.IPv4Address(text)))
        found.append(".".join(f"0{int(part):o}" for part in text.split(".")))
        found.append(".".join(hex(int(part)) for part in text.split(".")))
    return found


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_routers_own_services(lab: Lab, gateway: Gateway, way: Callable[..., tuple[socket.socket, bool]]) -> None:
    with lab.listen("router", "::", SERVICE) as service:
        service.settimeout(0)
        for host in own_names(lab):
            if way is socks4a and ":" in host:
                continue
            sock = None
            with contextlib.suppress(OSError, UnicodeError):
                sock, good = way(lab, "inside", host, SERVICE)
                assert not good, host
            if sock is not None:
                sock.close()
        with pytest.raises(BlockingIOError):
            raise AssertionError(service.accept())


def test_wrong_passwords_of_http_ban_one_host_of_a_lan(lab: Lab) -> None:
    users = lab.tmp / "users-http"
    config = lab.write_config(
        network={"inside_interfaces": None},
        socks={
            "auth": ["password"],
            "protocols": ["socks5", "http"],
            "users": str(users),
            "listen": [f"[{ROUTER_IN6}]:1083"],
            "guard": {"ban": 3},
        },
        process={"workers": 2},
    )
    gateway = Gateway(lab, config)
    set_password(gateway, users, "ann", "secret word")
    gateway.start(rules=False)
    try:
        clients = []
        for number in range(12):
            sock = lab.connect("inside", ROUTER_IN6, 1083)
            sock.sendall(_connect(f"guess {number}"))
            clients.append(sock)
        gateway.wait_for_log("event=auth.ban ", deadline=20)
        for sock in clients:
            sock.close()
        failed = [line for line in gateway.log_lines() if "event=auth.failed" in line]
        assert all(f"address={CLIENT6} " in line for line in failed)
        with lab.connect("client2", ROUTER_IN6, 1083, timeout=9) as neighbour:
            neighbour.sendall(_connect("secret word"))
            assert b" 407 " not in neighbour.recv(4096).partition(b"\r\n")[0], "a neighbour in the same /64"
        with lab.connect("inside", ROUTER_IN6, 1083, timeout=9) as sock, contextlib.suppress(OSError):
            sock.sendall(_connect("secret word"))
            assert b" 200 " not in sock.recv(4096).partition(b"\r\n")[0]
    finally:
        assert gateway.stop() == 0, lab.tail_of_logs()


def _connect(password: str) -> bytes:
    words = base64.b64encode(f"ann:{password}".encode()).decode()
    return f"CONNECT {SERVER4}:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic {words}\r\n\r\n".encode()
