"""`python -m tests.conformance.sip_field`: what phones, cameras and servers of the field say, with the gateway, the
kernel's helper and neither; every file of tests/wire/field/sip, really played.

Needs root. Writes the table into docs/protocols/sip.md, between the lines that mark it; with `--check` it does not.
Exit code 1 where the gateway is worse than one of the others, or not right.
"""

from __future__ import annotations

import sys
import time

from tests.conformance.sip import PAGE, kernel_helper, nothing
from tests.lab import field_wire
from tests.lab.lab import Lab

BEGIN, END = "<!-- table: made by python -m tests.conformance.sip_field -->", "<!-- end of the field's table -->"
PATIENCE = 0.8  # seconds: what has not come by then, does not
ALGATE = "algate"


def verdict(outcome: field_wire.Outcome, passes: bool) -> str:
    """A cell. `passes`: the message is one that must arrive as it was."""
    if not outcome.arrived:
        return "does not arrive"
    if passes and outcome.exact:
        return "changed"
    if outcome.media is False:
        return "no media"
    return "not reached" if outcome.reached is False else "yes"


def run(lab: Lab) -> tuple[list[str], int]:
    """The table, and in how many rows the gateway is not right."""
    cases = list(field_wire.cases())
    field_wire.prepare(lab, len(cases))
    cells: dict[tuple[str, int], str] = {}
    failed = 0
    config = lab.write_config(network={"inside": [field_wire.NETWORK]})
    for way in ("plain NAT", "nf_nat_sip", ALGATE):
        lab.run("router", ["conntrack", "-F"])
        gateway = lab.start_gateway(config) if way == ALGATE else None
        with kernel_helper(lab) if way == "nf_nat_sip" else nothing(lab):
            for number, (case, name, transport) in enumerate(cases):
                outcome = field_wire.play(lab, case, transport, number, 3.0 if gateway else PATIENCE)
                passes = all(said.right != "edited" for said in case.said)
                cells[way, number] = said = verdict(outcome, passes)
                if gateway and (outcome.exact or said != "yes"):
                    failed += 1
                    cells[way, number] = said if said != "yes" else "wrong edits"
                print(f"{way}: {name}, {transport}: {cells[way, number]}", file=sys.stderr, flush=True)
        if gateway is not None:
            gateway.stop()
    ways = list(dict.fromkeys(way for way, _ in cells))
    lines = ["| what | seen at | over | " + " | ".join(ways) + " |", "| --- " * (3 + len(ways)) + "|"]
    for number, (case, _, transport) in enumerate(cases):
        row = [case.about["what"].replace("|", "\\|"), case.about["source"], transport.upper()]
        lines.append(f"| {' | '.join([*row, *(cells[way, number] for way in ways)])} |")
    totals = [str(sum(cells[way, number] == "yes" for number in range(len(cases)))) for way in ways]
    lines.append(f"| **of {len(cases)}** | | | {' | '.join(totals)} |")
    return lines, failed


def main(arguments: list[str]) -> int:
    """Play all; the exit code."""
    began = time.monotonic()
    with Lab() as lab:
        lines, failed = run(lab)
    text = "\n".join(lines)
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if "--check" not in arguments:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{after}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
