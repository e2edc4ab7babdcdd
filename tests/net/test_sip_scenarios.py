"""Every scenario of tests/net/sip, between two SIPp through the gateway, with media and a stranger.

All of them at once, a few at a time: each has a phone inside and one outside with addresses of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.config.load import load_config
from gateway.observe.admin import ask
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_OUT4, ROUTER_OUT6, STRANGER4, STRANGER6, Lab
from tests.lab.sip_call import Played, play
from tests.lab.sip_peers import SCENARIOS
from tests.lab.sip_scenario import Party, Side, read

pytestmark = pytest.mark.slow

AT_ONCE = 4
LONG = 10_000  # milliseconds: such a scenario waits for nearly all of its time, and keeps no other from being played
ALL = {path.stem: read(path) for path in sorted(SCENARIOS.glob("*.scenario"))}
CASES = [(name, transport) for name, scenario in ALL.items() for transport in scenario.transports]
CASES += [(name, "socks") for name, scenario in ALL.items() if "udp" in scenario.transports]
# Last parts of addresses: none that the lab has, and none that begins as the router's, which is looked for as text.
NUMBERS = [*range(100, 200), *range(30, 66), *range(67, 100)]


def parties(case: tuple[str, str]) -> dict[Side, Party]:
    """A phone inside and one outside for a case."""
    number = NUMBERS[CASES.index(case)]
    media = 20000 + 40 * number
    inside, outside = f"192.168.56.{number}", f"203.0.113.{number}"
    if case[1] == "udp6":
        inside, outside = f"fd00:56::{number}", f"2001:db8:113::{number}"
    return {"inside": Party("ann", inside, 5060, media), "outside": Party("bob", outside, 5060, media + 20)}


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """One that is told of a provider which repairs NAT itself, and that gives silent calls up soon."""
    repaired = [parties(("stand-down-repaired", way))["outside"].host for way in ("udp", "socks")]
    gateway = lab.start_gateway(lab.write_config(alg={"sip": {"stand_down": repaired, "media_timeout": 10}}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def played(lab: Lab, gateway: Gateway, request: pytest.FixtureRequest) -> dict[tuple[str, str], Future[Played]]:
    """The cases that were asked for, under way."""
    names = "".join(item.name for item in request.session.items)
    wanted = [case for case in CASES if f"_scenario[{'-'.join(case)}]" in names or f"_log[{case[0]}-sip." in names]
    for case in wanted:
        for side, party in parties(case).items():
            prefix = "64 nodad" if ":" in party.host else "24"
            lab.run(side, ["ip", "addr", "add", *f"{party.host}/{prefix}".split(), "dev", "eth0"])

    run_dir = Path(load_config(str(gateway.config)).process.run_dir)

    def rows(verb: str) -> list[dict[str, Any]]:
        who = run_dir.glob("[pw]*.sock") if verb == "calls" else [run_dir / "broker.sock"]
        return [row for path in who for row in ask(str(path), verb, 5)]

    def go(case: tuple[str, str]) -> Played:
        v6 = case[1] == "udp6"
        router, stranger = (ROUTER_OUT6, STRANGER6) if v6 else (ROUTER_OUT4, STRANGER4)
        return play(lab, ALL[case[0]], case[1].removesuffix("6"), parties(case), router, stranger, rows)

    long = sum(ALL[case[0]].milliseconds > LONG for case in wanted)
    with ThreadPoolExecutor(AT_ONCE + long) as pool:
        # The longest first: one takes as long as all others together.
        return {case: pool.submit(go, case) for case in sorted(wanted, key=lambda case: -ALL[case[0]].milliseconds)}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_scenario(case: tuple[str, str], played: dict[tuple[str, str], Future[Played]]) -> None:
    played[case].result()


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("stand-down-sips", "sip.tls"),
        ("stand-down-public", "sip.public"),
        ("stand-down-repaired", "sip.repaired"),
        ("stand-down-ice", "sip.ice"),
    ],
)
def test_why_it_stands_down_is_on_the_log(
    scenario: str, reason: str, played: dict[tuple[str, str], Future[Played]], gateway: Gateway
) -> None:
    """Of the phone and of the registrar that it is about; of ICE, which is one description's, of the phone."""
    case = (scenario, "udp")
    played[case].result()
    ends = parties(case)
    if reason == "sip.ice":
        assert gateway.wait_for_log(f"event=alg.note .*code={reason} .*{ends['inside'].host}")
    else:
        wanted = f"event=alg.stand_down client={ends['inside'].host}:5060 server={ends['outside'].host} rule={reason}"
        assert gateway.wait_for_log(re.escape(wanted))
