"""What `algate calls` says of peers: whether what they say is edited, or left alone, and why."""

from __future__ import annotations

from typing import Any

from tests.lab.first_media import message, udp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab

PHONE, TLS_PHONE, HOSTILE = 5060, 5061, 5062


def register(host: str, port: int, contact: str) -> bytes:
    lines = [
        f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{port}",
        "From: <sip:ann@example.test>;tag=1",
        "To: <sip:ann@example.test>",
        f"Call-ID: peers-{port}",
        "CSeq: 1 REGISTER",
        f"Contact: {contact}",
        "Max-Forwards: 70",
    ]
    return message("REGISTER sip:example.test SIP/2.0", lines)


def peers(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {row["client"]: row for row in gateway.admin("calls") if row.get("kind") == "peer"}


def test_each_peer_is_shown_with_its_state(lab: Lab, gateway: Gateway) -> None:
    server = udp(lab, "outside", SERVER4, 5060)
    phones = {port: udp(lab, "inside", CLIENT4, port) for port in (PHONE, TLS_PHONE)}
    try:
        plain = register(CLIENT4, PHONE, f"<sip:ann@{CLIENT4}:{PHONE}>")
        phones[PHONE].sendto(plain, (SERVER4, 5060))
        tls = register(CLIENT4, TLS_PHONE, f"<sips:ann@{CLIENT4}:{TLS_PHONE}>")
        phones[TLS_PHONE].sendto(tls, (SERVER4, 5060))
        both = {f"{CLIENT4}:{port}" for port in phones}
        lab.wait_for(lambda: both <= peers(gateway).keys(), 5, "both phones to be seen")
        found = peers(gateway)
        edited, left_alone = (found[f"{CLIENT4}:{port}"] for port in (PHONE, TLS_PHONE))
        assert {key: edited[key] for key in ("server", "state", "reason", "until")} == {
            "server": SERVER4, "state": "edited", "reason": "", "until": None,
        }  # fmt: skip
        assert (left_alone["state"], left_alone["reason"]) == ("stood-down", "sip.tls")
        text = gateway.algate("calls").stdout
        assert "stood-down" in text
        assert "sip.tls" in text
    finally:
        for end in (server, *phones.values()):
            end.close()


def test_one_that_is_not_read_any_more_is_shown_with_the_reason_and_until_when(lab: Lab, gateway: Gateway) -> None:
    """What a browser can be made to send: a datagram in which SIP stands behind something else."""
    server, phone = udp(lab, "outside", SERVER4, 5060), udp(lab, "inside", CLIENT4, HOSTILE)
    try:
        said = b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + register(CLIENT4, HOSTILE, f"<sip:ann@{CLIENT4}:{HOSTILE}>")
        phone.sendto(said, (SERVER4, 5060))
        server.settimeout(5)
        assert server.recv(65535) == said, "it passes as it is"
        client = f"{CLIENT4}:{HOSTILE}"
        lab.wait_for(lambda: client in peers(gateway), 5, "it to be seen")
        found = peers(gateway)[client]
        assert (found["server"], found["state"], found["reason"]) == (SERVER4, "revoked", "sip.not-sip")
        assert found["until"]
        text = gateway.algate("calls").stdout
        (line,) = [line for line in text.splitlines() if client in line]
        assert "revoked" in line
        assert "sip.not-sip" in line
        phone.sendto(plain := register(CLIENT4, HOSTILE, f"<sip:ann@{CLIENT4}:{HOSTILE}>"), (SERVER4, 5060))
        assert server.recv(65535) == plain, "and so does what is SIP, for a while"
    finally:
        server.close()
        phone.close()
