"""Rules on the wire: names, addresses behind names, limits, both fronts, happy eyeballs, ways through real proxies."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT2_4,
    ROUTER_IN4,
    ROUTER_OUT4,
    SERVER4,
    SERVER6,
    STRANGER4,
    Lab,
    Role,
)
from tests.lab.peers import unpacked
from tests.lab.servers import _listens
from tests.net import proxies

GREETING = b"\5\1\0"
OPEN, LIMITED, ONCE, TRANSPARENT, CLOSED, CONFIRMED, PACED = 7001, 7002, 7003, 7004, 7005, 7006, 7007
VIA = {
    "socks5": 7010,
    "password": 7011,
    "socks4a": 7012,
    "http": 7013,
    "in-turn": 7014,
    "chain": 7015,
    "remote": 7016,
    "dead": 7017,
    "wrong": 7018,
}
DEAD6 = "2001:db8:113::dead"

RULES = [
    {"name": "bad-names", "action": "deny", "to": ["*.bad.example", "exactly.example"], "log": "warning"},
    {"name": "bad-net", "action": "deny", "to": ["203.0.113.128/25"]},
    {"name": "closed", "action": "deny", "port": [CLOSED]},
    {"name": "one-bind", "action": "permit", "command": ["bind"], "max_sessions": 1},
    {"name": "one-udp", "action": "permit", "command": ["udp"], "max_sessions": 1},
    {"name": "router", "action": "permit", "to": ["127.0.0.7", "named.example"], "port": [OPEN]},
    {"name": "few", "action": "permit", "port": [LIMITED], "max_sessions": 3, "max_sessions_per_client": 2},
    {"name": "once", "action": "permit", "port": [ONCE], "max_session_rate": 0.01},
    {"name": "confirmed", "action": "permit", "port": [CONFIRMED], "user": ["root"], "ident": True},
    {"name": "unconfirmed", "action": "deny", "port": [CONFIRMED]},
    {"name": "paced", "action": "permit", "port": [PACED], "bandwidth": 500_000},
    {"name": "in-turn", "action": "permit", "port": [VIA["in-turn"]], "via": ["dead", "password"]},
    {"name": "chain", "action": "permit", "port": [VIA["chain"]], "chain": ["socks5", "http"]},
    *({"action": "permit", "port": [VIA[n]], "via": n} for n in VIA if n not in ("in-turn", "chain")),
    {"name": "all", "action": "permit", "from": ["192.168.56.0/24", "fd00:56::/64"]},
]


@pytest.fixture(scope="module")
def secret(lab: Lab) -> Path:
    path = lab.tmp / "secret"
    path.write_text(proxies.PASSWORD + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def gateway(lab: Lab, secret: Path) -> Iterator[Gateway]:
    lab.dns(
        {
            "good.example": [SERVER4],
            "www.bad.example": [SERVER4],
            "exactly.example": [SERVER4],
            "denied.example": ["203.0.113.200"],
            "mixed.example": ["203.0.113.200", SERVER4],
            "rebind.example": ["127.0.0.1"],
            "named.example": ["127.0.0.8"],
            "inside.example": [CLIENT2_4],
            "own.example": [ROUTER_OUT4],
            "nat64.example": ["64:ff9b::7f00:1"],
            "dual.example": [DEAD6, SERVER4],
        }
    )
    hosts = Path("/etc/netns", lab.ns("outside"), "hosts")
    hosts.parent.mkdir(parents=True, exist_ok=True)
    hosts.write_text(f"{SERVER4} upstream.example\n")
    proxies.danted(lab, "stranger", STRANGER4, 1080)
    proxies.microsocks(lab, "stranger", STRANGER4, 1081)
    proxies.tinyproxy(lab, "outside", SERVER4, 8888)
    credentials = {"user": proxies.USER, "password_file": str(secret)}
    upstreams = [
        {"name": "socks5", "kind": "socks5", "address": f"{STRANGER4}:1080"},
        {"name": "password", "kind": "socks5", "address": f"{STRANGER4}:1081", **credentials},
        {"name": "socks4a", "kind": "socks4a", "address": f"{STRANGER4}:1080"},
        {"name": "http", "kind": "http", "address": f"{SERVER4}:8888", **credentials},
        {"name": "remote", "kind": "http", "address": "good.example:8888", "resolve": "remote", **credentials},
        {"name": "dead", "kind": "socks5", "address": f"{STRANGER4}:9"},
        {"name": "wrong", "kind": "http", "address": f"{STRANGER4}:1080"},
    ]
    config = lab.write_config(process={"workers": 1}, transparent={"ports": [TRANSPARENT, CLOSED]})
    text = "".join(f"[[upstream]]\n{_table(upstream)}" for upstream in upstreams)
    config.write_text(config.read_text() + text + "".join(f"[[rule]]\n{_table(rule)}" for rule in RULES))
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def _table(keys: object) -> str:
    assert isinstance(keys, dict)
    return "".join(f"{key} = {str(value).lower() if value is True else repr(value)}\n" for key, value in keys.items())


def target(host: str, port: int) -> bytes:
    for family, kind in ((socket.AF_INET, 1), (socket.AF_INET6, 4)):
        try:
            return bytes([kind]) + socket.inet_pton(family, host) + port.to_bytes(2, "big")
        except OSError:
            continue
    return bytes([3, len(host)]) + host.encode() + port.to_bytes(2, "big")


def ask(lab: Lab, host: str, port: int, role: Role = "inside", command: int = 1) -> tuple[socket.socket, int]:
    """A SOCKS request, CONNECT: the connection and the reply's code."""
    client = lab.connect(role, ROUTER_IN4, 1080, timeout=20)
    client.sendall(GREETING + bytes([5, command, 0]) + target(host, port))
    data = b""
    while len(data) < 6:
        chunk = client.recv(6 - len(data))
        assert chunk, f"closed after {data!r}"
        data += chunk
    client.recv({1: 8, 4: 20}[data[5]] - 2, socket.MSG_WAITALL)
    return client, data[3]


