"""What a policy remembers of its decisions has a bound."""

import ipaddress

import pytest

from alg.address import Endpoint, parse_ip
from gateway.model.requests import ConnectRequest
from gateway.policy import decide as policy_module
from gateway.policy.decide import Policy


def request(client: str) -> ConnectRequest:
    return ConnectRequest("connect", Endpoint(client, 4000), "203.0.113.10", 443)


def permitted(policy: Policy, client: str) -> bool:
    at_all = policy.judge(request(client)).client.permit
    assert policy.judge(request(client)).at(parse_ip("203.0.113.10")).permit == at_all
    return at_all


def test_it_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "CLIENTS", 4)
    policy = Policy([ipaddress.ip_network("192.0.2.0/25")])
    for last in range(256):
        assert permitted(policy, f"192.0.2.{last}") == (last < 128)
        assert len(policy._clients) <= 4
