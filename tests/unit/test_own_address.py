"""Which addresses are this host's own, and what conntrack says of connections that nobody redirected."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from gateway.front.transparent.original_dst import original_destination
from gateway.net.addresses import is_local, is_own


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.9.8.7", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::1%lo", "::1%1"),
        *("64:ff9b::127.0.0.1", "64:ff9b:1::127.0.0.1", "2002:7f00:1::", "127.255.255.255"),
    ],
)
def test_own(host: str) -> None:
    assert is_own(host)


@pytest.mark.parametrize(
    "host", ["192.0.2.77", "2001:db8::77", "224.0.0.1", "fe80::77", "ff02::1", "64:ff9b::192.0.2.77", "fe80::77%lo"]
)
def test_foreign(host: str) -> None:
    assert not is_own(host)
    assert not is_local(host)


def test_from_what_cannot_be_sent() -> None:
    assert is_local("127.9.8.7")
    assert not is_local("127.255.255.255")


def test_a_name_is_no_address() -> None:
    for ask in (is_own, is_local):
        with pytest.raises(ValueError, match="does not appear"):
            ask("localhost")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_connection_without_redirect(family: socket.AddressFamily, host: str) -> None:
    """Without conntrack nothing is known; with it, it is the endpoint that was dialled."""
    with socket.create_server((host, 0), family=family) as server, socket.socket(family) as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            destination = original_destination(accepted)
            assert destination is None or (destination.host, destination.port) == server.getsockname()[:2]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace")
def test_who_chooses_among_tables() -> None:
    """In a namespace of its own there are the kernel's three rules; another table is policy, algate's own is not."""
    program = """
import subprocess
from gateway.net.addresses import OwnAddresses
own = OwnAddresses(); print(own.routes_by_policy())
ours, main = "fwmark 0x80000000/0x80000000 lookup 2707430000", "from all lookup main suppress_prefixlength 0"
for rule in (ours, main, "from 10.0.0.0/8 lookup 2"):
    subprocess.run(["ip", "rule", "add", *rule.split()], check=True)
    __import__("time").sleep(0.002); print(own.routes_by_policy())
"""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False", "False", "False", "True"], done.stderr
