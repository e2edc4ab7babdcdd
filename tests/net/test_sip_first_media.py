"""A message that names where media come from is delivered when the kernel lets these media in."""

from __future__ import annotations

import re

import pytest

from tests.lab.first_media import Result, Transport, first_media, message, sdp, udp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab

CALLS = 60


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("status", [183, 200])
def test_the_first_packet_after_an_answer_is_delivered_arrives(
    lab: Lab, gateway: Gateway, transport: Transport, status: int
) -> None:
    assert first_media(lab, transport, status, CALLS) == Result(CALLS, 0)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_first_packet_right_behind_an_answer_arrives(lab: Lab, gateway: Gateway, transport: Transport) -> None:
    """It is there before its sender is let in, and waits for that."""
    assert first_media(lab, transport, 200, CALLS, "sent") == Result(CALLS, 0)


def test_what_comes_from_nobody_who_is_let_in_is_dropped(lab: Lab, gateway: Gateway) -> None:
    server, phone = udp(lab, "outside", SERVER4, 5060), udp(lab, "inside", CLIENT4, 5060)
    near, stranger = udp(lab, "inside", CLIENT4, 4000), udp(lab, "outside", SERVER4, 9300)
    try:
        for end in (server, phone):
            end.settimeout(3)
        lines = [f"Via: SIP/2.0/UDP {CLIENT4}:5060;branch=z9hG4bKx", "From: <sip:a@x>;tag=1", "To: <sip:b@x>"]
        lines += ["Call-ID: nobody", "CSeq: 1 INVITE", f"Contact: <sip:a@{CLIENT4}>", "Max-Forwards: 70"]
        phone.sendto(message(f"INVITE sip:b@{SERVER4} SIP/2.0", lines, sdp(CLIENT4, 4000)), (SERVER4, 5060))
        found = re.search(r"c=IN IP4 (\S+)(?s:.*)m=audio (\d+) ", server.recv(65535).decode())
        assert found
        for _ in range(40):
            stranger.sendto(b"from nobody", (found[1], int(found[2])))
        near.settimeout(0.3)
        with pytest.raises(TimeoutError):
            near.recv(100)

        def early() -> int:
            broker = next(row for row in gateway.admin("status") if row["process"] == "broker")
            return int(broker["counters"]["early"]["packets"])

        lab.wait_for(lambda: early() >= 40, 3, "all of them to be dropped")
    finally:
        for end in (server, phone, near, stranger):
            end.close()
