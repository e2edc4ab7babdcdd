"""A message that names where media come from is delivered when the kernel lets these media in."""

from __future__ import annotations

import pytest

from tests.lab.first_media import Result, Transport, first_media
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab

CALLS = 60


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("status", [183, 200])
def test_the_first_packet_after_an_answer_is_delivered_arrives(
    lab: Lab, gateway: Gateway, transport: Transport, status: int
) -> None:
    assert first_media(lab, transport, status, CALLS) == Result(CALLS, 0)
