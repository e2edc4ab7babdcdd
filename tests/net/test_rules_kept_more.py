"""What others do to rules, sets, routing rules and routes of ours while the gateway runs, one after the other: within
two seconds everything is as it was, and it serves. Whole tables that go are in test_rules_kept.py and
test_broker_restore.py.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, PATIENCE, SERVER4, Lab
from tests.lab.servers import FtpServer
from tests.net.test_foreign_firewalls import transfers
from tests.net.test_rules_kept import NOTICED
from tests.net.test_uplinks import Router, Setup, _call

# In each: $CHAIN is our prefix of iptables' chains, $TABLE our nft table, $ROUTES our routing table; `last:CHAIN` the
# handle of a chain's last rule.
WAYS = {
    # iptables -R, as scripts do that number rules (arloor/iptablesUtils#24, wifidog/wifidog-gateway#275)
    "a rule of ours is replaced": "iptables -R $CHAIN-FORWARD 1 -p tcp --dport 9 -j RETURN",
    "a redirection is replaced": "iptables -t nat -R $CHAIN-PREROUTING 3 -p tcp --dport 9 -j RETURN",
    "a jump is for one port only": "iptables -R FORWARD 1 -p tcp --dport 9 -j $CHAIN-FORWARD",
    "a chain is renamed": "iptables -E $CHAIN-FORWARD OLD-FORWARD",
    "raw only": "iptables -t raw -F",
    # kubeovn/kube-ovn#205, cloudnativelabs/kube-router#588
    "a rule of the table is replaced": "nft replace rule inet $TABLE spoken handle last:inet:$TABLE:spoken accept",
    "the table is dormant": "nft add table inet $TABLE { flags dormant; }",
    "a rule before all others": "nft insert rule inet $TABLE in accept",
    "a chain is flushed": "nft flush chain inet $TABLE decide",
    "who is inside is flushed": "nft flush set inet $TABLE inside4",
    "ports of modules are flushed": "nft flush set inet $TABLE module_ports",
    "one port of a module is deleted": "nft delete element inet $TABLE server_ports { 5060 }",
    # systemd/systemd#19106, #22077, #25451, #39613
    "routing rules are flushed": "sh -c 'ip rule flush; ip rule add pref 32766 table main; ip rule add pref 32767 table"
    " default'",
    "our routing rule is deleted": "ip rule del pref 1",
    "our routing rule of IPv6 is deleted": "ip -6 rule del pref 1",
    "our routes are flushed": "ip route flush table $ROUTES",
    "our routes of IPv6 are flushed": "ip -6 route flush table $ROUTES",
}  # fmt: skip
STATE = (
    "nft -s list table inet $TABLE; iptables-save; ip6tables-save; ip rule; ip -6 rule;"
    " ip route show table $ROUTES; ip -6 route show table $ROUTES"
)


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    lab.run("router", ["iptables", "-X", "OLD-FORWARD"], check=False)
    for program in ("iptables", "ip6tables"):
        lab.run("router", [program, "-t", "raw", "-X"], check=False)
    lab.run("router", ["nft", "delete", "table", "ip", "raw"], check=False)  # that it was not there is forgotten


class Names:
    """Those of this gateway on its router."""

    def __init__(self, lab: Lab, gateway: Gateway) -> None:
        self.lab = lab
        self.table = next(row["table"] for row in gateway.admin("status") if row["process"] == "broker")
        rules = lab.run("router", ["ip", "rule"]).stdout
        self.routes = rules.partition("fwmark 0x80000000/0x80000000 lookup ")[2].split()[0]

    def put(self, text: str) -> str:
        values = {"$CHAIN": self.table.upper(), "$TABLE": self.table, "$ROUTES": self.routes}
        for name, value in values.items():
            text = text.replace(name, value)
        return re.sub(r"last:(\S+)", lambda found: self._last(*found[1].split(":")), text)

    def _last(self, *chain: str) -> str:
        lines = self.lab.run("router", ["nft", "-a", "list", "chain", *chain]).stdout.splitlines()
        return next(line for line in reversed(lines) if "# handle" in line).rpartition(" ")[2]


@pytest.fixture(scope="module")
def names(lab: Lab, gateway: Gateway) -> Names:
    lab.wait_for(lambda: "applied" in gateway.algate("status").stdout, 5, "the rules to be seen")
    return Names(lab, gateway)


def state(names: Names) -> list[str]:
    """Everything of ours, without what packets and calls leave in sets."""
    text = names.lab.run("router", ["sh", "-c", names.put(STATE)], check=False).stdout
    text = re.sub(r"\[\d+:\d+\]|# .*|-m comment --comment \"algate[^\"]*\" |.*OLD-FORWARD.*", "", text)
    text = re.sub(
        r"elements = \{[^}]*\}",
        lambda found: "" if re.search("timeout|limit| [.] ", found[0]) else " ".join(found[0].split()),
        text,
    )
    return sorted(line.strip() for line in text.splitlines() if line.strip())


@pytest.fixture(scope="module")
def before(names: Names) -> list[str]:
    return state(names)


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[FtpServer]:
    server = lab.vsftpd()
    yield server
    server.stop()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_is_as_it_was(
    lab: Lab, gateway: Gateway, names: Names, before: list[str], server: FtpServer, way: str
) -> None:
    lab.run("router", shlex.split(names.put(way)))
    end = time.monotonic() + NOTICED * PATIENCE
    while (now := state(names)) != before:
        gone, new = ([line for line in one if line not in other] for one, other in ((before, now), (now, before)))
        assert time.monotonic() < end, f"gone: {gone}; new: {new}"
        time.sleep(0.02)
    assert transfers(lab, server, "passive", "active") == {"passive": 0, "active": 0}
    number = list(WAYS.values()).index(way)
    router = Router(lab, gateway, Setup(lambda _: None, SERVER4, frozenset({"203.0.113.2"})))
    _call(router, CLIENT4, SERVER4, frozenset({"203.0.113.2"}), (5100 + number, 4000 + 2 * number))
