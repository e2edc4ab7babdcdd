"""Which addresses are one machine."""

from __future__ import annotations

import ipaddress

from gateway.net.neighbours import SOONEST, Kernel, Neighbours

INSIDE = (ipaddress.ip_network("192.168.56.0/24"), ipaddress.ip_network("fd00:56::/64"))


class Fake:
    """A kernel: what it knows, what it has told of, and how often it was asked for all."""

    def __init__(self) -> None:
        self.links: dict[str, str] = {}
        self.changes: dict[str, str] | None = {}
        self.asked = 0
        self.now = 100.0

    def all(self) -> dict[str, str]:
        self.asked += 1
        return dict(self.links)

    def news(self) -> dict[str, str] | None:
        changed, self.changes = self.changes, {}
        return changed


def test_a_host_is_its_link_layer_address() -> None:
    kernel = Fake()
    kernel.links = {"192.168.56.10": "02aa", "fd00:56::10": "02aa", "fd00:56::bad": "02aa", "fd00:56::11": "02bb"}
    neighbours = Neighbours(INSIDE, kernel, lambda: kernel.now)
    first = {
        neighbours.identify(host) for host in ("192.168.56.10", "fd00:56::10", "fd00:56::bad", "::ffff:192.168.56.10")
    }
    assert len(first) == 1
    second = neighbours.identify("fd00:56::11")
    assert second not in first
    assert second.host == second.network  # the /64 says nothing more
    assert kernel.asked == 1


def test_without_one_it_is_its_address_and_a_64_outside() -> None:
    kernel = Fake()
    neighbours = Neighbours(INSIDE, kernel, lambda: kernel.now)
    assert neighbours.identify("fd00:56::10") == ("fd00:56::10", "fd00:56::/64")
    assert neighbours.identify("2001:db8::1") == neighbours.identify("2001:db8::2")
    assert neighbours.identify("198.51.100.1") != neighbours.identify("198.51.100.2")


def test_the_kernel_is_not_asked_for_each_stranger() -> None:
    """It tells of those that come; only where it has told too much for us is it asked, and not often."""
    kernel = Fake()
    neighbours = Neighbours(INSIDE, kernel, lambda: kernel.now)
    for number in range(1, 100):
        kernel.changes = {f"fd00:56::{number:x}": "02cc"}
        assert neighbours.identify(f"fd00:56::{number:x}").host == "link 02cc"
    assert kernel.asked == 1
    kernel.changes = None
    kernel.links["fd00:56::aaaa"] = "02dd"
    assert neighbours.identify("fd00:56::aaaa").host == "fd00:56::aaaa"
    kernel.now += SOONEST + 0.1
    assert neighbours.identify("fd00:56::aaaa").host == "link 02dd"
    assert kernel.asked == 2
    kernel.links.clear()  # it forgets sooner than the host changes
    kernel.now += 60
    assert neighbours.identify("fd00:56::aaaa").host == "link 02dd"
    assert kernel.asked == 2


def test_the_kernel_answers() -> None:
    kernel = Kernel()
    try:
        for address, link in kernel.all().items():
            ipaddress.ip_address(address)
            assert int(link, 16)
        assert kernel.news() is not None
    finally:
        kernel.close()
