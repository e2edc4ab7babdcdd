"""What a module asks for over a router, by each command of `alg.api` for which no module of ours asks yet: mappings,
exchanges, calls of PPTP, and the proof of a port. The module is tests/modules/asking_alg.py, the packets are real."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alg.address import Endpoint
from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT2_4,
    CLIENT4,
    CLIENT6,
    ROUTER_IN4,
    ROUTER_IN6,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    STRANGER6,
    Lab,
    Role,
)
from tests.net.test_broker_gre import heard, is_silent, packet

MODULE = Path(__file__).parents[1] / "modules" / "asking_alg.py"
PORT = 7099


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    """A gateway with the module installed, on a router that forwards nothing else; a server of the protocol inside is
    published."""
    site = strict_lab.tmp / "asking"
    info = site / "asking-1.0.dist-info"
    info.mkdir(parents=True)
    for folder in (strict_lab.tmp, site, info):
        folder.chmod(0o755)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: asking\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[algate.alg]\nasking = asking_alg:AskingModule\n")
    (site / "asking_alg.py").write_text(MODULE.read_text())
    publish = [
        {"outside": f"{ROUTER_OUT4}:{PORT}", "inside": f"{CLIENT4}:{PORT}"},
        {"outside": f"[{ROUTER_OUT6}]:{PORT}", "inside": f"[{CLIENT6}]:{PORT}"},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"asking": {"ports": [PORT]}}, publish=publish))
        yield gateway
        assert gateway.stop() == 0, strict_lab.tail_of_logs()


class Session:
    """A connection of the protocol, between two ends that the test holds."""

    def __init__(self, lab: Lab, role: Role, server_role: Role, host: str, listen: str) -> None:
        self._lab = lab
        with lab.listen(server_role, listen, PORT) as listener:
            self.client = lab.connect(role, host, PORT)
            self.server, _ = listener.accept()
        self._answers = self.client.makefile("rb")
        self._lines = self.server.makefile("rb")
        self.server.settimeout(10)
        self._refs = iter(range(1, 1000))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._answers, self._lines, self.client, self.server):
            end.close()

    def say(self, name: str, **fields: Any) -> None:
        """Have the module give a command. Returns when the server has read what goes behind it."""
        line = json.dumps([name, fields]).encode() + b"\n"
        self.client.sendall(line)
        assert self._lines.readline() == line, self._lab.tail_of_logs()

    def ask(self, name: str, **fields: Any) -> tuple[int, list[str]]:
        """The same with a number of its own; also the words of the answer."""
        ref = next(self._refs)
        self.say(name, ref=ref, **fields)
        return ref, self.answer(ref)

    def answer(self, ref: int) -> list[str]:
        word, number, *rest = self._answers.readline().decode().split()
        assert int(number) == ref
        return [word, *rest]

    def opened(self, name: str, **fields: Any) -> tuple[int, Endpoint, str]:
        """Number, public endpoint, and inner one as text."""
        ref, answer = self.ask(name, **fields)
        assert answer[0] == "opened", f"{answer} {self._lab.tail_of_logs()}"
        return ref, endpoint(answer[1]), answer[2]


def endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))


def udp(lab: Lab, role: Role, host: str, port: int = 0) -> socket.socket:
    with lab.enter(role):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, port))
    sock.settimeout(5)
    return sock


def gets(receiver: socket.socket, sender: socket.socket, to: Endpoint) -> Endpoint:
    """A datagram arrives; where it seems to come from."""
    sender.sendto(b"hello", (to.host, to.port))
    data, source = receiver.recvfrom(100)
    assert data == b"hello"
    return Endpoint(source[0], source[1])


def gets_nothing(receiver: socket.socket, sender: socket.socket, to: Endpoint) -> bool:
    receiver.settimeout(0.3)
    try:
        gets(receiver, sender, to)
    except TimeoutError:
        return True
    finally:
        receiver.settimeout(5)
    return False


FAMILIES = pytest.mark.parametrize(
    ("client", "server", "stranger", "public", "inner", "size"),
    [
        (CLIENT4, SERVER4, STRANGER4, ROUTER_OUT4, ROUTER_IN4, 32),
        (CLIENT6, SERVER6, STRANGER6, ROUTER_OUT6, ROUTER_IN6, 128),
    ],
    ids=["ipv4", "ipv6"],
)


@FAMILIES
def test_a_mapping(
    strict_lab: Lab, gateway: Gateway, client: str, server: str, stranger: str, public: str, inner: str, size: int
) -> None:
    lab = strict_lab
    fields: dict[str, Any] = {"ttl": 60.0, "reason": "asking.map"}
    with (
        Session(lab, "inside", "outside", server, server) as session,
        lab.listen("inside", client, 7100) as listener,
        udp(lab, "inside", client, 7100) as phone,
        udp(lab, "stranger", stranger) as far,
    ):
        ref, where, _ = session.opened(
            "OpenMapping",
            target=[client, 7100],
            transports=["tcp", "udp"],
            peers=None,
            port=51413,
            exact=True,
            **fields,
        )
        assert where == Endpoint(public, 51413)
        for role in ("outside", "stranger"):
            lab.connect(role, where.host, where.port).close()
            listener.accept()[0].close()
        gets(phone, far, where)
        session.say("UpdateMapping", ref=ref, peers=[f"{server}/{size}"], ttl=None)
        lab.wait_for(lambda: gets_nothing(phone, far, where), 5, "the update")
        # The line behind an update that lets somebody in comes when that is done.
        session.say("UpdateMapping", ref=ref, peers=[f"{stranger}/{size}"], ttl=None)
        gets(phone, far, where)
        (row,) = gateway.admin("pinholes")
        assert (row["kind"], row["reason"], row["client"]) == ("mapping", "asking.map", client)
        asked: dict[str, Any] = {"transports": ["udp"], "peers": None, "port": 51413, "exact": True, **fields}
        _, again = session.ask("OpenMapping", target=[client, 7101], **asked)
        assert again == ["refused", "wish"]
        _, other = session.ask("OpenMapping", target=[CLIENT2_4, 7100], transports=["udp"], peers=None, **fields)
        assert other == ["refused", "target"]
        _, neither = session.ask("OpenMapping", target=[client, 7102], transports=["sctp"], peers=None, **fields)
        assert neither == ["refused", "transport"]
        _, exchange = session.ask("OpenExchange", client=[client, 7100], server=None, **fields)
        assert exchange == ["refused", "target"]  # this server is not published
        session.say("ClosePinhole", ref=ref)
        lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the end of the mapping")
        session.say("UpdateMapping", ref=ref, peers=None, ttl=60.0)
        assert session.answer(ref) == ["refused", "lease"]


@FAMILIES
def test_an_exchange(
    strict_lab: Lab, gateway: Gateway, client: str, server: str, stranger: str, public: str, inner: str, size: int
) -> None:
    """The server is the host inside that is the client elsewhere."""
    lab = strict_lab
    with (
        Session(lab, "outside", "inside", public, client) as session,
        udp(lab, "inside", client, 7200) as camera,
        udp(lab, "inside", client, 7201) as control,
        udp(lab, "outside", server, 5000) as viewer,
        udp(lab, "outside", server, 5001) as viewer_control,
        udp(lab, "stranger", stranger, 5000) as far,
    ):
        fields: dict[str, Any] = {"ttl": 60.0, "reason": "asking.media"}
        ref, outer, text = session.opened(
            "OpenExchange", client=[server, 5000], server=None, client_second=5001, **fields
        )
        within = endpoint(text)
        assert (outer.host, within.host) == (public, inner)
        assert gets_nothing(camera, viewer, outer)  # where it leads is not known yet
        session.say("UpdateExchange", ref=ref, server=[client, 7200], server_second=7201, ttl=None)
        assert gets(camera, viewer, outer) == within
        assert gets(viewer, camera, within) == outer
        assert gets(viewer_control, control, Endpoint(within.host, within.port + 1)) == Endpoint(public, outer.port + 1)
        assert gets(control, viewer_control, Endpoint(public, outer.port + 1)).port == within.port + 1
        assert gets_nothing(camera, far, outer)
        _, third = session.ask("OpenExchange", client=[stranger, 5000], server=None, **fields)
        assert third == ["refused", "target"]
        _, third = session.ask("OpenExchange", client=[server, 5002], server=[CLIENT2_4, 7200], **fields)
        assert third == ["refused", "target"]
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the end of the exchange with its flow")


@FAMILIES
def test_a_connection_that_is_read(
    strict_lab: Lab, gateway: Gateway, client: str, server: str, stranger: str, public: str, inner: str, size: int
) -> None:
    lab = strict_lab
    fields: dict[str, Any] = {"peer": server, "transport": "tcp", "ttl": 60.0, "read": True}
    with (
        Session(lab, "inside", "outside", server, server) as session,
        lab.listen("inside", client, 7400) as listener,
    ):
        _, where, _ = session.opened("OpenPinhole", target=[client, 7400], reason="asking.read", **fields)
        assert where.host == public
        with pytest.raises(OSError, match=r"timed out|refused|reset"):
            lab.connect("stranger", where.host, where.port, timeout=0.5).recv(1)
        with lab.connect("outside", where.host, where.port) as near, listener.accept()[0] as far:
            near.sendall(b"I am read")
            far.settimeout(10)
            assert far.recv(100) == b"it is am read"
            # What it says is read as well: it may open something, with its own connection's ends.
            far.sendall(
                json.dumps(["Probe", {"ref": 1, "target": [server, 7], "send": "", "expect": ""}]).encode() + b"\n"
            )
            assert near.recv(200).startswith(b'["Probe"')
            assert far.recv(100) == b"refused 1 rule\n"
            (flow,) = (row for row in gateway.admin("flows") if row["module"] and row["front"] == "pinhole")
            assert flow["module"] == "asking"
        _, refused = session.ask(
            "OpenPinhole", target=[client, 7400], reason="asking.read", **{**fields, "transport": "udp"}
        )
        assert refused == ["refused", "kind"]
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the end")


def test_a_call_of_pptp(strict_lab: Lab, gateway: Gateway) -> None:
    lab = strict_lab

    def raw(role: Role, host: str) -> socket.socket:
        with lab.enter(role):
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
            sock.bind((host, 0))
        return sock

    fields: dict[str, Any] = {"ttl": 60.0, "reason": "asking.call"}
    with (
        raw("inside", CLIENT4) as near,
        raw("client2", CLIENT2_4) as beside,
        raw("outside", SERVER4) as server,
        raw("stranger", STRANGER4) as stranger,
        Session(lab, "inside", "outside", SERVER4, SERVER4) as session,
    ):
        ref, first, _ = session.opened("OpenGre", call_id=7, **fields)
        assert first == Endpoint(ROUTER_OUT4, 7)
        with Session(lab, "client2", "outside", SERVER4, SERVER4) as other:
            _, second, _ = other.opened("OpenGre", call_id=7, **fields)
            assert second.port != 7
            for public, client in ((first, near), (second, beside)):
                server.sendto(packet(public.port, b"down"), (ROUTER_OUT4, 0))
                assert heard(client) == (SERVER4, 7, b"down")
                stranger.sendto(packet(public.port, b"no"), (ROUTER_OUT4, 0))
            near.sendto(packet(40, b"early"), (SERVER4, 0))
            assert is_silent(near, beside, server)
            session.say("UpdateGre", ref=ref, server_call_id=40, ttl=None)
            near.sendto(packet(40, b"up"), (SERVER4, 0))
            assert heard(server) == (ROUTER_OUT4, 40, b"up")
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the end of the calls with their flows")
    with Session(lab, "outside", "inside", ROUTER_OUT4, CLIENT4) as session:
        assert session.ask("OpenGre", call_id=7, **fields)[1] == ["refused", "target"]  # of a published server


@FAMILIES
def test_the_proof_of_a_port(
    strict_lab: Lab, gateway: Gateway, client: str, server: str, stranger: str, public: str, inner: str, size: int
) -> None:
    lab = strict_lab
    with (
        Session(lab, "inside", "outside", server, server) as session,
        lab.listen("inside", client, 7300) as listener,
    ):
        asked: dict[str, Any] = {"target": [client, 7300], "send": "who?", "expect": "it is me"}

        def probe(answer: bytes | None, **changes: Any) -> list[str]:
            ref = next(session._refs)
            session.say("Probe", ref=ref, **{**asked, **changes})
            if answer is not None:
                sock, (host, *_) = listener.accept()
                with sock:
                    assert host == inner  # from this host itself
                    if changes.get("expect") != "":
                        assert sock.recv(100) == b"who?"
                    sock.sendall(answer)
                    return session.answer(ref)
            return session.answer(ref)

        assert probe(b"it is me, and more") == ["opened", f"{Endpoint(client, 7300)}", "None"]
        assert probe(b"it was me") == ["refused", "probe"]
        assert probe(b"", expect="") == ["opened", f"{Endpoint(client, 7300)}", "None"]
        assert probe(None, target=[client, 7301]) == ["refused", "probe"]  # nothing listens
        assert probe(None, target=[server, PORT]) == ["refused", "rule"]  # no rule may permit that
        assert probe(None, send="x" * 513) == ["refused", "probe"]
        assert gateway.admin("pinholes") == []
