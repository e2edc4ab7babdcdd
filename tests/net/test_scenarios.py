"""The scenarios that a person plays in the lab, each as `make lab SCENARIO=...` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import stage
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab

SCENARIOS = sorted((Path(__file__).parents[2] / "vagrant" / "scenarios").glob("*.sh"))


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    stage.serve(lab)
    gateway = lab.start_gateway(stage.config(lab))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(lab: Lab, gateway: Gateway, scenario: Path) -> None:
    done = lab.run("inside", ["sh", scenario], timeout=100, env=stage.environment(lab, gateway))
    assert done.stdout.splitlines()[-1].startswith("OK: "), done.stdout
