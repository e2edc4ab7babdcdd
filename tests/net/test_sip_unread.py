"""A message that cannot be read passes, and is counted whatever it came over; the log says why, once a minute."""

from __future__ import annotations

import pytest

from tests.lab.first_media import message, udp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import ask5
from tests.net.test_sip import rows
from tests.net.udp_client import associate

LINES = ["From: <sip:ann@x>;tag=1", "To: <sip:bob@x>", "Call-ID: u", "CSeq: 1 OPTIONS"]
BAD = message("OPTIONS <sip:bob@x> SIP/2.0", [f"Via: SIP/2.0/UDP {CLIENT4}:5064;branch=z9hG4bK1", *LINES])


def unread(gateway: Gateway) -> float:
    samples = [sample for row in rows(gateway, "metrics") for sample in row["samples"]]
    return float(sum(sample[-1] for sample in samples if sample[0] == "algate_messages_unread_total"))


def said_of_it(gateway: Gateway) -> int:
    return sum("sip.unread" in line for line in gateway.log_lines())


def why(gateway: Gateway, client: str) -> str:
    return next((str(row["reason"]) for row in rows(gateway, "peers") if row["client"].startswith(client)), "")


@pytest.mark.parametrize("way", ["udp", "tcp", "socks tcp", "socks udp"])
def test_it_is_counted_and_shown(lab: Lab, gateway: Gateway, way: str) -> None:
    before, said = unread(gateway), said_of_it(gateway)
    times, at = 3, len(gateway.log_lines())
    if way == "udp":
        with udp(lab, "inside", CLIENT4, 5064) as near, udp(lab, "outside", SERVER4, 5060) as far:
            far.settimeout(5)
            for _ in range(times):
                near.sendto(BAD, (SERVER4, 5060))
                assert far.recv(65535) == BAD
            assert why(gateway, f"{CLIENT4}:5064") == "3 unread: the start line, at byte 0"
    elif way == "socks udp":
        client = associate(lab)
        with udp(lab, "outside", SERVER4, 5060) as far:
            far.settimeout(5)
            for _ in range(times):
                client.send(SERVER4, 5060, BAD)
                assert far.recv(65535) == BAD
        client.close()
    else:
        with lab.listen("outside", SERVER4, 5060) as listener:
            near = lab.connect("inside", *((ROUTER_IN4, 1080) if "socks" in way else (SERVER4, 5060)))
            if "socks" in way:
                assert ask5(near, SERVER4, 5060)[0] == 0
            with near, listener.accept()[0] as far:
                far.settimeout(5)
                for _ in range(times):
                    near.sendall(BAD)
                    heard = b""
                    while len(heard) < len(BAD):
                        heard += far.recv(65535)
                    assert heard == BAD
                assert why(gateway, CLIENT4).startswith("3 unread: ")
    lab.wait_for(lambda: unread(gateway) == before + times, 5, "the count")
    gateway.wait_for_log(r"sip\.unread.*the start line, at byte 0", after=at)
    assert said_of_it(gateway) == said + 1
