"""`python -m tests.conformance.sip`: SIP with the gateway, the kernel's helper and neither; every scenario, really run.

Needs root. Plays the scenarios of tests/net/sip in the lab's namespaces, between two SIPp, with media both ways and a
stranger, and writes the table into docs/protocols/sip.md, between the lines that mark it. Where rtpengine is on PATH,
also with Kamailio and rtpengine on the router and a phone that has Kamailio for its outbound proxy; messages are not
judged then. With `--check` it writes nothing; with `--only NAME ...` it plays these scenarios and puts their rows in
the place of those with the same call and transport. Exit code 1 where the gateway failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4, ROUTER_OUT6, STRANGER4, STRANGER6, Lab, LabError
from tests.lab.sip_call import play
from tests.lab.sip_peers import SCENARIOS
from tests.lab.sip_proxy import RTPENGINE, OutboundProxy
from tests.lab.sip_scenario import Check, Message, Party, Scenario, Side, read

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "sip.md"
BEGIN, END = "<!-- table: made by python -m tests.conformance.sip -->", "<!-- end of table -->"
PROXY = "Kamailio with rtpengine"
AT_ONCE = 6
LONGEST = 8.0  # seconds until a call that does not come about is given up
HELPER = ["PREROUTING", "--dport", "5060", "-j", "CT", "--helper", "sip"]


@dataclass(frozen=True, eq=False)
class Case:
    """A scenario over one transport, and the phones that play it."""

    scenario: Scenario
    transport: str
    number: int

    @property
    def parties(self) -> dict[Side, Party]:
        """A phone inside and one outside that no other case has."""
        inside, outside = f"192.168.56.{self.number}", f"203.0.113.{self.number}"
        if self.transport == "udp6":
            inside, outside = f"fd00:56::{self.number}", f"2001:db8:113::{self.number}"
        media = 20000 + 40 * self.number
        return {"inside": Party("ann", inside, 5060, media), "outside": Party("bob", outside, 5060, media + 20)}


def cases() -> list[Case]:
    """All of them. What is expected of `algate calls` and `pinholes` is left out: the others show nothing."""
    found: list[Case] = []
    for path in sorted(SCENARIOS.glob("*.scenario")):
        scenario = read(path)
        steps = [
            dataclasses.replace(step, what="pause", detail=f" within {step.milliseconds // 1000 or 1}")
            if isinstance(step, Check) and step.what == "expect"
            else step
            for step in scenario.steps
        ]
        plain = dataclasses.replace(scenario, steps=steps)
        found += [Case(plain, transport, 100 + len(found) + n) for n, transport in enumerate(scenario.transports)]
    return found


@contextlib.contextmanager
def nothing(lab: Lab) -> Iterator[None]:
    """A router as it is."""
    yield


@contextlib.contextmanager
def kernel_helper(lab: Lab) -> Iterator[None]:
    """nf_conntrack_sip and nf_nat_sip, attached to what goes to port 5060."""
    rules = [(program, ["-p", transport]) for program in ("iptables", "ip6tables") for transport in ("udp", "tcp")]
    for program, match in rules:
        lab.run("router", [program, "-t", "raw", "-A", HELPER[0], *match, *HELPER[1:]])
    try:
        yield
    finally:
        for program, match in rules:
            lab.run("router", [program, "-t", "raw", "-D", HELPER[0], *match, *HELPER[1:]])


def _gateway(repaired: list[str]) -> Callable[[Lab], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def prepare(lab: Lab) -> Iterator[None]:
        gateway = lab.start_gateway(lab.write_config(alg={"sip": {"stand_down": repaired, "media_timeout": 10}}))
        try:
            yield
        finally:
            gateway.stop()

    return prepare


@contextlib.contextmanager
def outbound_proxy(lab: Lab) -> Iterator[None]:
    """Kamailio with rtpengine on the router. A call without media ends as soon as with the gateway."""
    proxy = OutboundProxy(lab, trying=False, timeout=10)
    try:
        yield
    finally:
        proxy.stop()


def run(lab: Lab, report: Callable[[str], None], chosen: Sequence[Case]) -> tuple[list[str], int]:
    """The table, and how many of the cases the gateway failed."""
    for case in chosen:
        for side, party in case.parties.items():
            prefix = ["64", "nodad"] if ":" in party.host else ["24"]
            lab.run(side, ["ip", "address", "add", f"{party.host}/{prefix[0]}", *prefix[1:], "dev", "eth0"])
    repaired = [case.parties["outside"].host for case in chosen if case.scenario.name == "stand-down-repaired"]
    ways = {"plain NAT": nothing, "nf_nat_sip": kernel_helper, "algate": _gateway(repaired)}
    if RTPENGINE:
        ways[PROXY] = outbound_proxy
    results: dict[tuple[str, Case], str] = {}
    for name, prepare in ways.items():
        lab.run("router", ["conntrack", "-F"])  # a connection keeps the way that it began with
        with prepare(lab), ThreadPoolExecutor(AT_ONCE) as pool:
            futures = {case: pool.submit(_play, lab, case, name == PROXY) for case in chosen}
        for case, future in futures.items():
            results[name, case], more = future.result()
            report(f"{name}: {case.scenario.name}, {case.transport}: {results[name, case]}: {more}")
    lines = ["| call | over | " + " | ".join(ways) + " |", "| --- " * (2 + len(ways)) + "|"]
    for case in chosen:
        cells = [results[name, case] for name in ways]
        over = {"udp6": "UDP, IPv6"}.get(case.transport, case.transport.upper())
        lines.append(f"| {case.scenario.title} | {over} | {' | '.join(cells)} |")
    said = [[results[name, case] for case in chosen] for name in ways]
    lines.append(_total(said))
    return lines, sum(results["algate", case] != "yes" for case in chosen)


def _play(lab: Lab, case: Case, by_proxy: bool) -> tuple[str, str]:
    """What is to be said of it in the table, and more of it in a line."""
    v6 = case.transport == "udp6"
    scenario, proxy = case.scenario, ""
    if by_proxy:
        if scenario.untouched:
            return "–", "what passes untouched passes no proxy"
        proxy = f"[{ROUTER_IN6}]" if v6 else ROUTER_IN4
        steps = [step for step in scenario.steps if not (isinstance(step, Message) and step.status == 100)]
        scenario = dataclasses.replace(scenario, steps=steps)  # 100 is of one hop only
    router, stranger = (ROUTER_OUT6, STRANGER6) if v6 else (ROUTER_OUT4, STRANGER4)
    try:
        play(lab, scenario, case.transport[:3], case.parties, router, stranger, lambda _: [], LONGEST, proxy)
    except (AssertionError, LabError, OSError) as error:
        text = str(error)
        before, became, after = text.partition("\nbecame\n")
        if became:
            changed = [line for line in after.splitlines() if line not in before.splitlines()]
            return "wrong edits", "; ".join(changed)[:160]
        return next((said for sign, said in _SAID.items() if sign in text), "no"), text[:160].replace("\n", " ")
    return "yes", ""


# What is wrong with a call that came about, by the words of its judge.
_SAID = {
    "media after the end": "stays open",
    "a stranger's media": "lets strangers in",
    "a body to inside": "wrong edits",
}


def _renewed(table: str, lines: list[str]) -> str:
    """The table with these rows in place of its own. Raises ValueError where it has other columns or not that row."""
    found = table.splitlines()
    if found[0] != lines[0]:
        raise ValueError(f"the table has other columns: {found[0]}")
    for line in lines[2:-1]:
        key = line.split(" | ")[:2]
        (at,) = [number for number, row in enumerate(found) if row.split(" | ")[:2] == key]
        found[at] = line
    rows = [row.strip("|").split("|") for row in found[2:-1]]
    totals = [[row[column].strip() for row in rows] for column in range(2, len(rows[0]))]
    found[-1] = _total(totals)
    return "\n".join(found)


def _total(columns: list[list[str]]) -> str:
    """The last row of a table with these columns."""
    texts = [
        f"{column.count('yes')}" + (f" of {len(column) - column.count('–')}" if "–" in column else "")
        for column in columns
    ]
    return f"| **of {len(columns[0])}** | | {' | '.join(texts)} |"


def main(arguments: list[str]) -> int:
    """Play all, or those that are named; the exit code."""
    began = time.monotonic()
    only = arguments[arguments.index("--only") + 1 :] if "--only" in arguments else []
    chosen = [case for case in cases() if not only or case.scenario.name in only]
    with Lab() as lab:
        lines, failed = run(lab, lambda line: print(line, file=sys.stderr, flush=True), chosen)
    text = "\n".join(lines)
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if "--check" not in arguments:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN)], page[page.index(END) :]
        if only:
            text = _renewed(page[len(before) + len(BEGIN) : page.index(END)].strip(), lines)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{after}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
