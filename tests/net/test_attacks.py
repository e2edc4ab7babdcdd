"""Under each attack of tests/lab/attackers.py every process answers the supervisor within a second; none is replaced.

The supervisor asks every two seconds (docs/how-to/reload-and-upgrade.md). What attacks do to other clients' connections
tests/bench/attacks.py measures.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.observe.admin import ask
from tests.lab.attackers import ATTACKS, running, sections, servers
from tests.lab.gateway import Gateway
from tests.lab.kerberos import Kerberos
from tests.lab.lab import Lab

WITHIN = 1.0  # seconds
PLAIN = [name for name, attack in ATTACKS.items() if not attack.extra]
PROTECTED = [name for name, attack in ATTACKS.items() if attack.extra]

pytestmark = [pytest.mark.long, pytest.mark.timeout(60)]


@pytest.fixture(scope="module", autouse=True)
def others(lab: Lab) -> Iterator[None]:
    with servers(lab):
        yield


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """One for all attacks that need nothing further."""
    together: dict[str, Any] = {}
    for name in PLAIN:
        together |= {key: value for key, value in sections(name).items() if value}
    gateway = lab.start_gateway(lab.write_config(**together, process={"drain_timeout": 1}), deadline=60)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def protected_gateway(lab: Lab, kerberos: Kerberos) -> Iterator[Gateway]:
    """One with GSSAPI."""
    wanted = {key: value for key, value in sections(PROTECTED[0], kerberos).items() if value}
    gateway = lab.start_gateway(lab.write_config(**wanted, process={"drain_timeout": 1}), deadline=60)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def answers(gateway: Gateway) -> dict[str, float]:
    """Seconds that each process took to answer the supervisor's last question."""
    config = tomllib.loads(gateway.config.read_text())
    (row,) = ask(config["process"]["run_dir"] + "/supervisor.sock", "metrics", 5.0)
    return {sample[1]: sample[2] for sample in row["samples"] if sample[0] == "algate_process_ping_seconds"}


def under(lab: Lab, gateway: Gateway, name: str, env: dict[str, str] | None = None) -> float:
    """The longest that a process took to answer during the attack: of two questions at least, the second of which was
    put when the attack was under way."""
    before, longest = answers(gateway), 0.0
    with running(lab, ATTACKS[name].role, "attack", name, env=env):
        for _ in range(2):

            def all_have_answered(before: dict[str, float] = before) -> bool:
                now = answers(gateway)
                return all(now[child] != before[child] for child in before)

            lab.wait_for(all_have_answered, 20, "every process to answer" + lab.tail_of_logs())
            before = answers(gateway)
            longest = max(longest, *before.values())
    return longest


def check(lab: Lab, gateway: Gateway, name: str, env: dict[str, str] | None = None) -> None:
    pids = gateway.pids()
    assert set(answers(gateway)) == {"broker", "packets", "worker-0", "worker-1"}
    longest = under(lab, gateway, name, env)
    if longest >= WITHIN:  # a machine that is busy with other things may be the reason, once
        longest = under(lab, gateway, name, env)
    assert longest < WITHIN
    assert gateway.pids() == pids


@pytest.mark.parametrize("name", PLAIN)
def test_every_process_answers_within_a_second(lab: Lab, gateway: Gateway, name: str) -> None:
    check(lab, gateway, name)


@pytest.mark.parametrize("name", PROTECTED)
def test_every_process_answers_within_a_second_beside_gssapi(
    lab: Lab, protected_gateway: Gateway, kerberos: Kerberos, name: str
) -> None:
    check(lab, protected_gateway, name, kerberos.env)
