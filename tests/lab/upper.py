"""A second router in front of the lab's own, as a provider's box or a carrier's NAT is: the role "upper".

    client 192.168.56.10 ── router ── 100.64.0.0/24 ── upper ── 1.2.3.0/24 ── outside 1.2.3.10, stranger 1.2.3.66

The addresses outside are none of documentation: miniupnpd refuses to serve where its own is reserved. Nothing leaves
the namespaces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.lab import namespaces
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab, Role
from tests.lab.peers import LIBRARIES, unpacked

ROUTER = "100.64.0.2"
UPPER_IN, UPPER_OUT, UPPER_OUT_2 = "100.64.0.1", "1.2.3.2", "1.2.3.3"
SERVER, STRANGER = "1.2.3.10", "1.2.3.66"

# What miniupnpd expects to find, in chains of these names.
MINIUPNPD_TABLE = """
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy accept;
        jump miniupnpd
    }
    chain miniupnpd {
    }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 99; policy accept;
        jump postrouting_miniupnpd
    }
    chain prerouting_miniupnpd {
    }
    chain postrouting_miniupnpd {
    }
}
"""


def build(lab: Lab, forward: str = "DROP") -> None:
    """Put the second router between the lab's own and the outside. `forward`: its policy for what comes from there."""
    names = {role: lab.ns(role) for role in ("upper", "outside", "router")}
    namespaces.add(names["upper"])
    lab.run("upper", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    lab.run("router", ["ip", "link", "del", "eth0"])
    link = ["ip", "link", "add"]
    lab.run("upper", [*link, "eth0", "type", "veth", "peer", "name", "p1", "netns", names["outside"]])
    lab.run("upper", [*link, "eth1", "type", "veth", "peer", "name", "eth0", "netns", names["router"]])
    lab.run("outside", ["ip", "link", "set", "p1", "master", "eth0", "up"])
    for role, device, address in (
        ("upper", "eth0", f"{UPPER_OUT}/24"),
        ("upper", "eth1", f"{UPPER_IN}/24"),
        ("router", "eth0", f"{ROUTER}/24"),
        ("outside", "eth0", f"{SERVER}/24"),
        ("stranger", "eth0", f"{STRANGER}/24"),
    ):
        lab.run(role, ["ip", "address", "add", address, "dev", device])  # type: ignore[arg-type]
        lab.run(role, ["ip", "link", "set", device, "up"])  # type: ignore[arg-type]
    lab.run("upper", ["ip", "link", "set", "lo", "up"])
    lab.run("upper", ["ip", "route", "add", "default", "via", SERVER])
    lab.run("router", ["ip", "route", "add", "default", "via", UPPER_IN])
    firewall = f"""*filter
:FORWARD {forward} [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth1 -o eth0 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""
    lab.run("upper", ["iptables-restore"], stdin=firewall)
    lab.wait_for(lambda: _reaches(lab), 10, "the router to reach the outside")


def _reaches(lab: Lab) -> bool:
    try:
        lab.connect("router", SERVER, 9, timeout=0.3).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def start_algate(lab: Lab, **sections: Any) -> Gateway:
    """Start a gateway on the second router, which answers by all protocols unless `sections` say otherwise."""
    base: dict[str, Any] = {
        "network": {"inside": ["100.64.0.0/24"], "inside_interfaces": ["eth1"]},
        "socks": {"listen": [f"{UPPER_IN}:1080"]},
        "portmap": {"protocols": ["pcp", "natpmp", "upnp"], "lifetime": "2-7200"},
        "process": {"workers": 1},
    }
    for key, value in sections.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    gateway = Gateway(lab, lab.write_config(**base), "upper")
    gateway.start()
    return gateway


@contextlib.contextmanager
def miniupnpd(
    lab: Lab, *, pcp: bool, role: Role = "upper", address: str = UPPER_IN, network: str = "100.64.0.0/24"
) -> Iterator[None]:
    """Run miniupnpd on the second router, without PCP and NAT-PMP if not `pcp`; or on another one, which has `address`
    for hosts of `network`."""
    config, pidfile = lab.tmp / f"{role}-miniupnpd.conf", lab.tmp / f"{role}-miniupnpd.pid"
    config.write_text(
        f"ext_ifname=eth0\nlistening_ip=eth1\nenable_natpmp={'yes' if pcp else 'no'}\nenable_upnp=yes\n"
        "min_lifetime=2\nmax_lifetime=7200\nsecure_mode=yes\nhttp_port=5000\n"
        f"uuid=00000000-0000-0000-0000-000000000002\nallow 1024-65535 {network} 1024-65535\n"
        "deny 0-65535 0.0.0.0/0 0-65535\n"
    )
    lab.run(role, ["nft", "-f", "-"], stdin=MINIUPNPD_TABLE)
    daemon = unpacked("miniupnpd-nftables", "usr/sbin/miniupnpd")
    environment = {"LD_LIBRARY_PATH": str(LIBRARIES)}
    process = lab.popen(role, [daemon, "-d", "-f", config, "-P", pidfile], env=environment)
    lab.wait_for(lambda: _listens(lab, role, address), 10, "miniupnpd to listen")
    try:
        yield
    finally:
        lab.stop(process)
        lab.run(role, ["nft", "delete", "table", "inet", "filter"])


def _listens(lab: Lab, role: Role, address: str) -> bool:
    try:
        lab.connect(role, address, 5000, timeout=1).close()
    except OSError:
        return False
    return True
