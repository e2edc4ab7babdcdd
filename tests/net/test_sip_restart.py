"""SIP over UDP when the packets process is killed: calls go on, and its successor knows them and the registrations."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.lab.sip_peers import Kamailio, Sipp, sipp, succeeds
from tests.net.test_sip import FAR, PHONE, PROXY, Media, confirmed, pinholes, split


@pytest.fixture(scope="module")
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


@pytest.fixture(scope="module")
def near(lab: Lab, kamailio: Kamailio) -> Sipp:
    """The phone inside, "ann", has registered with the proxy: once, before anything dies."""
    return succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=["-s", "ann"]))


def replace_packets(lab: Lab, gateway: Gateway) -> None:
    """SIGKILL to the packets process; returns when another one answers."""
    supervisor = next(row for row in gateway.admin("status") if row["process"] == "supervisor")
    before = supervisor["children"]["packets"]["pid"]
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        rows = {row["process"]: row for row in gateway.admin("status")}
        return "packets" in rows and rows["packets"]["pid"] != before

    lab.wait_for(replaced, 10, "another packets process")


def test_a_call_lives_on_and_its_bye_closes_it(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    succeeds(lab, sipp(lab, "outside", "register", local=FAR, remote=PROXY, options=["-s", "bob"]))
    with lab.listen("outside", SERVER4, 7000) as listener, lab.connect("inside", SERVER4, 7000) as plain:
        passing, _ = listener.accept()
        callee = sipp(lab, "outside", "uas", local=FAR, audio=9100)
        caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=["-s", "bob", "-d", "5000"])
        lab.wait_for(lambda: confirmed(gateway), 10, "the call" + lab.tail_of_logs())
        (media,) = pinholes(gateway, "sip.rtp")
        public = split(media["public"])
        phone = Media(lab, "inside", CLIENT4, split(media["target"])[1])
        peer = Media(lab, "outside", SERVER4, 9100)
        try:
            phone.send((SERVER4, 9100), b"before")
            assert peer.hears() == b"before"
            replace_packets(lab, gateway)
            peer.send(public, b"from outside")
            assert phone.hears() == b"from outside"
            phone.send((SERVER4, 9100), b"from inside")
            assert peer.hears() == b"from inside"
            (call,) = confirmed(gateway)
            assert "bob@example.test" in call["callee"]
            (stream,) = call["media"]
            assert (stream["packets_in"], stream["packets_out"]) == (1, 2)
            assert stream["public"] == media["public"]
            assert [row["id"] for row in pinholes(gateway, "sip.rtp")] == [media["id"]]
            succeeds(lab, caller, callee)
            assert pinholes(gateway, "sip.rtp") == []
            assert confirmed(gateway) == []
            peer.send(public, b"after the BYE")
            assert phone.hears() is None
            plain.sendall(b"x")
            assert passing.recv(1) == b"x"
        finally:
            passing.close()
            phone.close()
            peer.close()


def test_a_call_from_outside_still_arrives(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    (before,) = pinholes(gateway, "sip.signalling")
    replace_packets(lab, gateway)
    (signalling,) = pinholes(gateway, "sip.signalling")
    assert signalling["id"] == before["id"]
    callee = sipp(lab, "inside", "uas", local=PHONE)
    caller = sipp(lab, "outside", "uac", local=f"{SERVER4}:5071", remote=PROXY, options=["-s", "ann", "-d", "300"])
    succeeds(lab, caller, callee)
    assert callee.received("INVITE ")[0].startswith(f"INVITE sip:ann@{PHONE} SIP/2.0")
    assert CLIENT4 not in caller.received("SIP/2.0 200")[0]