def code(lab: Lab, host: str, port: int) -> int:
    client, reply = ask(lab, host, port)
    client.close()
    return reply


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[dict[int, socket.socket]]:
    """Listeners in `outside`, on all ports of the rules."""
    with ExitStack() as stack:
        ports = (OPEN, LIMITED, ONCE, TRANSPARENT, CLOSED, CONFIRMED, PACED, *VIA.values())
        yield {port: stack.enter_context(lab.listen("outside", "::", port)) for port in ports}


def descriptors(gateway: Gateway) -> int:
    """Open sockets of all its processes."""
    paths = [path for pid in gateway.pids() for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sum("socket" in os.readlink(path) for path in paths if os.path.lexists(path))


def greet(client: socket.socket, listener: socket.socket) -> str:
    """Bytes both ways, the server's first; the address of the peer that the server sees."""
    server, peer = listener.accept()
    with server, client:
        server.sendall(b"220 hello\r\n")
        assert client.recv(11, socket.MSG_WAITALL) == b"220 hello\r\n"
        client.sendall(b"USER")
        assert server.recv(4, socket.MSG_WAITALL) == b"USER"
    return str(peer[0]).removeprefix("::ffff:")


@pytest.mark.parametrize("host", [SERVER4, SERVER6, "good.example", "GOOD.example.", "mixed.example"])
def test_what_is_permitted(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket], host: str) -> None:
    client, reply = ask(lab, host, OPEN)
    assert reply == 0
    assert gateway.admin("flows")[0]["rule"] == "all"
    greet(client, servers[OPEN])


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        ("www.bad.example", "bad-names"),
        ("WWW.BAD.EXAMPLE.", "bad-names"),
        ("exactly.example", "bad-names"),
        ("203.0.113.200", "bad-net"),
        ("denied.example", "bad-net"),  # after resolution
        ("64:ff9b::cb00:71c8", "bad-net"),
        ("2002:cb00:71c8::1", "bad-net"),
        ("rebind.example", "loopback"),
        ("localhost", "loopback"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("inside.example", "inside"),
        ("own.example", "own"),
        ("nat64.example", "loopback"),
    ],
)
def test_what_is_not_allowed(
    lab: Lab, gateway: Gateway, servers: dict[int, socket.socket], host: str, rule: str
) -> None:
    seen = len(gateway.log_lines())
    assert code(lab, host, OPEN) == 2
    assert f"rule={rule}" in gateway.wait_for_log("event=socks.denied", after=seen)


