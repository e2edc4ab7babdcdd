"""What the NAT of a router does to sockets that nobody asked a port for is the same with algate and without; and what a
mapping makes of it (RFC 4787, docs/how-to/nat-types.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab, Role
from tests.lab.sip_peers import Kamailio, sipp, succeeds
from tests.lab.udp import Udp
from tests.net.pcp_client import PcpClient

PORT = 31000
Seen = tuple[tuple[str, int], tuple[str, int]]


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(
        lab.write_config(network={"outside": ROUTER_OUT4}, portmap={"protocols": ["pcp"]}, process={"workers": 1})
    )
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def seen(lab: Lab, role: Role, host: str, port: int = PORT) -> Seen:
    """From where two hosts outside see one socket."""
    with (
        Udp(lab, role, host, port) as near,
        Udp(lab, "outside", SERVER4, 9000) as server,
        Udp(lab, "stranger", STRANGER4, 9000) as stranger,
    ):
        found = []
        for far in (server, stranger):
            near.send(b"who am I", far.sock.getsockname()[:2])
            found.append(far.receive()[1])
        return found[0], found[1]


def may_answer(lab: Lab, host: str, port: int) -> tuple[bool, bool]:
    """Whether the host that was sent to may answer, and whether another one may."""
    with (
        Udp(lab, "inside", host, port) as near,
        Udp(lab, "outside", SERVER4) as server,
        Udp(lab, "stranger", STRANGER4) as stranger,
    ):
        near.send(b"who am I", server.sock.getsockname()[:2])
        public = server.receive()[1]
        server.send(b"you", public)
        answered = near.receive()[0] == b"you"
        stranger.send(b"I", public)
        return answered, not near.is_silent()


def test_plain_sockets_are_as_without_the_gateway(lab: Lab) -> None:
    def behaviour() -> tuple[Seen, bool, tuple[bool, bool]]:
        mine, others = seen(lab, "inside", CLIENT4), seen(lab, "client2", CLIENT2_4)
        return mine, others[0] != mine[0], may_answer(lab, CLIENT4, PORT + 1)

    before = behaviour()
    assert before == (((ROUTER_OUT4, PORT), (ROUTER_OUT4, PORT)), True, (True, False))  # moderate
    gateway = lab.start_gateway(lab.write_config(portmap={"protocols": ["pcp"]}, process={"workers": 1}))
    try:
        assert behaviour() == before
    finally:
        assert gateway.stop() == 0


def test_a_mapped_socket_is_open(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        assert client.map(PORT + 2, suggested=PORT + 20).port == PORT + 20
        assert seen(lab, "inside", CLIENT4, PORT + 2) == ((ROUTER_OUT4, PORT + 20),) * 2
        assert may_answer(lab, CLIENT4, PORT + 2) == (True, True)
        client.map(0, protocol=0, lifetime=0)
        assert seen(lab, "inside", CLIENT4, PORT + 3) == ((ROUTER_OUT4, PORT + 3),) * 2  # others are as they were


def test_a_call_that_ends_changes_no_other_sockets_port(lab: Lab, gateway: Gateway) -> None:
    """A conversation of SIP comes and goes: a mapped socket beside it, and a plain one, are seen as before."""
    mapped, plain = ((ROUTER_OUT4, PORT + 40),) * 2, ((ROUTER_OUT4, PORT + 5),) * 2
    proxy, far, phone = f"{SERVER4}:5060", f"{SERVER4}:5070", f"{CLIENT4}:5060"

    def calls() -> list[dict[str, object]]:
        """Conversations of media that somebody may come through."""
        return [hole for hole in gateway.admin("pinholes") if hole["reason"] == "sip.rtp" and hole["peer"] != ""]

    kamailio = Kamailio(lab, "outside", SERVER4)
    try:
        for role, local, name in (("outside", far, "bob"), ("inside", phone, "ann")):
            succeeds(lab, sipp(lab, role, "register", local=local, remote=proxy, options=["-s", name]))  # type: ignore[arg-type]
        with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
            assert client.map(PORT + 4, suggested=PORT + 40).port == PORT + 40
            assert seen(lab, "inside", CLIENT4, PORT + 5) == plain
            callee = sipp(lab, "outside", "uas", local=far, audio=9100)
            caller = sipp(lab, "inside", "uac", local=phone, remote=proxy, options=["-s", "bob", "-d", "3000"])
            lab.wait_for(calls, 10, "the call" + lab.tail_of_logs())
            assert seen(lab, "inside", CLIENT4, PORT + 4) == mapped
            succeeds(lab, caller, callee)
            lab.wait_for(lambda: not calls(), 10, "the call to end")
            assert seen(lab, "inside", CLIENT4, PORT + 4) == mapped
            assert may_answer(lab, CLIENT4, PORT + 4) == (True, True)
            assert seen(lab, "inside", CLIENT4, PORT + 5) == plain
            client.map(0, protocol=0, lifetime=0)
    finally:
        kamailio.stop()
