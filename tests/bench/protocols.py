"""RTSP, IRC, TFTP, BitTorrent and PPTP: `sudo .venv/bin/python -m tests.bench.protocols [--rounds N] [--seconds S]`.

What goes through what a module has opened, beside the same without the gateway, in one run and in turns: streams of
RTSP inside its own connection beside the plain relay (both through SOCKS, one worker), datagrams of RTSP, a file by
DCC, and blocks of TFTP beside plain NAT. Then messages a second of each pure module, in CPU time. Prints Markdown; of
what could not be measured, why.

`--only WORD`: rows with this word. `--messages`: only the modules, which needs no root.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from alg.address import Endpoint
from alg.api import (
    AlgModule,
    Event,
    FlowContext,
    OpenConversation,
    Opened,
    OpenGre,
    OpenMapping,
    OpenPinhole,
    Probe,
    Received,
    Side,
)
from alg.bittorrent.http import BittorrentModule
from alg.bittorrent.udp import AnnounceModule
from alg.datagrams import Datagram, DatagramContext, DatagramEvent, DatagramModule
from alg.irc.module import IrcModule
from alg.pptp.module import PptpModule
from alg.rtsp.module import RtspModule
from alg.tftp.module import TftpModule
from alg.tftp.options import TftpOptions
from tests.bench.sip_calls import figures
from tests.conformance.ways import by_socks, direct
from tests.lab import pptp_text
from tests.lab.bittorrent import http_announce, http_answer, udp_announce, udp_connect
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, Lab, LabError
from tests.lab.udp import Udp

HERE = Path(__file__).parent
RTSP, IRC, TFTP, PLAIN, MEDIA, FILES = 554, 6667, 69, 7041, 5000, 5200
BLOCK, BLOCKS = 1428, 16000  # bytes of a block of TFTP, and how many are fetched at a time
PROGRAM = "sip_load"  # floods, and counts

# --- both ends of what is measured, as programs of their own --------------------------------------------------------

_SOURCE = """
import socket, sys, threading
frame = b"$\\0\\5\\x78" + bytes(1400)
block = frame * 180
def serve(connection):
    try:
        while True:
            head = b""
            while not head.endswith(b"\\r\\n\\r\\n"):
                more = connection.recv(4096)
                if not more:
                    return
                head += more
            if not head.startswith(b"GO"):
                line = head.split(b"\\r\\n")[1:-2]
                connection.sendall(b"RTSP/1.0 200 OK\\r\\nSession: 7\\r\\n" + b"\\r\\n".join(line) + b"\\r\\n\\r\\n")
            if not head.startswith(b"SETUP"):
                while True:
                    connection.sendall(block)
    except OSError:
        pass
def listen(port):
    listener = socket.create_server((sys.argv[1], port))
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
for port in sys.argv[3:]:
    threading.Thread(target=listen, args=[int(port)], daemon=True).start()
listen(int(sys.argv[2]))
"""
_FILE = """
import socket, sys, time
role, way, host, port, seconds = sys.argv[1:]
if role == "listen":
    listener = socket.create_server((host, int(port)))
    print("ready", flush=True)
    sock = listener.accept()[0]
else:
    sock = socket.create_connection((host, int(port)), 10)
sock.settimeout(20)
count, began, buffer = 0, time.monotonic(), bytearray(1 << 18)
try:
    while time.monotonic() - began < float(seconds):
        if way == "send":
            sock.sendall(buffer)
        else:
            count += sock.recv_into(buffer, 0, socket.MSG_TRUNC)
except OSError:
    pass
print("gbit", count * 8 / (time.monotonic() - began) / 1e9)
"""
_BLOCKS = """
import socket, sys
host, own, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.bind((host, 69))
sender = asked
if own:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((host, own))
print("ready", flush=True)
_, client = asked.recvfrom(1024)
sender.settimeout(10)
data = bytes(size)
for number in range(1, count + 1):
    sender.sendto(b"\\0\\3" + (number & 65535).to_bytes(2, "big") + data, client)
    sender.recvfrom(64)
