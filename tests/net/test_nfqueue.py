"""A queue of NFQUEUE, read by the library and by messages of our own: both do the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab.lab import Lab

# Binds the queue, sends itself datagrams through it, changes the second, holds the third till the end, and gives a
# fifth the mark by which it is dropped. A sixth goes through the rules again.
PROGRAM = """
import select, socket, sys
from gateway.broker import nfqueue
queue = getattr(nfqueue, sys.argv[1])(77, 64, 2000, 65536)
try:
    getattr(nfqueue, sys.argv[1])(77, 64, 2000, 65536)
except OSError:
    print("a second one is refused")
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 9977))
receiver.settimeout(5)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: no checksum to correct
held = []
def take(packet):
    payload = packet.get_payload()
    if payload.endswith(b"two"):
        packet.set_payload(payload[:-3] + b"TWO")
    if payload.endswith(b"five"):
        packet.set_mark(packet.mark | 5)  # and is dropped for that
    if payload.endswith(b"three"):
        held.append(packet)
    elif payload.endswith(b"six"):
        packet.set_mark(packet.mark | 6)  # and the rule does not match again
        packet.repeat()
    else:
        packet.accept()
def read():
    assert select.select([queue.fileno()], [], [], 5)[0]
    queue.read(1, take)
for text in (b"one", b"two", b"three", b"five", b"six", b"four"):
    sender.sendto(text, ("127.0.0.1", 9977))
for _ in range(6):
    read()
got = [receiver.recv(100) for _ in range(4)]
held[0].accept()
print(got, receiver.recv(100))
queue.read(16, take)  # nothing waits: it comes back at once
queue.close()
"""


@pytest.mark.net
@pytest.mark.parametrize("reader", ["LibraryQueue", "NetlinkQueue"])
def test_both_readers_do_the_same(lab: Lab, reader: str) -> None:
    sent = ["OUTPUT", "-o", "lo", "-p", "udp", "--dport", "9977"]
    rule = [*sent, "-m", "mark", "!", "--mark", "6", "-j", "NFQUEUE", "--queue-num", "77"]
    behind = [*sent, "-m", "mark", "--mark", "6", "-j", "MARK", "--set-mark", "7"]  # what is repeated comes here
    kept = ["INPUT", "-i", "lo", "-p", "udp", "-m", "mark", "--mark", "6", "-j", "DROP"]
    marked = ["INPUT", "-i", "lo", "-p", "udp", "-m", "mark", "--mark", "5", "-j", "DROP"]
    for line in (rule, behind, marked, kept):
        lab.run("outside", ["iptables", "-A", *line])
    try:
        done = lab.run("outside", [sys.executable, "-c", PROGRAM, reader], check=False)
    finally:
        for line in (rule, behind, marked, kept):
            lab.run("outside", ["iptables", "-D", *line])
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.stdout == "a second one is refused\n[b'one', b'TWO', b'six', b'four'] b'three'\n", done.stderr


# Gives no verdict at all: there is room for four packets.
FULL = """
import socket, sys
from gateway.broker import nfqueue
queue = getattr(nfqueue, sys.argv[1])(77, 4, 100, 65536, opens=sys.argv[2] == "opens")
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 9977))
receiver.settimeout(0.5)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(6):
    try:
        sender.sendto(b"%d" % number, ("127.0.0.1", 9977))
    except OSError:
        pass  # EPERM: it was dropped on its way out
got = []
try:
    while True:
        got.append(receiver.recv(100))
except TimeoutError:
    print(got)
"""


@pytest.mark.net
@pytest.mark.parametrize("reader", ["LibraryQueue", "NetlinkQueue"])
@pytest.mark.parametrize(("how", "got"), [("opens", [b"4", b"5"]), ("drops", [])])
def test_what_there_is_no_room_for(lab: Lab, reader: str, how: str, got: list[bytes]) -> None:
    rule = ["OUTPUT", "-o", "lo", "-p", "udp", "--dport", "9977", "-j", "NFQUEUE", "--queue-num", "77"]
    lab.run("outside", ["iptables", "-A", *rule])
    try:
        done = lab.run("outside", [sys.executable, "-c", FULL, reader, how], check=False)
    finally:
        lab.run("outside", ["iptables", "-D", *rule])
    assert done.stdout == f"{got}\n", done.stderr
