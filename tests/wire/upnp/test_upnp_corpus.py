"""The dialogues in this folder: as written, and byte by byte. README.md says how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alg.address import Endpoint
from gateway.front.portmap.table import MappingLimits, MappingRequest
from tests.wire import script
from tests.wire.script import Line
from tests.wire.upnp.play import OWN, House, filled, found_by, outcome, service_of, soap_request

FILES = sorted(Path(__file__).parent.glob("*.dialogue"))


class UpnpPlayer:
    """UPnP: requests to the pages of the gateway, in pieces of `cut` bytes."""

    def __init__(self, cut: int) -> None:
        self.house = House(MappingLimits(per_client=4))
        self.client, self.own = "192.168.56.10", OWN
        self.device, self.service = service_of("WANIPConnection:1")
        self.announced = [1, 2]
        self.cut = cut
        self.said: list[str] = []
        self.body = b""

    def set(self, word: str, rest: str) -> None:
        match word:
            case "client":
                self.client = rest
            case "own":
                host, _, port = rest.rpartition(":")
                self.own = Endpoint.of(host.strip("[]"), int(port))
            case "service":
                self.device, self.service = service_of(rest)
            case "announced":
                self.announced = [int(version) for version in rest.split()]
            case "taken":
                transport, port = rest.split()
                assert transport in ("tcp", "udp")
                self.house.broker.taken.add(("tcp" if transport == "tcp" else "udp", int(port)))
            case "pcp":
                host, port = rest.split()
                self.house.broker.map(
                    MappingRequest(
                        client=host, transport="tcp", port=int(port), holder="pcp", lifetime=600, credential="n"
                    )
                )
            case "address":
                self.house.facts.address = rest.strip('"')
            case "==":
                assert ", ".join(self.house.mappings()) == ("" if rest == "nothing" else rest)
            case "packets":
                self.house.facts.came = int(rest)
            case _:
                raise AssertionError(word)

    def happens(self, event: Line) -> list[str]:
        self.said = []
        self.do(event.word, event.rest)
        return self.said

    def wanted(self, line: Line) -> str:
        return line.text

    def do(self, word: str, rest: str) -> None:
        match word:
            case "ask":
                action, *given = rest.split("\t") if "\t" in rest else rest.split(" ")
                pairs = dict(pair.split("=", 1) for pair in given if pair)
                self.send(soap_request(self.device, self.service, action, pairs, self.own))
            case "body":
                self.body = filled(rest, self.device, self.service, lambda: b"")
            case "raw":
                self.send(filled(rest, self.device, self.service, lambda: self.body))
            case "search":
                self.said = found_by(rest.encode("latin-1").decode("unicode_escape").encode("latin-1"), self.announced)
            case "pass":
                self.house.broker.now += float(rest)
                self.house.broker.table.expire(self.house.broker.now)
            case _:
                raise AssertionError(word)

    def send(self, data: bytes) -> None:
        self.said = [outcome(self.house.say(self.pieces(data), self.client, self.own))]

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), self.cut):
            yield data[at : at + self.cut]


@pytest.mark.parametrize("cut", [1, 7, 4096])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path: Path, cut: int) -> None:
    script.play(path, UpnpPlayer(cut))


def test_there_are_dialogues() -> None:
    assert len(FILES) > 20
