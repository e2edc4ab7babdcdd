"""UDP ASSOCIATE under other configurations, each with a gateway of its own."""

from __future__ import annotations

from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, STRANGER4, Lab
from tests.net.socks_wire import ask5
from tests.net.udp_client import PORT, UDP, Client, config, silent, udp, works


def test_open_answers(lab: Lab) -> None:
    sections = config(udp_answers="open")
    other = lab.start_gateway(lab.write_config(**sections))
    try:
        with lab.connect("inside", ROUTER_IN4, 1080) as control, udp(lab, "inside", CLIENT4) as sock:
            _, host, port = ask5(control, "0.0.0.0", 0, UDP)
            client = Client(control, sock, (host, port))
            with udp(lab, "outside", SERVER4, PORT) as server, udp(lab, "stranger", STRANGER4) as stranger:
                public = works(client, server)
                stranger.sendto(b"unasked", public)
                assert client.receive() == (*stranger.getsockname(), b"unasked")
    finally:
        assert other.stop() == 0


def test_rules_are_asked_for_each_datagram(lab: Lab) -> None:
    lab.dns({"echo.example": [SERVER4]})
    rules = [
        {"action": "deny", "command": ["udp"], "to": [SERVER4], "port": ["5301"]},
        {"action": "permit", "command": ["udp"], "to": [SERVER4, "echo.example"]},
    ]
    sections = {**config(), "rule": rules}
    other = lab.start_gateway(lab.write_config(**sections))
    try:
        with lab.connect("inside", ROUTER_IN4, 1080) as control, udp(lab, "inside", CLIENT4) as sock:
            code, host, port = ask5(control, "0.0.0.0", 0, UDP)
            assert code == 0
            client = Client(control, sock, (host, port))
            with (
                udp(lab, "outside", SERVER4, PORT) as server,
                udp(lab, "outside", SERVER4, 5301) as denied,
                udp(lab, "stranger", STRANGER4, PORT) as stranger,
            ):
                client.send(SERVER4, 5301, b"no")
                client.send("echo.example", 5301, b"no")
                client.send(STRANGER4, PORT, b"no")
                works(client, server)
                silent(denied)
                silent(stranger)
        with lab.connect("inside", ROUTER_IN4, 1080) as control:
            assert ask5(control, SERVER4, PORT)[0] == 2  # `connect` is another command
    finally:
        assert other.stop() == 0


def test_no_rule_for_udp_no_association(lab: Lab) -> None:
    sections = {**config(), "rule": [{"action": "permit", "command": ["connect"]}]}
    other = lab.start_gateway(lab.write_config(**sections))
    try:
        with lab.connect("inside", ROUTER_IN4, 1080) as control:
            assert ask5(control, "0.0.0.0", 0, UDP)[0] == 2
    finally:
        assert other.stop() == 0


def test_fragments_refused(lab: Lab) -> None:
    sections = config(udp_fragments="refuse")
    other = lab.start_gateway(lab.write_config(**sections))
    try:
        with lab.connect("inside", ROUTER_IN4, 1080) as control, udp(lab, "inside", CLIENT4) as sock:
            _, host, port = ask5(control, "0.0.0.0", 0, UDP)
            client = Client(control, sock, (host, port))
            with udp(lab, "outside", SERVER4, PORT) as server:
                client.send(SERVER4, PORT, b"one", 1)
                client.send(SERVER4, PORT, b"two", 0x82)
                client.send(SERVER4, PORT, b"alone", 0x81)
                works(client, server)
                silent(server)
    finally:
        assert other.stop() == 0


def test_an_association_does_not_keep_the_gateway_from_stopping(lab: Lab) -> None:
    sections = config()
    sections["process"]["drain_timeout"] = 1
    other = lab.start_gateway(lab.write_config(**sections))
    with lab.connect("inside", ROUTER_IN4, 1080) as control:
        assert ask5(control, "0.0.0.0", 0, UDP)[0] == 0
        assert other.stop() == 0
        assert control.recv(1) == b""
