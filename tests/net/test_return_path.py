"""What the broker keeps in the routing policy database for the gateway's connections with a client's address: rules of
others by the incoming interface have mirrors, each instance has its own, and none is left."""

from __future__ import annotations

import errno
import ipaddress
import os

import pytest

from gateway.broker.limits import BrokerLimits
from gateway.broker.netlink import NetfilterError
from gateway.broker.return_path import ReturnPath
from gateway.net.addresses import RTM_NEWRULE
from tests.lab.lab import Lab

OTHERS = ("ip rule add iif eth1 table 2 pref 100", "ip -6 rule add iif eth1 table 2 pref 100")


def limits(*inside: str) -> BrokerLimits:
    networks = tuple(map(ipaddress.ip_network, inside))
    return BrokerLimits(networks, (40000, 49999), None, 100, 100.0, interfaces=("eth1",))


def rules(lab: Lab) -> list[str]:
    lines = [lab.run("router", ["ip", family, "rule"]).stdout.splitlines() for family in ("-4", "-6")]
    return [line for family in lines for line in family]


def mirrors(lab: Lab) -> list[str]:
    return [line for line in rules(lab) if "iif lo" in line]


@pytest.fixture
def before(lab: Lab) -> list[str]:
    return rules(lab)


@pytest.fixture(autouse=True)
def others(lab: Lab, before: list[str]) -> object:
    for command in OTHERS:
        lab.run("router", command.split())
    yield
    for command in OTHERS:
        lab.run("router", command.replace(" add ", " del ").split())
    assert rules(lab) == before


def test_a_network_that_is_inside_no_more_leaves_nothing(lab: Lab) -> None:
    with lab.enter("router"):
        path = ReturnPath("a", limits("192.168.56.0/24", "10.56.0.0/16", "fd00:56::/64"))
    path.make()
    assert {line.split()[2] for line in mirrors(lab)} == {"192.168.56.0/24", "10.56.0.0/16", "fd00:56::/64"}
    path.configure(limits("192.168.56.0/24"))
    assert [line.split()[2] for line in mirrors(lab)] == ["192.168.56.0/24"]
    assert sum("fwmark 0x80000000" in line for line in rules(lab)) == 1
    path.remove()
    assert mirrors(lab) == []


def test_instances_of_several_users_leave_each_other_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for user in (1001, 1002):
        with lab.enter("router"), monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda user=user: user)
            paths.append(ReturnPath(str(user), limits("192.168.56.0/24")))
        paths[-1].make()
    both = mirrors(lab)
    assert len(both) == 2
    for path in paths:
        path.settle()
    assert mirrors(lab) == both
    paths[0].remove()
    assert mirrors(lab) == both[1:]
    paths[1].remove()


def test_what_the_kernel_refused_is_forgotten_with_the_rule_that_needed_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds and removes rules all day does not fill the memory of the broker."""
    with lab.enter("router"):
        path = ReturnPath("a", limits("192.168.56.0/24"))
    path.make()
    change = path._change

    def refuse(kind: int, body: bytes) -> bool:
        if kind == RTM_NEWRULE and b"lo\0" in body:
            raise NetfilterError(errno.EPERM, "netfilter")
        return change(kind, body)

    monkeypatch.setattr(path, "_change", refuse)
    for table in range(100, 130):
        lab.run("router", f"ip rule add iif eth1 table {table} pref {table}".split())
        path.settle()
        lab.run("router", f"ip rule del iif eth1 table {table} pref {table}".split())
    path.settle()
    assert len(path._refused) <= 1
    monkeypatch.undo()
    path.remove()
