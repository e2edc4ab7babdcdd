"""A broker that is killed in each state of a SIP call: before it answers what a message asks of it, or between two
messages. The call comes about, its media pass, and its end takes all of it away."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.net.test_sip import Media, pinholes, split
from tests.net.test_sip_seen import OFFER, Wire, confirmed

STATES = ["before", "early", "confirmed", "held", "changed", "ended"]


def kill_broker(lab: Lab, gateway: Gateway) -> None:
    """Returns when another one answers."""

    def broker() -> int | None:
        said = gateway.algate("status", "--json", check=False)  # the new one may not answer yet
        rows = json.loads(said.stdout) if said.returncode == 0 else []
        return next((row["pid"] for row in rows if row["process"] == "broker"), None)

    before = broker()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    lab.wait_for(lambda: broker() not in (None, before), 10, "another broker")


def passes(lab: Lab, gateway: Gateway, near: Media, far: Media) -> None:
    """Media of the one call, both ways, through the pinhole that is shown."""
    (media,) = pinholes(gateway, "sip.rtp")
    public = split(media["public"])

    def both() -> bool:
        near.send((SERVER4, 9100), b"out")
        far.send(public, b"in")
        return far.hears(0.2) == b"out" and near.hears(0.2) == b"in"

    lab.wait_for(both, 5, "media")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("state", STATES)
def test_a_call_survives(lab: Lab, gateway: Gateway, transport: str, state: str) -> None:
    wire = Wire(lab, transport)
    near, far = Media(lab, "inside", CLIENT4, 4000), Media(lab, "outside", SERVER4, 9100)
    number = iter(range(1, 100))

    def reached(at: str) -> None:
        if at == state:
            kill_broker(lab, gateway)

    try:
        wire.ask("OPTIONS", next(number))
        reached("before")
        wire.ask("INVITE", next(number), OFFER, lambda: reached("early"))
        lab.wait_for(lambda: confirmed(gateway), 5, "the call")
        passes(lab, gateway, near, far)
        reached("confirmed")
        passes(lab, gateway, near, far)
        wire.ask("INVITE", next(number), OFFER.replace("RTP/AVP 0\r\n", "RTP/AVP 0\r\na=sendonly\r\n"))
        reached("held")
        wire.ask("INVITE", next(number), OFFER)
        reached("changed")
        passes(lab, gateway, near, far)
        wire.ask("BYE", next(number))
        reached("ended")
        lab.wait_for(lambda: not confirmed(gateway) and not pinholes(gateway, "sip.rtp"), 10, "the end of it all")
    finally:
        wire.close()
        near.close()
        far.close()
