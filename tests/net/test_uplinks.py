"""What the NAT does, decides: the address of a flow is asked from the kernel, whatever rules have made it so.

Each set-up of a router serves the same: SIP over UDP with media both ways, FTP active and passive with a server that
takes data from the address of the control connection only, and SOCKS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.lab import uplinks
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_IN4, ROUTER_OUT4, SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer
from tests.lab.uplinks import FAR4, FAR6, SECOND4, SECOND6
from tests.net.socks_wire import ask5
from tests.net.test_sip import Media, pinholes
from tests.net.test_sip_addresses import Server, offered, sdp


class Setup(NamedTuple):
    """A router. `prepare` makes it so; `seen`: as what the client is seen by `server`, a set of addresses; IPv6 too."""

    prepare: Callable[[Lab], None]
    server: str
    seen: frozenset[str]
    server6: str | None = None
    seen6: frozenset[str] = frozenset()
    client: str = CLIENT4
    inside: tuple[str, ...] = ("192.168.56.0/24", "fd00:56::/64")
    nat4: bool = True
    nat6: bool = True


def _two(how: Callable[[Lab], None]) -> Callable[[Lab], None]:
    def prepare(lab: Lab) -> None:
        uplinks.add(lab)
        how(lab)

    return prepare


def _snat(*rules: str) -> Callable[[Lab], None]:
    """Rules before the lab's own MASQUERADE, and addresses that the outside finds at the router."""

    def prepare(lab: Lab) -> None:
        for rule in rules:
            lab.run("router", ["iptables", "-t", "nat", "-I", "POSTROUTING", "1", *rule.split()])
        lab.run("outside", ["ip", "route", "add", "198.51.100.64/26", "via", ROUTER_OUT4])

    return prepare


def _secondary(lab: Lab) -> None:
    lab.run("router", ["ip", "address", "add", "203.0.113.3/24", "dev", "eth0"])
    _snat("-s 192.168.56.0/24 -o eth0 -j SNAT --to-source 203.0.113.3")(lab)


def _renumber(network: str, router: str, client: str) -> Callable[[Lab], None]:
    """Another inside network, whatever its addresses look like."""

    def prepare(lab: Lab) -> None:
        lab.run("router", ["ip", "address", "add", f"{router}/24", "dev", "eth1"])
        lab.run("inside", ["ip", "address", "add", f"{client}/24", "dev", "eth0"])
        lab.run("inside", ["ip", "route", "replace", "default", "via", router, "src", client])

    return prepare


def _routed(lab: Lab) -> None:
    lab.run("outside", ["ip", "route", "add", "192.168.56.0/24", "via", ROUTER_OUT4])


def _both(*steps: Callable[[Lab], None]) -> Callable[[Lab], None]:
    def prepare(lab: Lab) -> None:
        for step in steps:
            step(lab)

    return prepare


def _route_to(network: str) -> Callable[[Lab], None]:
    def prepare(lab: Lab) -> None:
        lab.run("outside", ["ip", "route", "add", network, "via", ROUTER_OUT4])

    return prepare


PLAIN = 7070
TEXT = "by the same address\n" * 10_000
SECOND = frozenset({SECOND4})
PUBLIC_LOOKING, CLASS_A = "192.169.16.10", "11.12.13.10"
SETUPS = {
    "rule-from": Setup(_two(uplinks.by_source), FAR4, SECOND, FAR6, frozenset({SECOND6})),
    "rule-mark": Setup(_two(uplinks.by_mark), FAR4, SECOND, FAR6, frozenset({SECOND6})),
    "bare-mark": Setup(_two(uplinks.by_bare_mark), FAR4, SECOND, FAR6, frozenset({SECOND6})),
    "snat-secondary": Setup(_secondary, SERVER4, frozenset({"203.0.113.3"})),
    "snat-foreign": Setup(
        _snat("-s 192.168.56.0/24 -o eth0 -j SNAT --to-source 198.51.100.70"), SERVER4, frozenset({"198.51.100.70"})
    ),
    "snat-pool": Setup(
        _snat("-s 192.168.56.0/24 -o eth0 -j SNAT --to-source 198.51.100.80-198.51.100.95"),
        SERVER4,
        frozenset(f"198.51.100.{last}" for last in range(80, 96)),
    ),
    "looks-public": Setup(
        _renumber("192.169.16.0/24", "192.169.16.1", PUBLIC_LOOKING),
        SERVER4, frozenset({ROUTER_OUT4}), client=PUBLIC_LOOKING, inside=("192.169.16.0/24",),
    ),
    "class-a": Setup(
        _renumber("11.12.13.0/24", "11.12.13.1", CLASS_A),
        SERVER4, frozenset({ROUTER_OUT4}), client=CLASS_A, inside=("11.12.13.0/24",),
    ),
    "shared-space": Setup(
        _renumber("100.72.16.0/24", "100.72.16.1", "100.72.16.10"),
        SERVER4, frozenset({ROUTER_OUT4}), client="100.72.16.10", inside=("100.72.16.0/24",),
    ),
    "borrowed": Setup(
        _renumber("25.12.13.0/24", "25.12.13.1", "25.12.13.10"),
        SERVER4, frozenset({ROUTER_OUT4}), client="25.12.13.10", inside=("25.12.13.0/24",),
    ),
    "snat-random": Setup(
        _snat("-s 192.168.56.0/24 -o eth0 -j SNAT --to-source 198.51.100.70 --random-fully"),
        SERVER4, frozenset({"198.51.100.70"}),
    ),
    "routed": Setup(
        _routed, SERVER4, frozenset({CLIENT4}), SERVER6, frozenset({CLIENT6}), nat4=False, nat6=False
    ),
    "routed-public": Setup(
        _both(_renumber("192.169.16.0/24", "192.169.16.1", PUBLIC_LOOKING), _route_to("192.169.16.0/24")),
        SERVER4, frozenset({PUBLIC_LOOKING}), client=PUBLIC_LOOKING, inside=("192.169.16.0/24",), nat4=False,
    ),
}  # fmt: skip


