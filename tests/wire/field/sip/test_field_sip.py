"""Plays every file of this folder over UDP and TCP. The format: tests/wire/field/sip/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.address import Endpoint
from alg.api import (
    Bypass,
    Deliver,
    FindSocket,
    FlowContext,
    Note,
    OpenConversation,
    Opened,
    Received,
    Refused,
    UpdateConversation,
    apply_edits,
)
from alg.datagrams import Datagram, Release
from alg.sip.tcp import SipModule
from alg.sip.udp import SipEngine
from tests.lab.field_sip import FILES, Field, Said

CLIENT, SERVER = Endpoint("10.71.0.10", 5060), Endpoint("198.51.100.10", 5060)
CONNECTION = Endpoint("10.71.0.10", 51000)  # what the phone's TCP connection comes from
PUBLIC = Endpoint("198.51.100.1", 40000)
PORTS = {5060: 40000, 4000: 40002, 4010: 40004}
OUTSIDE = {
    "phone": str(PUBLIC), "host": str(PUBLIC), "received": PUBLIC.host, "rport": "40000", "address": PUBLIC.host,
    "rtp": "40002", "rtcp": "40003", "video": "40004", "vrtcp": "40005",
}  # fmt: skip
INSIDE = {
    "phone": str(CLIENT), "host": CLIENT.host, "received": CLIENT.host, "address": CLIENT.host,
    "rtp": "4000", "rtcp": "4001", "video": "4010", "vrtcp": "4011",
}  # fmt: skip


def came_and_goes(case: Field, said: Said, sent_from: Endpoint) -> tuple[bytes, bytes]:
    return case.came_and_goes(said, {**INSIDE, "rport": str(sent_from.port)}, OUTSIDE)


def public(target: Endpoint) -> Endpoint:
    return Endpoint(PUBLIC.host, PORTS[target.port])


class Peers:
    """Who may send media in."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[str, ...] | None] = {}
        self._media: set[int] = set()

    def see(self, command: object) -> None:
        if isinstance(command, OpenConversation) and command.reason != "sip.signalling":
            self._media.add(command.ref)
            self.found[command.ref] = command.peers
        elif isinstance(command, UpdateConversation) and command.ref in self._media:
            self.found[command.ref] = command.peers

    def text(self) -> str:
        hosts = {host for peers in self.found.values() for host in peers or ()}
        return " ".join(sorted(hosts)) or "nobody"


@pytest.mark.parametrize("path", [path for path in FILES if Field(path).goes_over("udp")], ids=lambda path: path.stem)
def test_over_udp(path: Path) -> None:
    case, engine, peers = Field(path), SipEngine(), Peers()
    for number, said in enumerate(case.said):
        came, goes = came_and_goes(case, said, CLIENT)
        commands = list(engine.handle(Datagram(number, said.side, CLIENT, SERVER, came, float(number))))
        heard = []
        codes = [command.code for command in commands if isinstance(command, Note)]
        if said.right == "ignored":
            assert commands == [Release(number)]
        while commands:
            command = commands.pop(0)
            peers.see(command)
            if isinstance(command, OpenConversation):
                assert said.right == "edited"
                commands += engine.handle(Opened(command.ref, public(command.target), float(number)))
            elif isinstance(command, Release):
                heard.append(apply_edits(came, command.edits))
        assert heard == [goes]
        assert ("sip.unread" in codes or number > 0) if said.right == "untouched" else "sip.unread" not in codes
    if "peers" in case.about:
        assert peers.text() == case.about["peers"]


def over_tcp(case: Field, cut: int) -> tuple[list[bytes], str]:
    """What each message became when it was cut at `cut`, and who may send media in."""
    module, peers = SipModule(FlowContext(CONNECTION, SERVER, public=PUBLIC)), Peers()
    heard = []
    for number, said in enumerate(case.said):
        came, _ = came_and_goes(case, said, CONNECTION)
        out = b""
        for piece in (came[:cut], came[cut:]):
            commands = list(module.handle(Received(said.side, piece, float(number)))) if piece else []
            while commands:
                command = commands.pop(0)
                peers.see(command)
                assert not isinstance(command, Bypass)
                if isinstance(command, FindSocket):
                    commands += module.handle(Refused(command.ref, "none", float(number)))
                elif isinstance(command, OpenConversation):
                    assert said.right == "edited"
                    commands += module.handle(Opened(command.ref, public(command.target), float(number)))
                elif isinstance(command, Deliver):
                    assert command.to is said.side.other
                    out += apply_edits(command.data, command.edits)
        heard.append(out)
    return heard, peers.text()


@pytest.mark.parametrize("path", [path for path in FILES if Field(path).goes_over("tcp")], ids=lambda path: path.stem)
def test_over_tcp_however_it_is_cut(path: Path) -> None:
    case = Field(path)
    wanted = [came_and_goes(case, said, CONNECTION)[1] for said in case.said]
    longest = max(len(came_and_goes(case, said, CONNECTION)[0]) for said in case.said)
    for cut in range(longest):
        heard, peers = over_tcp(case, cut)
        assert heard == wanted, f"cut at {cut}"
        assert peers == case.about.get("peers", peers)


def test_each_says_where_it_was_seen() -> None:
    for path in FILES:
        about = Field(path).about
        assert about["source"], path.name
        assert about["what"], path.name
        assert about["right"] in ("edited", "untouched", "ignored"), path.name
    assert len(FILES) > 50