def test_a_rule_with_a_log_level_says_so(lab: Lab, gateway: Gateway) -> None:
    seen = len(gateway.log_lines())
    assert code(lab, "www.bad.example", OPEN) == 2
    assert "rule=bad-names" in gateway.wait_for_log("level=warning .*event=rule.deny", after=seen)


@pytest.mark.parametrize("host", ["127.0.0.7", "named.example"])
def test_a_rule_that_names_an_address_permits_it(lab: Lab, gateway: Gateway, host: str) -> None:
    with lab.listen("router", "0.0.0.0", OPEN) as listener:
        client, reply = ask(lab, host, OPEN)
        assert reply == 0
        greet(client, listener)


def first_byte(lab: Lab, port: int) -> bytes:
    with lab.connect("inside", SERVER4, port) as client:
        return client.recv(1)


def test_rules_hold_for_the_transparent_front(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket]) -> None:
    with lab.connect("inside", SERVER4, TRANSPARENT) as client:
        greet(client, servers[TRANSPARENT])
    seen = len(gateway.log_lines())
    with pytest.raises(ConnectionResetError):  # while it still connects, or after
        first_byte(lab, CLOSED)
    assert "rule=closed" in gateway.wait_for_log("event=transparent.failed", after=seen)


def test_sessions_are_limited_and_given_back(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket]) -> None:
    for _ in range(3):  # nothing leaks
        with ExitStack() as stack:
            for role, expected in (("inside", 0), ("inside", 0), ("inside", 2), ("client2", 0), ("client2", 2)):
                client, reply = ask(lab, SERVER4, LIMITED, role)  # type: ignore[arg-type]
                stack.enter_context(client)
                assert reply == expected
                if reply == 0:
                    stack.enter_context(servers[LIMITED].accept()[0])
            assert len(gateway.admin("flows")) == 3
        lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    assert code(lab, "203.0.113.99", LIMITED) == 4  # what fails is given back too
    assert code(lab, "203.0.113.99", LIMITED) == 4
    assert code(lab, "203.0.113.99", LIMITED) == 4


@pytest.mark.parametrize(("command", "host"), [(2, SERVER4), (3, "0.0.0.0")], ids=["bind", "udp"])
def test_other_commands_count_too(lab: Lab, gateway: Gateway, command: int, host: str) -> None:
    for _ in range(3):
        first, reply = ask(lab, host, 0, command=command)
        assert reply == 0
        other, reply = ask(lab, host, 0, command=command)
        assert reply == 2
        other.close()
        seen = len(gateway.log_lines())
        first.close()
        gateway.wait_for_log("event=pinhole.close|event=flow.end", after=seen)


def test_new_sessions_are_limited(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket]) -> None:
    client, reply = ask(lab, SERVER4, ONCE)
    assert reply == 0
    greet(client, servers[ONCE])
    assert code(lab, SERVER4, ONCE) == 2


@pytest.mark.parametrize("host", [SERVER4, "good.example"])
def test_bandwidth(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket], host: str) -> None:
    client, reply = ask(lab, host, PACED)
    assert reply == 0
    server, _ = servers[PACED].accept()
    began = time.monotonic()
    sending = threading.Thread(target=server.sendall, args=(bytes(1_000_000),))
    sending.start()
    with client, server, client.makefile("rb") as stream:
        assert len(stream.read(1_000_000)) == 1_000_000
        sending.join()
    assert 1 < time.monotonic() - began < 5


