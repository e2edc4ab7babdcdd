"""What FTP costs: CPU time against size, for what a stranger may send. It has to be linear and small."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from alg.address import Endpoint
from alg.api import Deliver, FlowContext, Received, Side
from alg.ftp.addresses import find_epsv_port, find_pasv_endpoint
from alg.ftp.session import FtpModule

CLIENT, SERVER = Side.CLIENT, Side.SERVER
CONTEXT = FlowContext(Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 21))
READ = 16384  # bytes at a time
SIZE = 80_000
MOST = 2e-6  # seconds a byte; today it is less than a quarter of that for the worst, and 22e-6 was the fault


@dataclass(frozen=True)
class Flood:
    """`unit`, again and again, from `side`; `before` is what was said first, after a login if there was one."""

    name: str
    side: Side
    unit: bytes
    before: tuple[tuple[Side, bytes], ...] = ()
    login: bool = True

    def data(self, size: int) -> bytes:
        return self.unit * max(2, size // len(self.unit))


FLOODS = [
    Flood("one letter a line", CLIENT, b"A\n"),
    Flood("blank lines", CLIENT, b"\n"),
    Flood("blank lines before anything else", CLIENT, b"\r\n", login=False),
    Flood("commands", CLIENT, b"NOOP\r\n"),
    Flood("Telnet", CLIENT, b"\xff\n"),
    Flood("more Telnet", CLIENT, b"\xff\xfb\xff\xf4\xf2\n"),
    Flood("PASV", CLIENT, b"PASV\n"),
    Flood("PORT that names nobody", CLIENT, b"PORT 1,2\n"),
    Flood("EPSV ALL", CLIENT, b"EPSV ALL\n"),
    Flood("AUTH", CLIENT, b"AUTH\n"),
    Flood("REIN", CLIENT, b"REIN\n"),
    Flood("nearly a verb", CLIENT, b"POR\n"),
    Flood("an endless line", CLIENT, b"a"),
    Flood("long lines", CLIENT, b"NOOP " + b"x" * 4091 + b"\n"),
    Flood("lines just below the bound", CLIENT, b"NOOP " + b"x" * 4090 + b"\n\n"),
    Flood("blank lines of a server", SERVER, b"\n"),
    Flood("replies that nobody waits for", SERVER, b"200\n"),
    Flood("227 that nobody waits for", SERVER, b"227 (203,0,113,5,117,50)\r\n"),
    Flood("answers", SERVER, b"200 ok\r\n", ((CLIENT, b"NOOP\r\n" * 100_000),)),
    Flood("a 227 behind 200,000 commands", SERVER, b"227 x\r\n", ((CLIENT, b"A\n" * 200_000 + b"PASV\n"),)),
    Flood("ends of transfers", SERVER, b"226\n", ((CLIENT, b"NOOP\r\n" * 100_000),)),
    Flood("a reply of very many lines", SERVER, b"211-a\r\n"),
    Flood("a 227 of very many lines", SERVER, b"227-a\r\n", ((CLIENT, b"PASV\r\n"),)),
    Flood("a greeting of very many lines", SERVER, b"220-a\r\n", login=False),
    Flood("refusals before a greeting", SERVER, b"500\n", login=False),
    Flood("text before a greeting", SERVER, b"a\n", login=False),
    Flood("replies of two lines", SERVER, b"211-\n211 \n"),
    Flood("227 of two lines", SERVER, b"227-\n227 \n"),
    Flood(
        "records of TLS",
        CLIENT,
        b"\x17\x03\x03\x00\x01a",
        ((CLIENT, b"AUTH TLS\r\n"), (SERVER, b"234 go\r\n"), (CLIENT, b"\x16\x03\x01\x00\x01a")),
    ),
    Flood("replies that end with another code", SERVER, b"211-\n212 \n"),
]


def greeted(login: bool) -> FtpModule:
    module = FtpModule(CONTEXT)
    if login:
        module.handle(Received(SERVER, b"220 ready\r\n", 0))
        module.handle(Received(CLIENT, b"USER ann\r\n", 0))
        module.handle(Received(SERVER, b"230 in\r\n", 0))
    return module


def cost(flood: Flood, size: int, read: int) -> float:
    """CPU seconds a byte. Every byte has to come out, or to be the beginning of a line."""
    module = greeted(flood.login)
    for side, said in flood.before:
        module.handle(Received(side, said, 0))
    data = flood.data(size)
    out = 0
    began = time.thread_time()
    for at in range(0, len(data), read):
        for command in module.handle(Received(flood.side, data[at : at + read], at * 1e-6)):
            if isinstance(command, Deliver):
                out += len(command.data)
        module.deadline()
    took = time.thread_time() - began
    assert len(data) - 4096 <= out <= len(data)
    return took / len(data)


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name)
def test_a_flood_is_cheap_and_linear(flood: Flood) -> None:
    small = min(cost(flood, SIZE // 4, READ) for _ in range(3))
    large = min(cost(flood, SIZE, READ) for _ in range(3))
    assert large < MOST
    assert large < 3 * small + 100e-9  # of a byte: four times as many, and it costs no more


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name)
def test_in_small_pieces_it_depends_on_their_number_only(flood: Flood) -> None:
    assert min(cost(flood, 3000, 1) for _ in range(2)) < 60e-6
    assert min(cost(flood, 16000, 16) for _ in range(2)) < 6e-6


@pytest.mark.parametrize(
    "unit",
    [b"1,", b"1 , ", b"1,,", b"-1,", b"1   ,", b"::1,", b":", b"1.", b"|", b"| ", b"(|||", b"(", b"( ", b"a", b"1"],
)
def test_the_search_for_an_endpoint_is_linear(unit: bytes) -> None:
    def seconds(size: int) -> float:
        line = b"227 " + unit * (size // len(unit)) + b"\r\n"
        began = time.thread_time()
        for find in (find_pasv_endpoint, find_epsv_port):
            with pytest.raises(ValueError, match=r"."):
                find(line)
        return time.thread_time() - began

    assert min(seconds(4000) for _ in range(3)) < 0.01
    assert min(seconds(40000) for _ in range(3)) < 25 * min(seconds(4000) for _ in range(3)) + 0.002


def test_a_pair_of_command_and_reply_is_cheap() -> None:
    module = greeted(True)
    count = 2000
    began = time.thread_time()
    for number in range(count):
        module.handle(Received(CLIENT, b"PASV\r\n", number / 500))
        module.handle(Received(SERVER, b"500 no\r\n", number / 500))
    assert (time.thread_time() - began) / count < 300e-6