"""


class Row(NamedTuple):
    """Something that is measured. `plain`, `ours`: once without the gateway (of `relay`, without its module) and once
    with it, of which more is better; `least`: the goal for their ratio."""

    title: str
    unit: str
    least: float
    plain: Callable[[Rig], float]
    ours: Callable[[Rig], float]
    relay: bool = False


class Rig(NamedTuple):
    """A lab in which something is measured for `seconds`, and the program that floods and counts."""

    lab: Lab
    program: Path
    seconds: float


@contextlib.contextmanager
def gateway(lab: Lab) -> Iterator[None]:
    running = lab.start_gateway(lab.write_config(process={"workers": 1, "drain_timeout": 1}))
    try:
        yield
    finally:
        running.stop()


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


# --- data -----------------------------------------------------------------------------------------------------------


def flow(rig: Rig, port: int, *words: bytes) -> float:
    """Gbit/s of one stream from the server, through SOCKS, after these requests."""
    with by_socks(rig.lab, SERVER4, port) as sock:
        sock.settimeout(20)
        for word in words[:-1]:
            sock.sendall(word)
            read_until(sock, b"\r\n\r\n")
        sock.sendall(words[-1])
        buffer, count = bytearray(1 << 18), 0
        sock.recv_into(buffer)
        began = time.monotonic()
        while time.monotonic() - began < rig.seconds:
            count += sock.recv_into(buffer, 0, socket.MSG_TRUNC)
        return count * 8 / (time.monotonic() - began) / 1e9


def plain_relay(rig: Rig) -> float:
    return flow(rig, PLAIN, b"GO\r\n\r\n")


def interleaved(rig: Rig) -> float:
    transport = b"CSeq: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
    return flow(rig, RTSP, b"SETUP rtsp://a/1 RTSP/1.0\r\n" + transport, b"PLAY rtsp://a RTSP/1.0\r\nCSeq: 2\r\n\r\n")


def flooded(rig: Rig, port: int) -> float:
    """Datagrams a second that reach the client's media port through the router's port."""
    log = rig.lab.tmp / "count.txt"
    log.unlink(missing_ok=True)
    words = [rig.program, "count", CLIENT4, MEDIA, rig.seconds * 0.8]
    counter = rig.lab.popen("inside", [str(word) for word in words], log=log)
    sends = [rig.program, "flood", SERVER4, 7000, ROUTER_OUT4, port, rig.seconds]
    rig.lab.run("outside", [str(word) for word in sends], timeout=rig.seconds + 30)
    counter.wait(10)
    rig.lab.stop(counter)
    return figures(log.read_text())["rate"]


def plain_media(rig: Rig) -> float:
    """The client has sent a datagram first, so its NAT lets answers in."""
    with Udp(rig.lab, "inside", CLIENT4, MEDIA) as client, Udp(rig.lab, "outside", SERVER4, 7000) as server:
        client.send(b"hello", (SERVER4, 7000))
        _, (_, port) = server.receive()
    return flooded(rig, port)


@contextlib.contextmanager
def media_pinhole(rig: Rig) -> Iterator[int]:
    """The router's port for media to `MEDIA`, as long as a session of RTSP lasts."""
    with rig.lab.listen("outside", SERVER4, RTSP + 8000) as listener:
        client = direct(rig.lab, SERVER4, RTSP + 8000)
        server, _ = listener.accept()
    with client, server:
        server.settimeout(20)
        client.sendall(
            b"SETUP rtsp://a/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=%d-%d\r\n\r\n"
            % (MEDIA, MEDIA + 1)
        )
        found = re.search(rb"client_port=(\d+)", read_until(server, b"\r\n\r\n"))
        assert found is not None
        assert int(found[1]) != MEDIA
        yield int(found[1])


def rtsp_media(rig: Rig) -> float:
    with media_pinhole(rig) as port:
        return flooded(rig, port)


def file_of(rig: Rig, role: str, host: str, port: int, sender: subprocess.Popen[bytes]) -> float:
    """Gbit/s of what the outside reads from a sender inside."""
    log = rig.lab.logs / "file.log"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-c", _FILE, role, "receive", host, str(port), str(rig.seconds)]
    receiver = rig.lab.popen("outside", argv, log=log)
    receiver.wait(rig.seconds + 30)
    rig.lab.stop(receiver)
    rig.lab.stop(sender)
    return float(log.read_text().split("gbit ")[1])


def ready(rig: Rig, role: str, argv: list[str]) -> subprocess.Popen[bytes]:
    log = rig.lab.logs / "ready.log"
    log.unlink(missing_ok=True)
    process = rig.lab.popen(role, argv, log=log)  # type: ignore[arg-type]
    rig.lab.wait_for(lambda: log.exists() and "ready" in log.read_text(), 10, "a program of the benchmark")
    return process


