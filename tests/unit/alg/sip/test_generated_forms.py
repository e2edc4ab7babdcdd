"""What makers' phones say (tests/wire/field/sip), said in other forms that mean the same: edited all the same.

Names of headers in any case, compact or long, blanks and folds where the grammar has them, parameters in another order
and others beside them, headers that nobody knows, line ends of LF alone.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from alg.api import Bypass, Deliver, FindSocket, FlowContext, OpenConversation, Opened, Received, Refused, apply_edits
from alg.datagrams import Datagram, Release
from alg.sip.tcp import SipModule
from alg.sip.udp import SipEngine
from tests.lab.field_sip import FILES, Field
from tests.wire.field.sip.test_field_sip import CLIENT, CONNECTION, INSIDE, OUTSIDE, PUBLIC, SERVER, public

MAKERS = [path for path in FILES if path.stem.startswith("maker-") and Field(path).about["right"] == "edited"]
SEEDS = 40
COMPACT = {
    "via": "v", "from": "f", "to": "t", "call-id": "i", "contact": "m", "content-length": "l", "content-type": "c",
    "supported": "k", "subject": "s",
}  # fmt: skip
LONG = {short: name for name, short in COMPACT.items()}
STRANGE = [
    "X-Nobody: \xe4\xf6 <sip:mallory@10.71.0.66>;tag=, \"open",
    "Alert-Info: <http://10.71.0.10/ring.wav>;info=alert-internal",
    "P-Asserted-Identity: \"A, B\" <sip:alice@10.71.0.10>, <tel:+4930123>",
    "Call-Info: <sip:10.71.0.10>;method=\"NOTIFY;Event=telephone-event;Duration=500\"",
    "Date: 31.02.2026",
    "no colon at all",
    "Authorization: Digest username=\"alice\",realm=\"x\",nonce=\"\\\"\",uri=\"sip:example.com\",response=\"00\"",
    "Geolocation: <cid:target123@10.71.0.10>",
    "Max-Forwards: seventy",
    "X-Empty:",
]  # fmt: skip
PARAMS = [";x-nobody", ";x=1", ';x="a;b,c>d"', ";", ";x=", ";+g.3gpp.smsip", ';+sip.instance="<urn:uuid:0-1>"']


def words_of(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


class Forms:
    """Says heads in another form."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def head(self, lines: list[str]) -> list[str]:
        """Header lines (no start line) in other words."""
        said = [self.line(line) for line in lines]
        if self.chance.randrange(3) == 0:  # Vias stay in their order
            vias = [line for line in said if words_of(line)[0].lower() in ("via", "v")]
            others = [line for line in said if line not in vias]
            self.chance.shuffle(others)
            at = self.chance.randrange(len(others) + 1)
            said = [*others[:at], *vias, *others[at:]]
        for _ in range(self.chance.randrange(3)):
            said.insert(self.chance.randrange(len(said) + 1), self.chance.choice(STRANGE))
        return said

    def line(self, line: str) -> str:
        name, value = words_of(line)
        if not value or ":" not in line:
            return line
        lower = name.lower()
        match self.chance.randrange(4):
            case 0:
                name = COMPACT.get(lower, LONG.get(lower, name))
            case 1:
                name = "".join(self.chance.choice((letter.upper(), letter.lower())) for letter in name)
        full = LONG.get(name.lower(), name.lower())
        if full in ("via", "contact", "from", "to") and self.chance.randrange(3) == 0:
            value = self.params(full, value)
        colon = self.chance.choice([":", ": ", ":  ", ":\t", " : ", "\t:"])
        if full != "content-length" and self.chance.randrange(6) == 0:
            value = value.replace(" ", "\\r\\n ", 1) if " " in value and '"' not in value else value
        if self.chance.randrange(8) == 0:
            value += " "
        return name + colon + value

    def params(self, name: str, value: str) -> str:
        """Parameters in another order, and others beside them; where there is one value and no quotes."""
        if '"' in value or "," in value:
            return value
        before, bracket, behind = value.rpartition(">")
        if name == "via":
            before, bracket, behind = value.partition(";")[0], "", value[len(value.partition(";")[0]) :]
        elif not bracket:
            return value
        found = [f";{each}" for each in behind.split(";")[1:]]
        found.insert(self.chance.randrange(len(found) + 1), self.chance.choice(PARAMS))
        if name == "via":
            self.chance.shuffle(found)
        return before + bracket + "".join(found)


def said_otherwise(path: Path, seed: int) -> Field:
    """The file, each message in other forms; what is edited is the same."""
    case, forms = Field(path), Forms(random.Random(f"{path.stem} {seed}"))
    if forms.chance.randrange(4) == 0:
        case.end = b"\n"
    for said in case.said:
        split = said.lines.index("")
        said.lines[1:split] = forms.head(said.lines[1:split])
    return case


def goes(case: Field, number: int, rport: str) -> tuple[bytes, bytes]:
    return case.came_and_goes(case.said[number], {**INSIDE, "rport": rport}, OUTSIDE)


@pytest.mark.parametrize("path", MAKERS, ids=lambda path: path.stem)
def test_over_udp(path: Path) -> None:
    for seed in range(SEEDS):
        case, engine = said_otherwise(path, seed), SipEngine()
        if not case.goes_over("udp"):
            return
        for number, said in enumerate(case.said):
            came, wanted = goes(case, number, str(CLIENT.port))
            commands = list(engine.handle(Datagram(number, said.side, CLIENT, SERVER, came, float(number))))
            heard = []
            while commands:
                command = commands.pop(0)
                if isinstance(command, OpenConversation):
                    commands += engine.handle(Opened(command.ref, public(command.target), float(number)))
                elif isinstance(command, Release):
                    heard.append(apply_edits(came, command.edits))
            assert heard == [wanted], f"seed {seed}\n{came.decode('latin-1')}"


@pytest.mark.parametrize("path", MAKERS, ids=lambda path: path.stem)
def test_over_tcp(path: Path) -> None:
    for seed in range(SEEDS):
        case = said_otherwise(path, seed)
        if not case.goes_over("tcp"):
            return
        chance = random.Random(seed)
        module = SipModule(FlowContext(CONNECTION, SERVER, public=PUBLIC))
        for number, said in enumerate(case.said):
            came, wanted = goes(case, number, str(CONNECTION.port))
            cut = chance.randrange(len(came))
            out = b""
            for piece in (came[:cut], came[cut:]):
                commands = list(module.handle(Received(said.side, piece, float(number)))) if piece else []
                while commands:
                    command = commands.pop(0)
                    assert not isinstance(command, Bypass), f"seed {seed}\n{came.decode('latin-1')}"
                    if isinstance(command, FindSocket):
                        commands += module.handle(Refused(command.ref, "none", float(number)))
                    elif isinstance(command, OpenConversation):
                        commands += module.handle(Opened(command.ref, public(command.target), float(number)))
                    elif isinstance(command, Deliver):
                        out += apply_edits(command.data, command.edits)
            assert out == wanted, f"seed {seed}\n{came.decode('latin-1')}"
