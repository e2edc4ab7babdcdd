"""A telephone exchange inside, behind one address and one port, whose trunk knows no registration."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.sip_exchange import PORT, Exchange, contact, media_of
from tests.net.test_sip import Media, confirmed, pinholes

CALLS = 500
PUBLIC = (ROUTER_OUT4, PORT)


# What operators write for an exchange: the router's port 5060 is the exchange's, or another one; its media ports, too;
# all that has no other use (an exposed host); the same as text of nft.
DNAT = "-t nat {{}} PREROUTING -d " + ROUTER_OUT4 + " -p udp {} -j DNAT --to-destination {}"
ACCEPT = f"{{}} FORWARD -d {CLIENT4} -p udp -j ACCEPT"
OTHER = 5070
WAYS = {
    "one-port": [DNAT.format(f"--dport {PORT}", f"{CLIENT4}:{PORT}"), ACCEPT],
    "another-port": [DNAT.format(f"--dport {OTHER}", f"{CLIENT4}:{PORT}"), ACCEPT],
    "media-too": [
        DNAT.format(f"--dport {PORT}", f"{CLIENT4}:{PORT}"), DNAT.format("--dport 4000:4100", CLIENT4), ACCEPT,
    ],
    "exposed-host": [DNAT.format("", CLIENT4), ACCEPT],
    "nft": [ACCEPT],
}  # fmt: skip
NFT = f"""table ip exchange {{
    chain prerouting {{
        type nat hook prerouting priority dstnat - 5
        ip daddr {ROUTER_OUT4} udp dport {PORT} dnat to {CLIENT4}
    }}
}}"""


@pytest.fixture(params=WAYS)
def forwarded(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    rules = WAYS[request.param]
    for rule in rules:
        lab.run("router", ["iptables", *rule.format("-I").split()])
    if request.param == "nft":
        lab.run("router", ["nft", "-f", "-"], stdin=NFT)
    yield request.param
    if request.param == "nft":
        lab.run("router", ["nft", "delete", "table", "ip", "exchange"])
    for rule in rules:
        lab.run("router", ["iptables", *rule.format("-D").split()])


@pytest.fixture
def exchange(lab: Lab) -> Iterator[Exchange]:
    exchange = Exchange(lab, PUBLIC)
    yield exchange
    exchange.close()


def call_from_trunk(lab: Lab, gateway: Gateway, exchange: Exchange) -> None:
    """The trunk calls, media flow both ways, and the trunk ends the call where the exchange said that it is."""
    near, far = Media(lab, "inside", CLIENT4, 4000), Media(lab, "outside", SERVER4, 9100)
    try:
        exchange.to_exchange(exchange.request("outside", "INVITE", 1, 1, media=9100))
        exchange.to_trunk(exchange.reply(exchange.at_exchange(), "inside", media=4000))
        answer = exchange.at_trunk()
        assert CLIENT4 not in answer
        assert contact(answer)[0] == ROUTER_OUT4
        exchange.to_exchange(exchange.request("outside", "ACK", 1, 1, answered=True), contact(answer))
        exchange.at_exchange()
        far.send(media_of(answer), b"from the trunk")
        assert near.hears() == b"from the trunk"
        near.send((SERVER4, 9100), b"from the exchange")
        assert far.hears() == b"from the exchange"
        exchange.to_exchange(exchange.request("outside", "BYE", 1, 2, answered=True), contact(answer))
        exchange.to_trunk(exchange.reply(exchange.at_exchange(), "inside"))
        exchange.at_trunk()
        assert pinholes(gateway, "sip.rtp") == []
    finally:
        near.close()
        far.close()


def call_from_exchange(lab: Lab, gateway: Gateway, exchange: Exchange) -> None:
    near, far = Media(lab, "inside", CLIENT4, 4002), Media(lab, "outside", SERVER4, 9102)
    try:
        exchange.to_trunk(exchange.request("inside", "INVITE", 2, 1, media=4002))
        invite = exchange.at_trunk()
        assert f"c=IN IP4 {ROUTER_OUT4}" in invite
        assert CLIENT4 not in invite.partition("Contact:")[2].partition("\n")[0]
        exchange.to_exchange(exchange.reply(invite, "outside", media=9102), max(exchange.seen))
        assert f"Via: SIP/2.0/UDP {CLIENT4}:{PORT};" in exchange.at_exchange()
        exchange.to_trunk(exchange.request("inside", "ACK", 2, 1, answered=True))
        exchange.at_trunk()
        far.send(media_of(invite), b"from the trunk")
        assert near.hears() == b"from the trunk"
        exchange.to_exchange(
            exchange.request("inside", "BYE", 2, 2, answered=True).replace(b"From:", b"F:").replace(b"To:", b"From:")
            .replace(b"F:", b"To:"), contact(invite),
        )  # fmt: skip
        exchange.to_trunk(exchange.reply(exchange.at_exchange(), "inside"))
        exchange.at_trunk()
        assert pinholes(gateway, "sip.rtp") == []
    finally:
        near.close()
        far.close()


def test_behind_a_port_that_the_operator_forwards(
    lab: Lab, gateway: Gateway, forwarded: str, exchange: Exchange
) -> None:
    if forwarded == "another-port":
        exchange.public = (ROUTER_OUT4, OTHER)
    call_from_trunk(lab, gateway, exchange)
    call_from_exchange(lab, gateway, exchange)


def test_that_is_published(lab: Lab, exchange: Exchange) -> None:
    """`[[publish]]` for UDP: what it says is always seen at the published endpoint, and no signalling pinhole opens."""
    entry = {"outside": f"{ROUTER_OUT4}:{PORT}", "inside": f"{CLIENT4}:{PORT}", "protocol": "udp"}
    gateway = lab.start_gateway(lab.write_config(publish=[entry]))
    try:
        call_from_trunk(lab, gateway, exchange)
        call_from_exchange(lab, gateway, exchange)
        assert exchange.seen == {PUBLIC}
        assert pinholes(gateway, "sip.signalling") == []
    finally:
        assert gateway.stop() == 0


def test_with_five_hundred_calls(lab: Lab, gateway: Gateway, exchange: Exchange) -> None:
    """By default, as fast as it can: each is repaired, and the media of each are let in."""
    public = {}
    for number in range(CALLS):
        exchange.to_trunk(exchange.request("inside", "INVITE", number, 1, media=10000 + 2 * number))
        invite = exchange.at_trunk()
        assert f"c=IN IP4 {ROUTER_OUT4}" in invite, f"call {number} is not repaired"
        public[number] = media_of(invite)
        exchange.to_exchange(exchange.reply(invite, "outside", media=9100), max(exchange.seen))
        exchange.at_exchange()
    lab.wait_for(lambda: len(confirmed(gateway)) == CALLS, 10, "all calls")
    far = Media(lab, "outside", SERVER4, 9100)
    for number in (0, CALLS // 2, CALLS - 1):
        near = Media(lab, "inside", CLIENT4, 10000 + 2 * number)
        far.send(public[number], b"%d" % number)
        assert near.hears() == b"%d" % number
        near.close()
    far.close()
    for number in range(CALLS):
        exchange.to_trunk(exchange.request("inside", "BYE", number, 2, answered=True))
        exchange.to_exchange(exchange.reply(exchange.at_trunk(), "outside"), max(exchange.seen))
        exchange.at_exchange()
    assert pinholes(gateway, "sip.rtp") == []


def test_five_hundred_calls_with_sound_and_picture(lab: Lab, gateway: Gateway, exchange: Exchange) -> None:
    """Two streams each, and several calls on their way at a time: no limit that a client of this size meets."""
    public = set()
    for first in range(0, CALLS, 25):
        for number in range(first, first + 25):
            text = exchange.request("inside", "INVITE", number, 1, media=10000 + 4 * number).decode()
            head, _, body = text.partition("\r\n\r\n")
            body += f"m=video {10002 + 4 * number} RTP/AVP 34\r\n"
            head = re.sub(r"Content-Length: \d+", f"Content-Length: {len(body)}", head)
            exchange.to_trunk(f"{head}\r\n\r\n{body}".encode())
        for _ in range(25):
            invite = exchange.at_trunk()
            assert f"c=IN IP4 {ROUTER_OUT4}" in invite, f"one of the calls from {first} on is not repaired"
            public.update(re.findall(r"m=(?:audio|video) (\d+)", invite))
    assert len(public) == 2 * CALLS
    media = [row for row in gateway.admin("pinholes") if row["reason"] == "sip.rtp"]
    assert len(media) == 2 * CALLS
