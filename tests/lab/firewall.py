"""The firewall that the router has of its own, as a normal home router has it; the gateway knows nothing of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.lab import Lab


def load(lab: Lab) -> None:
    """Load the firewall that the lab asks for, IPv4 and IPv6."""
    forward = "-p tcp --dport 21 " if lab.strict else ""
    for program, icmp, nat in (("iptables", "icmp", lab.nat4), ("ip6tables", "ipv6-icmp", lab.nat6)):
        text = f"""*filter
:INPUT {"DROP" if lab.input_drop else "ACCEPT"} [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth1 -o eth0 {forward}-j ACCEPT
COMMIT
"""
        if nat:
            text += "*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n"
        lab.run("router", [f"{program}-restore"], stdin=text)


def state(lab: Lab) -> list[str]:
    """Everything in the router's netfilter as lines, without counters and times."""
    text = "".join(lab.run("router", [f"{program}-save"]).stdout for program in ("iptables", "ip6tables"))
    text += lab.run("router", ["nft", "list", "tables"]).stdout
    return [re.sub(r"\[\d+:\d+\]", "[0:0]", line) for line in text.splitlines() if not line.startswith("#")]
