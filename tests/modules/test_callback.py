"""The module of docs/how-to/add-a-protocol.md: what the page prints is this file, and it works on a router."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st

import alg.datagrams
from alg.address import Endpoint
from alg.api import (
    Bypass,
    Command,
    Deliver,
    FlowContext,
    Opened,
    OpenPinhole,
    Received,
    Refused,
    Revoke,
    Side,
    apply_edits,
)
from tests.modules.callback_alg import CallbackModule

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "how-to" / "add-a-protocol.md"
BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)
PORT = 7099
CLIENT, SERVER = Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.10", PORT)


def test_the_page_prints_the_module() -> None:
    printed, _ = BLOCKS.findall(PAGE.read_text())
    assert printed == (HERE / "callback_alg.py").read_text()


def test_the_printed_module_of_datagrams_works() -> None:
    _, printed = BLOCKS.findall(PAGE.read_text())
    names: dict[str, Any] = {**vars(alg.datagrams), "ClassVar": ClassVar}
    exec(printed, names)
    module = names["EchoModule"](alg.datagrams.DatagramContext())
    shown = alg.datagrams.Datagram(7, Side.CLIENT, CLIENT, SERVER, b"hello", 0.0)
    assert module.handle(shown) == [alg.datagrams.Release(7)]
    assert module.deadline() is None


def talk(pieces: list[bytes], opened: bool = True) -> tuple[bytes, list[Command]]:
    """What the server reads, and all commands, where each pinhole is opened at once (or refused)."""
    module = CallbackModule(FlowContext(CLIENT, SERVER))
    commands: list[Command] = []
    for piece in pieces:
        new = list(module.handle(Received(Side.CLIENT, piece, 0.0)))
        while new:
            command = new.pop(0)
            commands.append(command)
            if isinstance(command, OpenPinhole):
                answer = (
                    Opened(command.ref, Endpoint("198.51.100.1", 43210), 0.0) if opened else Refused(1, "full", 0.0)
                )
                new += module.handle(answer)
    delivered = [command for command in commands if isinstance(command, Deliver)]
    return b"".join(apply_edits(command.data, command.edits) for command in delivered), commands


TEXT = b"HELLO\r\nCALL 192.168.56.10:7100\r\nBYE\r\n"


@given(st.lists(st.integers(0, len(TEXT)), max_size=5), st.booleans())
def test_however_it_is_cut(cuts: list[int], opened: bool) -> None:
    ends = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(ends) if a < b]
    wanted = TEXT.replace(b"192.168.56.10:7100", b"198.51.100.1:43210") if opened else TEXT
    assert talk(pieces, opened)[0] == wanted


def test_a_third_host_is_never_opened() -> None:
    text = b"CALL 192.168.56.99:22\r\nCALL 192.168.56.10:7100\r\n"
    said, commands = talk([text])
    assert said == text
    assert [type(command) for command in commands] == [Revoke, Deliver, Bypass]