def test_a_dead_path_costs_no_second(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket]) -> None:
    """The name has an IPv6 address that swallows everything, and it comes first."""
    lab.run("outside", ["ip", "-6", "addr", "add", f"{DEAD6}/128", "dev", "eth0", "nodad"])
    lab.run("outside", ["ip6tables", "-I", "INPUT", "-d", DEAD6, "-j", "DROP"])
    try:
        for _ in range(3):
            open_before = descriptors(gateway)
            began = time.monotonic()
            client, reply = ask(lab, "dual.example", OPEN)
            took = time.monotonic() - began
            assert reply == 0
            assert 0.2 < took < 1
            greet(client, servers[OPEN])
            lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flow to end")
        assert descriptors(gateway) <= open_before  # the attempt that lost is closed
    finally:
        lab.run("outside", ["ip6tables", "-D", "INPUT", "1"])
        lab.run("outside", ["ip", "-6", "addr", "del", f"{DEAD6}/128", "dev", "eth0"])


def test_a_rule_asks_ident(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket]) -> None:
    seen = len(gateway.log_lines())
    assert code(lab, SERVER4, CONFIRMED) == 2  # nobody answers
    assert "rule=unconfirmed" in gateway.wait_for_log("event=socks.denied", after=seen)
    config = lab.tmp / "oidentd.conf"
    config.write_text("")
    argv: list[str | Path] = [unpacked("oidentd", "usr/sbin/oidentd"), "-i", "-S", "-u", "0", "-g", "0", "-C", config]
    oidentd = lab.popen("inside", argv)
    try:
        lab.wait_for(lambda: _listens(oidentd, 113), 5, "oidentd")
        client, reply = ask(lab, SERVER4, CONFIRMED)
        assert reply == 0
        assert (gateway.admin("flows")[0]["rule"], gateway.admin("flows")[0]["user"]) == ("confirmed", "root")
        greet(client, servers[CONFIRMED])
        client, reply = ask(lab, SERVER4, OPEN)  # and no other rule does
        assert gateway.admin("flows")[0]["user"] is None
        greet(client, servers[OPEN])
    finally:
        lab.stop(oidentd)


@pytest.mark.parametrize(
    ("way", "peer"),
    [
        ("socks5", STRANGER4),
        ("password", STRANGER4),
        ("socks4a", STRANGER4),
        ("http", SERVER4),
        ("in-turn", STRANGER4),
        ("chain", SERVER4),
    ],
)
@pytest.mark.parametrize("host", [SERVER4, "good.example"])
def test_through_real_proxies(
    lab: Lab, gateway: Gateway, servers: dict[int, socket.socket], way: str, peer: str, host: str
) -> None:
    client, reply = ask(lab, host, VIA[way])
    assert reply == 0
    assert gateway.admin("flows")[0]["server"] == f"{SERVER4}:{VIA[way]}"
    assert greet(client, servers[VIA[way]]) == peer


def test_an_upstream_resolves_the_name(lab: Lab, gateway: Gateway, servers: dict[int, socket.socket]) -> None:
    """Only the upstream's own hosts file knows it."""
    client, reply = ask(lab, "Upstream.example", VIA["remote"])
    assert reply == 0
    assert greet(client, servers[VIA["remote"]]) == SERVER4
    assert code(lab, "upstream.example", OPEN) == 4
    assert code(lab, "no\\name.example", VIA["remote"]) == 4


@pytest.mark.parametrize(("way", "expected"), [("dead", 1), ("wrong", 1)])
def test_an_upstream_that_fails(lab: Lab, gateway: Gateway, way: str, expected: int) -> None:
    assert code(lab, SERVER4, VIA[way]) == expected


def test_what_an_upstream_says_of_the_server_is_told(lab: Lab, gateway: Gateway) -> None:
    with lab.listen("stranger", STRANGER4, 0) as unused:
        del unused
    assert code(lab, STRANGER4, VIA["socks5"]) == 5  # nobody listens there


def test_explain_says_what_the_gateway_does(lab: Lab, gateway: Gateway) -> None:
    said = gateway.algate("check", "--explain", f"connect 192.168.56.10 -> denied.example:{OPEN}").stdout
    assert "deny" in said
    assert "by bad-net" in said
    line = next(number for number, text in enumerate(gateway.config.read_text().splitlines(), 1) if "'bad-net'" in text)
    assert f"{gateway.config}:{line - 1}" in said
    assert "not bad-names" in said
