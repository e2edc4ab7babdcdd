"""What phones, cameras and servers of the field say (tests/wire/field/sip), through the router: each byte as is right,
media both ways, and a phone that registers is reached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import field_wire
from tests.lab.field_sip import Field
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab

CASES = list(field_wire.cases())
NUMBER = {(name, transport): number for number, (_, name, transport) in enumerate(CASES)}


@pytest.fixture(scope="module")
def field_gateway(lab: Lab) -> Iterator[Gateway]:
    field_wire.prepare(lab, len(CASES))
    config = lab.write_config(network={"inside": [field_wire.NETWORK]}, process={"workers": 1})
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    lab._baseline = []


@pytest.mark.parametrize(
    ("case", "name", "transport"),
    [
        pytest.param(*case, id=f"{case[1]}-{case[2]}", marks=[pytest.mark.long] if case[2].lower() == "tcp" else [])
        for case in CASES
    ],
)
def test_over_the_wire(
    lab: Lab, field_gateway: Gateway, case: Field, name: str, transport: field_wire.Transport
) -> None:
    outcome = field_wire.play(lab, case, transport, NUMBER[name, transport])
    assert outcome.exact == ""
    assert outcome.served, outcome