class Router(NamedTuple):
    """A running one."""

    lab: Lab
    gateway: Gateway
    setup: Setup


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def router(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    setup = SETUPS[request.param]
    with Lab(logs=tmp_path_factory.mktemp("lab"), nat4=setup.nat4, nat6=setup.nat6) as lab:
        setup.prepare(lab)
        uplinks.rebase(lab)
        before = lab.run("router", ["ip", "rule"]).stdout
        config = lab.write_config(
            network={"inside": list(setup.inside)}, process={"workers": 1}, transparent={"ports": [PLAIN]}
        )
        gateway = lab.start_gateway(config)
        yield Router(lab, gateway, setup)
        assert gateway.stop() == 0, lab.tail_of_logs()
        assert lab.leftovers() == []
        assert lab.run("router", ["ip", "rule"]).stdout == before


def test_the_control_connection(router: Router) -> None:
    """The server sees it as it would see the client's own."""
    setup, lab = router.setup, router.lab
    for client, host, seen in (
        (setup.client, setup.server, setup.seen), (CLIENT6, setup.server6, setup.seen6)
    ):  # fmt: skip
        if host is None:
            continue
        anywhere = "::" if ":" in host else "0.0.0.0"
        with lab.listen("outside", anywhere, 5060) as listener, lab.connect("inside", host, 5060) as sock:
            connection, address = listener.accept()
            assert address[0] in seen
            assert sock.getsockname()[0] == client
            connection.sendall(b"not SIP\r\n")
            sock.settimeout(5)
            assert sock.recv(64) == b"not SIP\r\n"
            sock.sendall(b"neither\r\n")
            connection.settimeout(5)
            assert connection.recv(64) == b"neither\r\n"
            connection.close()


def test_a_port_without_a_module(router: Router) -> None:
    """What is only relayed goes the client's way too, where there are several."""
    setup, lab = router.setup, router.lab
    if setup.server != FAR4:
        pytest.skip("there is one way only")
    with lab.listen("outside", "0.0.0.0", PLAIN) as listener, lab.connect("inside", FAR4, PLAIN) as sock:
        connection, address = listener.accept()
        assert address[0] in setup.seen
        connection.sendall(b"hello")
        sock.settimeout(5)
        assert sock.recv(64) == b"hello"
        connection.close()


def test_a_refusal_is_a_refusal(router: Router) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - a reset, before or after the handshake
        router.lab.connect("inside", router.setup.server, 5060, timeout=5).recv(1)


def test_socks(router: Router) -> None:
    """The gateway's own connections are its own."""
    if router.setup.server == FAR4 or router.setup.client != CLIENT4 or not router.setup.nat4:
        pytest.skip("the way of the router's own packets is another matter")
    lab = router.lab
    with lab.listen("outside", SERVER4, 7001) as listener, lab.connect("inside", ROUTER_IN4, 1080) as sock:
        assert ask5(sock, SERVER4, 7001)[0] == 0
        assert listener.accept()[1][0] == ROUTER_OUT4


class _Server(Server):
    patience = 5.0

    def __init__(self, lab: Lab, address: str) -> None:
        self.address = address
        self.end = Media(lab, "outside", address, 5060)

    def receive(self) -> tuple[str, str]:
        """A request as it came, answered 200, and from where."""
        self.end.socket.settimeout(self.patience)
        data, source = self.end.socket.recvfrom(8192)
        text = data.decode()
        kept = ("Via:", "From:", "Call-ID:", "CSeq:", "Contact:")
        lines = [line for line in text.splitlines() if line.startswith(kept)]
        to = next(line for line in text.splitlines() if line.startswith("To:"))
        lines.append(to if "tag=" in to else f"{to};tag=far")
        body = sdp(self.address, 9100) if "m=audio" in text else ""
        kind = ["Content-Type: application/sdp"] if body else []
        answer = ["SIP/2.0 200 OK", *lines, *kind, f"Content-Length: {len(body)}", "", body]
        if not text.startswith("ACK"):
            self.end.send(source, "\r\n".join(answer).encode())
        return text, source[0]


def _ask(
    phone: Media, host: str, far: _Server, method: str, number: int, extra: tuple[str, ...] = (), body: str = ""
) -> tuple[str, str]:
    """A request of the phone as the server read it, and from where it came; the phone gets its answer."""
    host = f"[{host}]" if ":" in host else host
    port = phone.socket.getsockname()[1]
    there = f"[{far.address}]" if ":" in far.address else far.address
    uri = "sip:example.test" if method == "REGISTER" else f"sip:bob@{there}"
    tag = ";tag=far" if method in ("ACK", "BYE") else ""
    lines = [
        f"{method} {uri} SIP/2.0",
        f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{method}{number}",
        "From: <sip:ann@example.test>;tag=near",
        f"To: <sip:{'ann' if method == 'REGISTER' else 'bob'}@example.test>{tag}",
        f"Call-ID: {'registration' if method == 'REGISTER' else 'call'}-{port}",
        f"CSeq: {number} {method}",
        f"Contact: <sip:ann@{host}:{port}>",
        *extra,
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
        "",
        body,
    ]
    phone.send((far.address, 5060), "\r\n".join(lines).encode())
    got = far.receive()
    if method != "ACK":
        answer = phone.hears(5)
        assert answer is not None
        assert lines[1].encode() in answer
    return got


def test_sip(router: Router) -> None:
    """A registration and a call with media both ways; everything shows and uses the address that the NAT gives."""
    _call(router, router.setup.client, router.setup.server, router.setup.seen)


def test_sip6(router: Router) -> None:
    if router.setup.server6 is None:
        pytest.skip("this router is about IPv4")
    _call(router, CLIENT6, router.setup.server6, router.setup.seen6)


def _call(
    router: Router, client: str, server: str, seen: frozenset[str], ports: tuple[int, int] = (5060, 4000)
) -> None:
    """`ports`: those of the phone, for SIP and for media."""
    lab = router.lab
    far = _Server(lab, server)
    phone, media = (Media(lab, "inside", client, port) for port in ports)
    far_media = Media(lab, "outside", server, 9100)
    try:
        text, source = _ask(phone, client, far, "REGISTER", 1, ("Expires: 600",))
        assert source in seen
        shown = re.search(r"Contact: <sip:ann@\[?([0-9a-f.:]+?)\]?:\d+>", text)
        assert shown
        assert shown[1] == source
        text, came_from = _ask(phone, client, far, "INVITE", 1, body=sdp(client, ports[1]))
        assert came_from == source
        public = offered(text)
        assert public[0] == source
        _ask(phone, client, far, "ACK", 1)
        far_media.send(public, b"from outside")
        assert media.hears(3) == b"from outside"
        media.send((server, 9100), b"from inside")
        far_media.socket.settimeout(3)
        data, sender = far_media.socket.recvfrom(64)
        assert (data, sender[:2]) == (b"from inside", public)
        _ask(phone, client, far, "BYE", 2)
        _ask(phone, client, far, "REGISTER", 2, ("Expires: 0",))
    finally:
        for end in (far.end, phone, media, far_media):
            end.close()
    lab.wait_for(lambda: not pinholes(router.gateway, "sip.rtp"), 10, "the media's pinholes to close")


@pytest.fixture(scope="module", params=["vsftpd", "pure_ftpd", "proftpd"])
def server(request: pytest.FixtureRequest, router: Router) -> Iterator[FtpServer]:
    # Not from port 20: where pure-ftpd has used it before, vsftpd's connections end early, with no gateway between too.
    options = {"connect_from_port_20": "NO"} if request.param == "vsftpd" else {}
    server: FtpServer = getattr(router.lab, request.param)(**options)
    (server.root / "pub/file").write_text(TEXT)
    yield server
    server.stop()


def _curl(router: Router, server: FtpServer, host: str, active: bool) -> str:
    mode = ("--ftp-port", "-") if active else ()
    bare = host.strip("[]")
    url = server.url("pub/file", 6 if ":" in bare else 4).replace(SERVER6 if ":" in bare else SERVER4, bare)
    return router.lab.run("inside", ["curl", "-sS", "--max-time", "20", *mode, url]).stdout


@pytest.mark.parametrize("active", [True, False], ids=["active", "passive"])
def test_ftp(router: Router, server: FtpServer, active: bool) -> None:
    """The servers take data only from where the control connection comes from, and connect only to there."""
    assert _curl(router, server, router.setup.server, active) == TEXT


@pytest.mark.parametrize("active", [True, False], ids=["active", "passive"])
def test_ftp6(router: Router, server: FtpServer, active: bool) -> None:
    if router.setup.server6 is None:
        pytest.skip("this router is about IPv4")
    assert _curl(router, server, router.setup.server6, active) == TEXT