def plain_file(rig: Rig) -> float:
    """The sender inside connects to whoever takes the file."""
    log = rig.lab.logs / "file.log"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-c", _FILE, "listen", "receive", SERVER4, str(FILES), str(rig.seconds)]
    receiver = rig.lab.popen("outside", argv, log=log)
    rig.lab.wait_for(lambda: log.exists() and "ready" in log.read_text(), 10, "whoever takes the file")
    words = [sys.executable, "-c", _FILE, "connect", "send", SERVER4, str(FILES), str(rig.seconds + 5)]
    sender = rig.lab.popen("inside", words)
    receiver.wait(rig.seconds + 30)
    rig.lab.stop(receiver)
    rig.lab.stop(sender)
    return float(log.read_text().split("gbit ")[1])


def dcc_file(rig: Rig) -> float:
    """The sender inside has offered it, and is connected to."""
    words = [sys.executable, "-c", _FILE, "listen", "send", CLIENT4, str(FILES), str(rig.seconds + 5)]
    sender = ready(rig, "inside", words)
    with rig.lab.listen("outside", SERVER4, IRC) as listener:
        client = direct(rig.lab, SERVER4, IRC)
        server, _ = listener.accept()
    with client, server:
        for end in (client, server):
            end.settimeout(20)
        client.sendall(b"NICK ann\r\n")
        read_until(server, b"\n")
        server.sendall(b":x 001 ann :hi\r\n")
        read_until(client, b"\n")
        own = int(ipaddress.ip_address(CLIENT4))
        client.sendall(b"PRIVMSG bob :\x01DCC SEND a.bin %d %d 1\x01\r\n" % (own, FILES))
        found = re.search(rb" (\d+) (\d+) 1\x01", read_until(server, b"\n"))
        assert found is not None
        host = str(ipaddress.ip_address(int(found[1])))
        assert host == ROUTER_OUT4
        return file_of(rig, "connect", host, int(found[2]), sender)


def blocks(rig: Rig, own: int) -> float:
    """Mbit/s of a transfer from its first block on, each of which is acknowledged. `own`: the server's port; 0: it
    answers from 69."""
    server = ready(rig, "outside", [sys.executable, "-c", _BLOCKS, SERVER4, str(own), str(BLOCKS), str(BLOCK)])
    with Udp(rig.lab, "inside", CLIENT4) as client:
        client.sock.settimeout(10)
        client.send(b"\0\1boot.bin\0octet\0blksize\0001428\0", (SERVER4, TFTP))
        data, sender = client.receive()
        began = time.monotonic()
        for _ in range(BLOCKS - 1):
            client.send(b"\0\4" + data[2:4], sender)
            data, sender = client.receive()
        took = time.monotonic() - began
        client.send(b"\0\4" + data[2:4], sender)
    rig.lab.stop(server)
    return (BLOCKS - 1) * BLOCK * 8 / took / 1e6


def plain_blocks(rig: Rig) -> float:
    return blocks(rig, 0)


def tftp_blocks(rig: Rig) -> float:
    return blocks(rig, 3000)


ROWS = (
    Row("RTSP interleaved, beside the plain relay", "Gbit/s", 0.95, plain_relay, interleaved, relay=True),
    Row("RTSP over UDP, 172 bytes", "packets/s", 0.97, plain_media, rtsp_media),
    Row("a file by DCC", "Gbit/s", 0.97, plain_file, dcc_file),
    Row("TFTP, blocks of 1,428 bytes", "Mbit/s", 0.97, plain_blocks, tftp_blocks),
)


def data(lab: Lab, program: Path, rounds: int, seconds: float, only: str) -> Iterator[str]:
    """Yield the rows, as Markdown: medians, and the ratio of the medians."""
    rig = Rig(lab, program, seconds)
    ports = [str(port) for port in (PLAIN, RTSP)]
    source = lab.popen("outside", [sys.executable, "-c", _SOURCE, SERVER4, *ports])
    lab.wait_for(lambda: _serves(lab, RTSP), 10, "the server")
    rows = [row for row in ROWS if only in row.title]
    found: dict[tuple[str, bool], list[float]] = {}
    failed: dict[str, str] = {}

    def measure(row: Row, ours: bool) -> None:
        print(f"{row.title}, {'algate' if ours else 'plain'}", file=sys.stderr, flush=True)
        try:
            value = (row.ours if ours else row.plain)(rig)
        except (LabError, OSError, AssertionError, IndexError, subprocess.SubprocessError) as error:
            failed[row.title] = f"{type(error).__name__} {next(iter(str(error).splitlines()), '')}"
        else:
            print(f"  {value:,.2f} {row.unit}", file=sys.stderr, flush=True)
            found.setdefault((row.title, ours), []).append(value)

    for turn in range(rounds):
        for active in (False, True) if turn % 2 else (True, False):  # who is first changes
            lab.run("router", ["conntrack", "-F"])  # a connection keeps the way that it began with
            with gateway(lab) if active else contextlib.nullcontext():
                for row in rows:
                    if row.relay and active:
                        for ours in (False, True) if turn % 2 else (True, False):
                            measure(row, ours)
                    elif not row.relay:
                        measure(row, active)
    lab.stop(source)
    yield "| | plain | algate | ratio | goal | reached |"
    yield "| --- | ---: | ---: | ---: | ---: | --- |"
    for row in rows:
        values = [found.get((row.title, ours), []) for ours in (False, True)]
        if not all(values):
            yield f"| {row.title} | – | – | – | {row.least} | not measured: {failed.get(row.title, 'no round')} |"
            continue
        plain, gained = map(statistics.median, values)
        shown = [f"{value:,.0f}" if value > 1000 else f"{value:.2f}" for value in (plain, gained)]
        reached = "yes" if gained / plain >= row.least else "**no**"
        note = f" ({len(values[1])} of {rounds} rounds: {failed[row.title]})" if row.title in failed else ""
        yield (
            f"| {row.title} | {shown[0]} {row.unit} | {shown[1]} {row.unit} | {gained / plain:.2f} "
            f"| {row.least} | {reached}{note} |"
        )


