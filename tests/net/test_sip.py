"""SIP over UDP through the NAT: real peers (Kamailio, SIPp), real media, and who does not get in."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.lab.sip_peers import Kamailio, Sipp, sipp, succeeds

PROXY = f"{SERVER4}:5060"
PHONE = f"{CLIENT4}:5060"
FAR = f"{SERVER4}:5070"


@pytest.fixture(scope="module")
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


@pytest.fixture
def far(lab: Lab, kamailio: Kamailio) -> None:
    """A phone outside, "bob", is registered with the proxy."""
    succeeds(lab, sipp(lab, "outside", "register", local=FAR, remote=PROXY, options=["-s", "bob"]))


@pytest.fixture
def near(lab: Lab, kamailio: Kamailio) -> Sipp:
    """The phone inside, "ann", has registered with the proxy."""
    return succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=["-s", "ann"]))


def pinholes(gateway: Gateway, reason: str) -> list[dict[str, Any]]:
    return [row for row in gateway.admin("pinholes") if row["reason"] == reason]


class Media:
    """Sockets for RTP: one of the inside phone, one of a peer outside."""

    def __init__(self, lab: Lab, role: Any, address: str, port: int) -> None:
        with lab.enter(role):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind((address, port))
        self.socket.settimeout(2)

    def send(self, to: tuple[str, int], data: bytes = b"\x80rtp") -> None:
        self.socket.sendto(data, to)

    def hears(self, timeout: float = 0.4) -> bytes | None:
        self.socket.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            return self.socket.recv(2048)
        return None

    def close(self) -> None:
        self.socket.close()


def split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


def test_a_registration_shows_the_public_address_outside_and_the_own_one_inside(
    lab: Lab, gateway: Gateway, near: Sipp
) -> None:
    (signalling,) = pinholes(gateway, "sip.signalling")
    assert signalling["target"] == PHONE
    assert signalling["peer"] == SERVER4
    assert split(signalling["public"])[0] == ROUTER_OUT4
    answer = near.received("SIP/2.0 200")[-1]
    assert f"Contact: <sip:ann@{PHONE}>" in answer
    assert f"Via: SIP/2.0/UDP {PHONE};branch=" in answer
    assert ROUTER_OUT4 not in answer


def test_a_call_to_the_outside_with_media_both_ways(lab: Lab, gateway: Gateway, near: Sipp, far: None) -> None:
    callee = sipp(lab, "outside", "uas", local=FAR, audio=9100)
    caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=["-s", "bob", "-d", "3000"])
    lab.wait_for(
        lambda: any(call["state"] == "confirmed" for call in gateway.admin("calls")),
        10,
        "the call" + lab.tail_of_logs(),
    )
    (media,) = pinholes(gateway, "sip.rtp")
    assert media["peer"] == SERVER4
    public = split(media["public"])
    phone = Media(lab, "inside", CLIENT4, split(media["target"])[1])
    peer = Media(lab, "outside", SERVER4, 9100)
    stranger = Media(lab, "stranger", STRANGER4, 9100)
    try:
        phone.send((SERVER4, 9100), b"from inside")
        assert peer.hears() == b"from inside"
        peer.send(public, b"from outside")
        assert phone.hears() == b"from outside"
        stranger.send(public, b"from a stranger")
        assert phone.hears() is None
        (call,) = gateway.admin("calls")
        assert call["duration"] >= 0
        assert "bob@example.test" in call["callee"]
        (stream,) = call["media"]
        assert (stream["packets_in"], stream["packets_out"]) == (1, 1)
        succeeds(lab, caller, callee)
        assert pinholes(gateway, "sip.rtp") == []
        peer.send(public, b"after the BYE")
        assert phone.hears() is None
        assert gateway.admin("calls") == []
    finally:
        for end in (phone, peer, stranger):
            end.close()


def test_a_call_from_the_outside_comes_to_the_phone(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    callee = sipp(lab, "inside", "uas", local=PHONE)
    caller = sipp(lab, "outside", "uac", local=f"{SERVER4}:5071", remote=PROXY, options=["-s", "ann", "-d", "300"])
    succeeds(lab, caller, callee)
    invite = callee.received("INVITE ")[0]
    assert invite.startswith(f"INVITE sip:ann@{PHONE} SIP/2.0")
    assert ROUTER_OUT4 not in invite
    answer = caller.received("SIP/2.0 200")[0]
    assert CLIENT4 not in answer


def test_a_strangers_invite_does_not_arrive(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    (signalling,) = pinholes(gateway, "sip.signalling")
    phone = Media(lab, "inside", CLIENT4, 5060)
    stranger = Media(lab, "stranger", STRANGER4, 5060)
    stranger.send(split(signalling["public"]), b"INVITE sip:ann@203.0.113.2 SIP/2.0\r\n\r\n")
    assert phone.hears() is None
    phone.close()
    stranger.close()
