"""The netlink side, without a kernel that answers."""

from __future__ import annotations

import socket
import time

import pytest

from gateway.broker import netlink
from gateway.broker.elements import elements_of
from gateway.broker.netfilter import Change, Netfilter
from gateway.broker.netlink import NetfilterError
from tests.unit.broker.test_protocol import leases


@pytest.mark.parametrize("answer", [b"", bytes(8), bytes(16), bytes(4000)])
def test_no_answer_and_nonsense_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(netlink, "NETLINK_DEADLINE", 0.1)
    silent, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with silent, other:
        table = Netfilter("algate-test")
        monkeypatch.setattr(table._netlink, "_socket", silent)
        other.send(answer)
        begun = time.monotonic()
        for action in (
            table.elements,
            table.unload,
            lambda: table.apply([Change(add=elements_of(leases()[0], 0, 9))]),
        ):
            with pytest.raises(NetfilterError, match="timed out"):
                action()
        assert time.monotonic() - begun < 2.0
