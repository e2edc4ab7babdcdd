"""What servers of the field say, as tests/wire/field/ftp has it, between real sockets: the data connection has to come
about on a router that forwards nothing by itself."""

from __future__ import annotations

import ast
import contextlib
import re
import socket
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from alg.api import Received, Side
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, Lab
from tests.net.ftp_script import PORT, Script, script
from tests.net.socks_wire import ask5
from tests.wire.dialogue import Step, read
from tests.wire.ftp.test_ftp_corpus import FIELD, FTP

DATA = b"a listing\r\n"


def in_the_lab(path: Path) -> bool:
    """Whether it is the plain set-up: a client inside, a server outside, IPv4, no options."""
    return not re.search(r"^(flow|published|transfers|options)\b", path.read_text(), re.MULTILINE)


FILES = [path for path in sorted(FIELD.glob("*.dialogue")) if in_the_lab(path)]


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"ports": [21, PORT]}}))
    yield gateway
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.admin("pinholes") == []
    assert gateway.stop() == 0, strict_lab.tail_of_logs()
    assert strict_lab.leftovers() == []


def here(data: bytes) -> bytes:
    """With the address of the lab's server, 203.0.113.10, for that of the corpus, 203.0.113.5."""
    return re.sub(rb"(113[ ]*,[ ]*)0*5(?=[ ]*,)", rb"\g<1>10", data)


def exchanges(steps: list[Step]) -> Iterator[tuple[Received, list[str]]]:
    """Each piece of data, and all that has to come of it, when its pinholes are open too."""
    count = 0

    def piece_of(step: Step) -> int:
        nonlocal count
        count += isinstance(step.event, Received)
        return count

    for _, group in groupby(steps, piece_of):
        together = list(group)
        said = together[0].event
        assert isinstance(said, Received)
        yield said, [line for step in together for line in step.expected]


def play(lab: Lab, gateway: Gateway, session: Script, said: Received, expected: list[str], socks: bool) -> None:
    ends = {"client": session.client.socket, "server": session.server}
    with contextlib.ExitStack() as stack:
        listeners = {}
        for line in expected:
            if found := re.match(r"(out|open) \d+ [^ ]*:(\d+) ", line):
                with lab.enter("outside" if found[1] == "out" else "inside"):
                    listener = socket.create_server((SERVER4 if found[1] == "out" else CLIENT4, int(found[2])))
                listener.settimeout(5)
                listeners[found[1]] = stack.enter_context(listener)
        ends[said.side].sendall(here(said.data))
        for line in expected:
            word, _, rest = line.partition(" ")
            if word in ("client", "server"):
                want, got = here(ast.literal_eval(rest)), b""
                ends[word].settimeout(10)
                if word == "server" and "open" in listeners:
                    lead_to_client(lab, session, want, listeners["open"])
                    continue
                while len(got) < len(want):
                    more = ends[word].recv(len(want) - len(got))
                    assert more, f"end of stream after {got!r}"
                    got += more
                assert got == want
            elif word in ("note", "revoke"):
                gateway.wait_for_log(f"alg.{word}.*{rest}")
        if "out" in listeners:
            port = listeners["out"].getsockname()[1]
            host, at = (ROUTER_IN4, 1080) if socks else (SERVER4, port)
            with lab.connect("inside", host, at, timeout=5) as data:
                if socks:
                    assert ask5(data, SERVER4, port)[0] == 0
                exchange(listeners["out"].accept()[0], data)


def lead_to_client(lab: Lab, session: Script, want: bytes, listener: socket.socket) -> None:
    """The server gets what `want` is but for the endpoint, and connects to that."""
    line = session.line()
    verb, *numbers = re.split(rb"[ ,|\r\n]+", line)
    assert verb == want.split(b" ")[0]
    if verb == b"PORT":
        host, port = ".".join(number.decode() for number in numbers[:4]), int(numbers[4]) * 256 + int(numbers[5])
    else:
        host, port = numbers[1].decode(), int(numbers[2])
    with lab.connect("outside", host, port, timeout=5) as data:
        exchange(data, listener.accept()[0])


def exchange(sender: socket.socket, receiver: socket.socket) -> None:
    with sender, receiver:
        sender.sendall(DATA)
        receiver.settimeout(5)
        assert receiver.recv(100) == DATA


@pytest.mark.parametrize("socks", [False, True], ids=["transparent", "socks"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_over_the_wire(strict_lab: Lab, gateway: Gateway, path: Path, socks: bool) -> None:
    with script(strict_lab, gateway, greet=False, settle=False, socks=socks) as session:
        for said, expected in exchanges(read(path, FTP).steps):
            play(strict_lab, gateway, session, said, expected, socks)


def test_there_are_many() -> None:
    assert len(FILES) > 30
    assert {Side.CLIENT, Side.SERVER} == set(Side)
