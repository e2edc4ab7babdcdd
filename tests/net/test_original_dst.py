"""The original destination of really redirected connections, in a namespace of this test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import namespaces

pytestmark = pytest.mark.net

ROOT = Path(__file__).resolve().parents[2]
INNER = """
import json, socket
from gateway.front.transparent.original_dst import original_destination
from gateway.net.addresses import is_local

def ask(listen, family, dial, dual=False):
    with socket.create_server((listen, 10800), family=family, dualstack_ipv6=dual) as server:
        server.settimeout(5)
        with socket.create_connection(dial, timeout=5):
            accepted, _ = server.accept()
            with accepted:
                return str(original_destination(accepted))

print(json.dumps({
    "ipv4": ask("0.0.0.0", socket.AF_INET, ("203.0.113.9", 21)),
    "ipv6": ask("::", socket.AF_INET6, ("2001:db8:9::9", 21)),
    "mapped": ask("::", socket.AF_INET6, ("203.0.113.9", 21), dual=True),
    "dual6": ask("::", socket.AF_INET6, ("2001:db8:9::9", 21), dual=True),
    "direct": ask("0.0.0.0", socket.AF_INET, ("192.168.56.1", 10800)),
    "local": [host for host in ("192.168.56.1", "fd00::1", "fe80::56:1", "192.168.56.2", "203.0.113.9", "fd00::2",
                                "fe80::56:2", "192.168.56.255") if is_local(host)],
}))
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace with conntrack, one link, and all that goes to port 21 redirected to 10800."""
    name = f"{namespaces.new_prefix()}odst"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    namespaces.add(name)
    try:
        for command in (
            "ip link add link0 type veth peer name link1",
            "ip link set link1 up",
            "ip link set link0 up",
            "ip addr add 192.168.56.1/24 dev link0",
            "ip addr add fd00::1/64 dev link0 nodad",
            "ip addr add fe80::56:1/64 dev link0 nodad",
            "ip route add default dev link0",
            "ip -6 route add default dev link0",
            "iptables -w -t nat -A OUTPUT -p tcp --dport 21 -j REDIRECT --to-ports 10800",
            "ip6tables -w -t nat -A OUTPUT -p tcp --dport 21 -j REDIRECT --to-ports 10800",
        ):
            run("ip", "netns", "exec", name, *command.split())
        yield name
    finally:
        namespaces.remove(name)


def test_redirected(namespace: str) -> None:
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", INNER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "ipv4": "203.0.113.9:21",
        "ipv6": "[2001:db8:9::9]:21",
        "mapped": "203.0.113.9:21",
        "dual6": "[2001:db8:9::9]:21",
        "direct": "192.168.56.1:10800",
        "local": ["192.168.56.1", "fd00::1", "fe80::56:1"],
    }
