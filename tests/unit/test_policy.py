"""Who may reach what without any rule."""

from __future__ import annotations

import ipaddress

import pytest

from alg.address import Endpoint
from gateway.model.requests import ConnectRequest
from gateway.policy.decide import Policy

INSIDE = [ipaddress.ip_network("192.168.56.0/24"), ipaddress.ip_network("fd00:56::/64")]


def ask(policy: Policy, client: str, target: str) -> tuple[bool, str]:
    request = ConnectRequest("connect", Endpoint.of(client, 50000), target, 443)
    decision = policy.judge(request).at(ipaddress.ip_address(target))
    return decision.permit, decision.rule


@pytest.mark.parametrize("client", ["192.168.56.10", "fd00:56::10", "::ffff:192.168.56.10"])
def test_inside_clients_may_reach_the_outside(client: str) -> None:
    assert ask(Policy(INSIDE), client, "203.0.113.10") == (True, "default")
    assert ask(Policy(INSIDE), client, "2001:db8::1") == (True, "default")


@pytest.mark.parametrize("client", ["203.0.113.66", "127.0.0.1", "192.168.57.1", "fd00:57::1"])
def test_others_may_not(client: str) -> None:
    assert ask(Policy(INSIDE), client, "203.0.113.10") == (False, "client")


def test_without_inside_networks_loopback_clients_may() -> None:
    assert ask(Policy([]), "127.0.0.1", "203.0.113.10") == (True, "default")
    assert ask(Policy([]), "::1", "203.0.113.10") == (True, "default")
    assert ask(Policy([]), "192.168.56.10", "203.0.113.10") == (False, "client")


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("192.168.56.20", "inside"),
        ("::ffff:192.168.56.20", "inside"),
        ("fd00:56::20", "inside"),
    ],
)
def test_what_is_no_destination(target: str, rule: str) -> None:
    assert ask(Policy(INSIDE), "192.168.56.10", target) == (False, rule)


def test_the_gateway_itself_is_no_destination() -> None:
    policy = Policy(INSIDE, is_own=lambda address: str(address) == "203.0.113.2")
    assert ask(policy, "192.168.56.10", "203.0.113.2") == (False, "own")