def _serves(lab: Lab, port: int) -> bool:
    try:
        lab.connect("outside", SERVER4, port, timeout=1).close()
    except OSError:
        return False
    return True


# --- messages of the pure modules -------------------------------------------------------------------------------------

CLIENT, SERVER, PUBLIC = "192.168.56.10", "203.0.113.5", "203.0.113.1"
Said = list[tuple[Side, bytes]]


def rtsp_session() -> Said:
    """A player with two streams over UDP, up to its end."""
    url = "rtsp://camera.example/stream"
    said: Said = []

    def ask(number: int, method: str, more: str = "", answer: str = "") -> None:
        head = f"CSeq: {number}\r\nUser-Agent: bench\r\n"
        said.append((Side.CLIENT, f"{method} {url} RTSP/1.0\r\n{head}{more}\r\n".encode()))
        said.append((Side.SERVER, f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nServer: bench\r\n{answer}\r\n".encode()))

    ask(1, "OPTIONS", answer="Public: DESCRIBE, SETUP, PLAY, PAUSE, TEARDOWN\r\n")
    ask(2, "DESCRIBE", "Accept: application/sdp\r\n")
    for stream in (0, 1):
        own, public = 5000 + 2 * stream, 40000 + 2 * stream
        transport = "Transport: RTP/AVP;unicast;client_port={}-{}\r\n"
        answer = transport.format(public, public + 1).replace("\r\n", ";server_port=6970-6971\r\nSession: 7\r\n")
        ask(3 + stream, "SETUP", transport.format(own, own + 1), answer)
    ask(5, "PLAY", "Session: 7\r\nRange: npt=0.000-\r\n", "Session: 7\r\n")
    for number in range(6, 10):
        ask(number, "GET_PARAMETER", "Session: 7\r\n", "Session: 7\r\n")
    ask(10, "TEARDOWN", "Session: 7\r\n")
    return said


def irc_session() -> Said:
    """A user who talks, and offers a file."""
    said: Said = [(Side.CLIENT, b"NICK ann\r\n"), (Side.SERVER, b":irc.example 001 ann :Welcome\r\n")]
    for number in range(20):
        said.append((Side.SERVER, b":bob!b@example PRIVMSG #room :what somebody says, line %d\r\n" % number))
        said.append((Side.CLIENT, b"PRIVMSG #room :and what the answer is, line %d\r\n" % number))
    own = int(ipaddress.ip_address(CLIENT))
    said.append((Side.CLIENT, b"PRIVMSG bob :\x01DCC SEND a.bin %d 5000 1000\x01\r\n" % own))
    said.append((Side.SERVER, b":bob!b@example PRIVMSG ann :\x01DCC RESUME a.bin 40000 500\x01\r\n"))
    said.append((Side.CLIENT, b"PRIVMSG bob :\x01DCC ACCEPT a.bin 5000 500\x01\r\n"))
    return said


def pptp_session() -> Said:
    """A call, from the beginning of its connection to its end."""
    return [
        (Side.CLIENT, pptp_text.start_request()),
        (Side.SERVER, pptp_text.start_reply()),
        (Side.CLIENT, pptp_text.call_request(7)),
        (Side.SERVER, pptp_text.call_reply(40, 7)),
        (Side.CLIENT, pptp_text.set_link_info(40)),
        (Side.CLIENT, pptp_text.echo_request()),
        (Side.CLIENT, pptp_text.clear_request(7)),
        (Side.SERVER, pptp_text.disconnect_notify(40)),
    ]


def answers(commands: Iterable[object], port: int) -> Iterator[Opened]:
    """What a driver would tell: everything is granted at once."""
    for command in commands:
        if isinstance(command, OpenGre):
            yield Opened(command.ref, Endpoint(PUBLIC, command.call_id), 0.0)
        elif isinstance(command, Probe):
            yield Opened(command.ref, command.target, 0.0)
        elif isinstance(command, OpenConversation | OpenPinhole | OpenMapping):
            yield Opened(command.ref, Endpoint(PUBLIC, port + 2 * (command.ref - 1)), 0.0)


def play(module: AlgModule, said: Said) -> None:
    for side, part in said:
        waiting: list[Event] = [Received(side, part, 0.0)]
        while waiting:
            waiting += answers(module.handle(waiting.pop(0)), 40000)


def connections(make: Callable[[FlowContext], AlgModule], said: Said, port: int) -> Callable[[int], int]:
    """A connection after the other with this speech; returns how many messages they had."""

    def run(count: int) -> int:
        for number in range(count):
            client = Endpoint(CLIENT, 30000 + number % 30000)
            play(make(FlowContext(client, Endpoint(SERVER, port))), said)
        return count * len(said)

    return run


def datagrams(
    module: DatagramModule, said: Callable[[int], list[tuple[Side, bytes]]], port: int
) -> Callable[[int], int]:
    """Sockets one after the other, each with this speech."""
    state = {"number": 0, "client": 0}

    def run(count: int) -> int:
        done = 0
        for _ in range(count):
            state["client"] = number = state["client"] + 1
            client = Endpoint(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 6881)
            for side, part in said(number):
                state["number"] += 1
                waiting: list[DatagramEvent] = [
                    Datagram(state["number"], side, client, Endpoint(SERVER, port), part, number / 100)
                ]
                done += 1
                while waiting:
                    waiting += answers(module.handle(waiting.pop(0)), 40000)
        return done

    return run


def tftp_speech(_number: int) -> Said:
    return [(Side.CLIENT, b"\0\1boot.bin\0octet\0tsize\0000\0blksize\0001428\0")] * 2


def announces(_number: int) -> Said:
    return [
        (Side.CLIENT, udp_connect()),
        (Side.SERVER, bytes(4) + b"conn12345678"),
        (Side.CLIENT, udp_announce(b"12345678", b"h" * 20, 6881)),
        (Side.SERVER, b"\0\0\0\1anno" + (1800).to_bytes(4) + bytes(8)),
    ]


def messages(seconds: float, only: str) -> Iterator[str]:
    """Yield the rows on the modules, as Markdown."""
    shared: dict[str, object] = {}

    def torrents(context: FlowContext) -> BittorrentModule:
        return BittorrentModule(FlowContext(context.client, context.server, shared=shared))

    announced = [(Side.CLIENT, http_announce(b"h" * 20, 6881)), (Side.SERVER, http_answer())]
    kinds = {
        "RTSP, sessions of two streams": connections(RtspModule, rtsp_session(), RTSP),
        "IRC, talk with an offer now and then": connections(IrcModule, irc_session(), IRC),
        "TFTP, requests, each asked twice": datagrams(
            TftpModule(DatagramContext(TftpOptions(rate=10000, idle_timeout=10.0))), tftp_speech, TFTP
        ),
        "BitTorrent over HTTP": connections(torrents, announced, 6969),
        "BitTorrent over UDP": datagrams(AnnounceModule(DatagramContext()), announces, 6969),
        "PPTP, calls": connections(PptpModule, pptp_session(), 1723),
    }
    yield "| messages through the pure module | a second of CPU |"
    yield "| --- | ---: |"
    for title, run in kinds.items():
        if only not in title:
            continue
        run(20)
        done, began = 0, time.process_time()
        while (used := time.process_time() - began) < seconds:
            done += run(50)
        yield f"| {title} | {done / used:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each measure lasts")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--messages", action="store_true", help="only the modules")
    options = parser.parse_args()
    if not options.messages:
        with tempfile.TemporaryDirectory() as directory, Lab() as lab:
            Path(directory).chmod(0o755)
            program = Path(directory, PROGRAM)
            subprocess.run(["gcc", "-O2", "-o", program, HERE / "sip_load.c"], check=True)
            for line in data(lab, program, options.rounds, options.seconds, options.only):
                print(line, flush=True)
        print()
    for line in messages(options.seconds, options.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
