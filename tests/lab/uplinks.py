"""A second way to the outside, for a lab: another provider, who lets nobody out with an address that is not his.

    client 192.168.56.10 ── eth1  router  eth0 203.0.113.2  ── 203.0.113.10  ┐
                                          eth2 198.51.100.2 ── 198.51.100.10 ┴─ outside: 192.0.2.10, behind both

The main routing table leads out by the first one. Both providers drop what comes from addresses of the other.
"""

from __future__ import annotations

from tests.lab import firewall
from tests.lab.lab import SERVER4, Lab

FIRST4, SECOND4 = "203.0.113.2", "198.51.100.2"
FIRST6, SECOND6 = "2001:db8:113::2", "2001:db8:100::2"
FAR4, FAR6 = "192.0.2.10", "2001:db8:2::10"
_GATEWAY4, _GATEWAY6 = "198.51.100.10", "2001:db8:100::10"


def _ip(lab: Lab, role: str, *commands: str) -> None:
    for command in commands:
        lab.run(role, ["ip", *command.split()])  # type: ignore[arg-type]


def add(lab: Lab) -> None:
    """Add it, before a gateway is started. It goes with the lab."""
    outside = lab.ns("outside")
    _ip(
        lab,
        "router",
        f"link add eth2 type veth peer name p3 netns {outside}",
        f"address add {SECOND4}/24 dev eth2",
        f"address add {SECOND6}/64 dev eth2 nodad",
        "link set eth2 up",
        f"route add default via {SERVER4}",
        "-6 route add default via 2001:db8:113::10",
    )
    _ip(
        lab,
        "outside",
        f"address add {_GATEWAY4}/24 dev p3",
        f"address add {_GATEWAY6}/64 dev p3 nodad",
        "link set p3 up",
        f"address add {FAR4}/32 dev lo",
        f"address add {FAR6}/128 dev lo nodad",
    )
    for program, first, second in (
        ("iptables", "203.0.113.0/24", "198.51.100.0/24"),
        ("ip6tables", "2001:db8:113::/64,fe80::/10", "2001:db8:100::/64,fe80::/10"),
    ):
        for device, own in (("eth0", first), ("p3", second)):
            lab.run("outside", [program, "-A", "INPUT", "-i", device, "-s", own, "-j", "ACCEPT"])
            lab.run("outside", [program, "-A", "INPUT", "-i", device, "-j", "DROP"])
        lab.run("router", [program, "-A", "FORWARD", "-i", "eth1", "-o", "eth2", "-j", "ACCEPT"])
        lab.run("router", [program, "-t", "nat", "-A", "POSTROUTING", "-o", "eth2", "-j", "MASQUERADE"])
    _ip(
        lab,
        "router",
        f"route add default via {_GATEWAY4} table 2",
        "route add 192.168.56.0/24 dev eth1 table 2",
        f"-6 route add default via {_GATEWAY6} table 2",
        "-6 route add fd00:56::/64 dev eth1 table 2",
    )
    for device in ("all", "eth0", "eth1", "eth2"):
        lab.run("router", ["sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=2"])
    lab._baseline = firewall.state(lab)


def rebase(lab: Lab) -> None:
    """What is in the router's netfilter now is as it is meant to be."""
    lab._baseline = firewall.state(lab)


def by_source(lab: Lab) -> None:
    """What comes from inside leaves by the second one: `ip rule from`."""
    _ip(
        lab,
        "router",
        "rule add from 192.168.56.0/24 table 2 pref 100",
        "-6 rule add from fd00:56::/64 table 2 pref 100",
    )


def by_mark(lab: Lab) -> None:
    """The same by a mark that PREROUTING sets, kept for the connection, as mwan3 has it."""
    for program in ("iptables", "ip6tables"):
        for chain in ("PREROUTING", "OUTPUT"):
            restore = "CONNMARK --restore-mark --nfmask 0xff00 --ctmask 0xff00"
            lab.run("router", [program, "-t", "mangle", "-A", chain, "-j", *restore.split()])
        mark = "-i eth1 -m mark --mark 0/0xff00 -j MARK --set-xmark 0x200/0xff00"
        lab.run("router", [program, "-t", "mangle", "-A", "PREROUTING", *mark.split()])
        save = "CONNMARK --save-mark --nfmask 0xff00 --ctmask 0xff00"
        lab.run("router", [program, "-t", "mangle", "-A", "POSTROUTING", "-j", *save.split()])
    main = "suppress_prefixlength 0"
    for family in ("-4", "-6"):
        _ip(
            lab, "router",
            f"{family} rule add table main {main} pref 90",
            f"{family} rule add fwmark 0x200/0xff00 table 2 pref 100",
        )  # fmt: skip


def by_bare_mark(lab: Lab) -> None:
    """The same by a rule that marks nothing but what comes in from inside."""
    for program in ("iptables", "ip6tables"):
        lab.run(
            "router", [program, "-t", "mangle", "-A", "PREROUTING", *["-i", "eth1", "-j", "MARK", "--set-mark", "2"]]
        )
    _ip(lab, "router", "rule add fwmark 2 table 2 pref 100", "-6 rule add fwmark 2 table 2 pref 100")
