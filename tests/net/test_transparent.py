"""The transparent front: redirected connections, loops, upstreams that refuse."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4, SERVER4, SERVER6, STRANGER4, Lab, Role

RELAYED = 8021  # a port without a module


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(transparent={"ports": [RELAYED]}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection ends by a reset, not by an orderly end."""
    sock.settimeout(5)
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        return True
    return False


def meets_a_reset(lab: Lab, role: Role, host: str, port: int) -> bool:
    """Whether a connection is reset: while `connect` still returns, or after."""
    try:
        with lab.connect(role, host, port) as sock:
            return is_reset(sock)
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("host", [SERVER4, SERVER6])
def test_the_original_destination_is_reached(lab: Lab, gateway: Gateway, host: str) -> None:
    listener = lab.listen("outside", host, RELAYED)
    client = lab.connect("inside", host, RELAYED)
    server, address = listener.accept()
    assert address[0] != client.getsockname()[0]  # it came by way of the gateway
    (flow,) = gateway.admin("flows")
    assert flow["front"] == "transparent"
    assert flow["module"] is None
    assert str(RELAYED) in flow["server"]
    client.sendall(b"ping")
    assert server.recv(4) == b"ping"
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"late answer")
    server.close()
    assert client.recv(20) == b"late answer"
    assert client.recv(1) == b""
    client.close()
    listener.close()
    line = gateway.wait_for_log(rf"event=flow.end flow={flow['id']} ")
    assert "reason=eof up=4 down=11" in line


@pytest.mark.parametrize("host", [SERVER4, SERVER6])
def test_an_upstream_that_refuses_is_a_reset(lab: Lab, gateway: Gateway, host: str) -> None:
    seen = len(gateway.log_lines())
    assert meets_a_reset(lab, "inside", host, RELAYED)
    assert "failure=refused" in gateway.wait_for_log("event=transparent.failed", after=seen)


def test_an_upstream_that_is_not_there_is_a_reset(lab: Lab, gateway: Gateway) -> None:
    seen = len(gateway.log_lines())
    assert meets_a_reset(lab, "inside", "203.0.113.99", RELAYED)
    assert "failure=host" in gateway.wait_for_log("event=transparent.failed", after=seen)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        (ROUTER_IN4, 10800),  # a probe of our port
        (ROUTER_IN6, 10800),
        (ROUTER_IN4, 21),  # redirected, and meant for the gateway itself
        (ROUTER_IN6, 21),
        (ROUTER_OUT4, 21),  # by its other address
        ("127.0.0.1", None),
    ],
)
def test_a_loop_or_a_probe_is_reset_and_logged(lab: Lab, gateway: Gateway, host: str, port: int | None) -> None:
    seen = len(gateway.log_lines())
    assert meets_a_reset(lab, "inside" if port else "router", host, port or 10800)
    line = gateway.wait_for_log("event=transparent.loop", after=seen)
    assert f"target={host}" in line or f"target=[{host}]" in line or f'target="[{host}]' in line
    assert gateway.admin("flows") == []


@pytest.mark.parametrize("host", [ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4])
def test_a_server_of_the_router_itself_is_left_alone(lab: Lab, gateway: Gateway, host: str) -> None:
    listener = lab.listen("router", "::", 21)
    with lab.connect("inside", host, 21) as client:
        server, address = listener.accept()
        assert address[0].removeprefix("::ffff:") == client.getsockname()[0]  # not by way of the gateway
        server.close()
    listener.close()


def test_a_stranger_outside_is_not_served(lab: Lab, gateway: Gateway) -> None:
    seen = len(gateway.log_lines())
    assert meets_a_reset(lab, "stranger", ROUTER_OUT4, 10800)
    assert STRANGER4 in gateway.wait_for_log("event=transparent.loop", after=seen)


@pytest.mark.parametrize("resetter", ["client", "server"])
def test_a_reset_is_passed_on(lab: Lab, gateway: Gateway, resetter: str) -> None:
    listener = lab.listen("outside", SERVER4, RELAYED)
    client = lab.connect("inside", SERVER4, RELAYED)
    server, _ = listener.accept()
    breaks, other = (client, server) if resetter == "client" else (server, client)
    breaks.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    breaks.close()
    assert is_reset(other)
    other.close()
    listener.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flow to end")


def test_a_server_that_never_answers_leaves_the_others_alone(lab: Lab, gateway: Gateway) -> None:
    """A blackhole: the dial waits, and nobody else does."""
    lab.run("outside", ["iptables", "-I", "INPUT", "-p", "tcp", "--dport", "21", "-j", "DROP"])
    waiting = [lab.connect("inside", SERVER4, 21) for _ in range(20)]
    listener = lab.listen("outside", SERVER4, RELAYED)
    began = time.monotonic()
    for _ in range(4):  # both workers
        client = lab.connect("inside", SERVER4, RELAYED)
        server, _ = listener.accept()
        server.sendall(b"x")
        assert client.recv(1) == b"x"
        client.close()
        server.close()
    assert time.monotonic() - began < 2
    for sock in (*waiting, listener):
        sock.close()
    lab.run("outside", ["iptables", "-D", "INPUT", "1"])
