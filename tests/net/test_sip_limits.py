"""Limits of SIP over UDP: what is too much or too long passes untouched and is counted, and nobody else suffers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.net.test_sip import Media, pinholes
from tests.net.test_sip_addresses import Phone, Server, message, offered, sdp

RATE, PER_CLIENT, FLOOD = 50, 4, 1000


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """One with narrow limits."""
    config = lab.write_config(alg={"sip": {"rate": RATE}}, pinhole={"per_client": PER_CLIENT})
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    server = Server(lab)
    yield server
    server.end.close()


@pytest.fixture
def phones(lab: Lab, server: Server) -> Iterator[tuple[Phone, Phone]]:
    phones = Phone(lab, "inside", CLIENT4, server), Phone(lab, "client2", CLIENT2_4, server)
    yield phones
    for phone in phones:
        phone.close()


def status(gateway: Gateway) -> dict[str, Any]:
    return next(row for row in gateway.admin("status") if row["process"] == "packets")


def options(number: int, host: str) -> bytes:
    lines = [
        f"Via: SIP/2.0/UDP {host};branch=z9hG4bK{number}",
        "From: <sip:ann@example.test>;tag=near",
        "To: <sip:bob@example.test>",
        f"Call-ID: flood-{number}",
        f"CSeq: {number} OPTIONS",
    ]
    return message(f"OPTIONS sip:bob@{SERVER4} SIP/2.0", lines)


@pytest.mark.parametrize(
    ("padding", "repaired"),
    [(2500, True), (6000, True), (15000, True), (20000, False)],
    ids=["3 KB", "7 KB", "16 KB", "21 KB"],
)
def test_fragments(gateway: Gateway, phones: tuple[Phone, Phone], padding: int, repaired: bool) -> None:
    """What came in fragments is read whole, and goes on in fragments; what is too long to be read passes as it was.
    Before the floods, which leave this phone's rate used up."""
    phone = phones[0]
    before = status(gateway).get("untouched_long", 0)
    number = 20 + padding
    text = phone.ask("INVITE", number, extra=(f"X-Padding: {'x' * padding}",), body=sdp(CLIENT4, 4000))
    assert f"X-Padding: {'x' * padding}\r\n" in text
    assert (offered(text)[0] == ROUTER_OUT4) is repaired
    assert status(gateway).get("untouched_long", 0) == before + (not repaired)
    phone.ask("ACK", number, ";tag=far")
    phone.ask("BYE", number + 1, ";tag=far")


def test_a_flood_of_one_phone(lab: Lab, gateway: Gateway, server: Server, phones: tuple[Phone, Phone]) -> None:
    """Every datagram arrives; beyond the rate as it was. Another phone's call is repaired all the while."""
    noisy, quiet = phones
    got: list[bytes] = []
    for number in range(FLOOD):
        noisy.end.send((SERVER4, 5060), options(number, CLIENT4))
        if number % 50 == 49:
            while (data := server.end.hears(0.05)) is not None:
                got.append(data)
    while (data := server.end.hears(0.3)) is not None:
        got.append(data)
    assert len(got) == FLOOD
    untouched = [data for data in got if CLIENT4.encode() in data]
    assert 0 < len(untouched) < FLOOD
    assert status(gateway)["over_rate"] == len(untouched)
    address, _ = offered(quiet.ask("INVITE", 1, body=sdp(CLIENT2_4, 4000)))
    assert address == ROUTER_OUT4
    quiet.ask("ACK", 1, ";tag=far")
    quiet.ask("BYE", 2, ";tag=far")


def test_a_phone_with_too_many_pinholes(gateway: Gateway, phones: tuple[Phone, Phone]) -> None:
    """A description is repaired whole or not at all: with one stream too many it passes as it was."""
    greedy, modest = phones
    streams = "".join(f"m=audio {port} RTP/AVP 0\r\n" for port in range(4002, 4002 + 2 * PER_CLIENT, 2))
    address, port = offered(modest.ask("INVITE", 11, body=sdp(CLIENT2_4, 4000)))
    assert (address, port != 4000) == (ROUTER_OUT4, True)
    refused = next(row["refused"] for row in gateway.admin("status") if row["process"] == "broker")
    body = sdp(CLIENT4, 4000) + streams
    assert greedy.ask("INVITE", 12, body=body).endswith(body)
    assert next(row["refused"] for row in gateway.admin("status") if row["process"] == "broker") > refused
    assert len([row for row in gateway.admin("pinholes") if row["client"] == CLIENT4]) <= PER_CLIENT
    for phone, number in ((greedy, 13), (modest, 14)):
        phone.ask("ACK", number - 1 if phone is greedy else 11, ";tag=far")
        phone.ask("BYE", number, ";tag=far")
    assert pinholes(gateway, "sip.rtp") == []


FLOODER = """
import socket, sys, time
end = socket.socket(type=socket.SOCK_DGRAM)
end.connect((sys.argv[1], 5060))
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    for _ in range(200):
        try:
            end.send(b"x" * 400)
        except OSError:
            pass
"""


def test_a_flood_of_another_client_to_the_modules_port(
    lab: Lab, gateway: Gateway, server: Server, phones: tuple[Phone, Phone]
) -> None:
    """The kernel shows only so much of it: whoever else speaks is heard."""
    before = counters(gateway)["unread"]["packets"]
    sink = Media(lab, "stranger", STRANGER4, 5060)
    flooder = lab.popen("client2", [sys.executable, "-c", FLOODER, STRANGER4, "6"])
    try:
        lab.wait_for(lambda: counters(gateway)["unread"]["packets"] > before, 5, "the flood to be more than is read")
        answered = 0
        for number in range(1000, 1060):
            phones[0].end.send((SERVER4, 5060), options(number, CLIENT4))
            answered += server.end.hears(1) is not None
        assert answered == 60
    finally:
        lab.stop(flooder)
        sink.close()


def counters(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = next(row["counters"] for row in gateway.admin("status") if row["process"] == "broker")
    return found
