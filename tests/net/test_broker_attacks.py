"""Attacks on the broker and its table: floods, a full map, a stopped and a killed broker, nonsense, forged senders."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket
import msgspec
import pytest

from alg.address import Endpoint
from gateway.lease.messages import (
    MAX_PACKET,
    Close,
    Count,
    FromWorker,
    LeaseOpened,
    Open,
    RequestRefused,
    ToWorker,
    encode,
)
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease
from gateway.pinhole.client import BrokerClient
from tests.bench.pinholes import steadily
from tests.greenlets import join_all
from tests.net.broker_rig import CLIENT, CLIENT6, PUBLIC, PUBLIC6, SERVER, STRANGER, Rig, inbound, run

pytestmark = [pytest.mark.net, pytest.mark.rig(per_client=2000, ports="40000-49999")]

OTHER = "192.168.56.11"


@pytest.fixture
def client(rig: Rig) -> Iterator[BrokerClient]:
    sock = gevent.socket.socket(fileno=os.dup(rig.workers[0].fileno()))
    with sock:
        client = BrokerClient(sock, timeout=5.0)
        yield client
        client.stop()


def in_kernel(rig: Rig) -> set[str]:
    """Ids of the leases whose elements are in the kernel's map."""
    return set(re.findall(r'"algate 1 \d+ ([0-9a-f]{16}) ', rig.at(rig.router, "nft list map inet algate dnat4")))


def listed(rig: Rig) -> set[str]:
    return {row["id"] for row in rig.pinholes()}


def test_a_broker_killed_during_a_thousand_openings(rig: Rig, client: BrokerClient) -> None:
    opened: list[Lease] = []
    refused: list[PinholeRefused] = []

    def open_(number: int) -> None:
        try:
            opened.append(client.open(inbound(flow=f"f{number}")))
        except PinholeRefused as error:
            refused.append(error)

    def kill_and_replace() -> None:
        with gevent.Timeout(10):
            while len(opened) < 200:
                gevent.sleep(0.001)
        rig.end(signal.SIGKILL)
        rig.start()

    killing = gevent.spawn(kill_and_replace)
    join_all([gevent.spawn(open_, number) for number in range(1000)], 90)
    killing.get(timeout=60)
    assert len(opened) + len(refused) == 1000
    assert len(opened) >= 200
    # Requests that died with the broker are refusals; all that was told is open, and both tables are the same.
    known = {lease.id for lease in opened}
    assert known <= listed(rig)
    assert in_kernel(rig) == listed(rig)
    assert rig.count("once4") == rig.count("dnat4") == len(listed(rig))
    for lease in opened:
        client.close(lease.id)
    with gevent.Timeout(10):
        while listed(rig) & known:
            gevent.sleep(0.05)
    assert in_kernel(rig) == listed(rig)


def test_a_stopped_broker_is_a_refusal_and_no_hang(rig: Rig) -> None:
    assert rig.broker is not None
    sock = gevent.socket.socket(fileno=os.dup(rig.workers[0].fileno()))
    with sock:
        client = BrokerClient(sock, timeout=0.5)
        client.open(inbound())
        rig.broker.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        asking = [gevent.spawn(client.open, inbound(flow=f"f{number}")) for number in range(500)]
        join_all(asking, 10)
        assert time.monotonic() - begun < 5.0
        assert {type(greenlet.exception) for greenlet in asking} == {PinholeRefused}
        assert {greenlet.exception.rule for greenlet in asking} == {"broker"}  # type: ignore[union-attr]
        rig.broker.send_signal(signal.SIGCONT)
        with gevent.Timeout(10):  # what it opens now, nobody wants: it is closed again
            while True:
                try:
                    lease = client.open(inbound(flow="after"))
                    break
                except PinholeRefused:
                    gevent.sleep(0.01)
            client.close(lease.id)
            while len(listed(rig)) > 1:
                gevent.sleep(0.05)
        client.stop()


def test_a_full_map_is_a_refusal(rig: Rig) -> None:
    rig.end(signal.SIGKILL)
    table = rig.at(rig.router, "nft list table inet algate")
    small = re.sub(r"(set once4 \{[^}]*?size )65536", r"\g<1>5", table)
    assert small != table
    subprocess.run(
        ["ip", "netns", "exec", rig.router, "nft", "-f", "-"],
        input="delete table inet algate\n" + small,
        text=True,
        check=True,
    )
    rig.start()
    answers = [rig.ask(inbound()) for _ in range(8)]
    assert [type(answer) for answer in answers] == [LeaseOpened] * 5 + [RequestRefused] * 3
    assert {answer.rule for answer in answers if isinstance(answer, RequestRefused)} == {"full"}
    assert in_kernel(rig) == listed(rig)
    first = answers[0]
    assert isinstance(first, LeaseOpened)
    rig.send(Close(first.lease.id))
    rig.open(inbound())


@pytest.mark.rig(per_client=64, ports="40000-49999", rate=50.0)
def test_a_client_that_asks_too_often_is_refused_and_others_are_served(rig: Rig) -> None:
    waits = []
    rules: dict[str, int] = {}
    for number in range(10_000):  # as fast as one worker can ask for one client
        rig.send(Open(number, inbound()))
        answer = rig.hear()
        rule = answer.rule if isinstance(answer, RequestRefused) else "open"
        rules[rule] = rules.get(rule, 0) + 1
        if number % 500 == 0:
            begun = time.monotonic()
            other = rig.open(inbound(client=OTHER, target=Endpoint(OTHER, 50000)), slot=1)
            waits.append(time.monotonic() - begun)
            rig.send(Close(other.id), slot=1)
    assert rules.pop("open") == 64
    assert rules.keys() <= {"rate", "quota"}
    assert rules["rate"] > 5000
    assert max(waits) < 0.5


def test_a_flooding_worker_keeps_no_other_waiting(rig: Rig) -> None:
    stop = False

    def flood() -> None:
        rig.workers[1].setblocking(False)
        junk = [b"\xc1" * 100, encode(Open(1, inbound(client="10.0.0.1"))), encode(Close("0" * 16)), b"x" * 8192]
        while not stop:
            for data in junk:
                try:
                    rig.workers[1].send(data)
                except BlockingIOError:
                    gevent.sleep(0)
                try:
                    rig.workers[1].recv(MAX_PACKET)
                except BlockingIOError:
                    pass

    flooding = gevent.get_hub().threadpool.spawn(flood)
    try:
        waits = []
        for _ in range(200):
            begun = time.monotonic()
            rig.send(Close(rig.open(inbound(), slot=0).id), slot=0)
            waits.append(time.monotonic() - begun)
    finally:
        stop = True
        flooding.get(timeout=10)
    assert max(waits) < 0.5
    assert sorted(waits)[100] < 0.1


def resident(pid: int) -> int:
    """KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


@pytest.mark.long
def test_the_numbers_of_a_worker_that_asks_as_fast_as_it_can_are_bounded(rig: Rig) -> None:
    """The broker remembers them for six seconds (decision 0003): as many as it reads of a worker in that time, and no
    more; another worker's openings do not wait meanwhile."""
    assert rig.broker is not None
    stop, before = False, resident(rig.broker.pid)
    rig.workers[1].setblocking(False)

    def flood() -> None:
        numbers = itertools.count(1 << 62)  # the largest that there are
        while not stop:
            data = encode(*(Count(next(numbers), ()) for _ in range(64)))
            with contextlib.suppress(BlockingIOError):
                rig.workers[1].send(data)
            with contextlib.suppress(BlockingIOError):
                while True:
                    rig.workers[1].recv(MAX_PACKET)

    flooding = gevent.get_hub().threadpool.spawn(flood)
    waits, grown = [], [0]
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            begun = time.monotonic()
            rig.send(Close(rig.open(inbound(), slot=0).id), slot=0)
            waits.append(time.monotonic() - begun)
            grown.append(resident(rig.broker.pid) - before)
            time.sleep(0.02)
    finally:
        stop = True
        flooding.get(timeout=10)
    assert max(waits) < 0.5
    assert max(grown) < 40_000
    assert max(grown[len(grown) * 3 // 4 :]) < 1.2 * max(grown[: len(grown) * 3 // 4]) + 2_000, "it grows on"


def syn(source: str, destination: Endpoint) -> bytes:
    """A TCP SYN in an IPv4 packet; the kernel fills in the IP checksum."""
    tcp = struct.pack(">HHIIBBHHH", 54321, destination.port, 1, 0, 5 << 4, 2, 65535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination.host) + struct.pack(">BBH", 0, 6, len(tcp))
    total = sum(struct.unpack(f">{len(pseudo + tcp) // 2}H", pseudo + tcp))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    tcp = tcp[:16] + struct.pack(">H", ~total & 0xFFFF) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0)
    return ip + socket.inet_aton(source) + socket.inet_aton(destination.host) + tcp


def test_a_sender_who_says_that_he_is_inside_gets_nothing(rig: Rig) -> None:
    """rp_filter drops it where it is on; where it is off, no pinhole has an inside peer."""
    raw = rig.within(rig.outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
    lease = rig.open(inbound())
    with raw:
        for rp_filter in (0, 1):
            rig.at(
                rig.router,
                f"sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter} net.ipv4.conf.out.rp_filter={rp_filter}",
            )
            for source in (CLIENT, OTHER, "192.168.56.1", PUBLIC, STRANGER):
                raw.sendto(syn(source, lease.public), (PUBLIC, 0))
        # Anything that passed before the peer's own packet would have used the pinhole up.
        listener = rig.listen(rig.inside, CLIENT, 50000)
        rig.connect(rig.outside, lease.public, SERVER)
        assert listener.accept()[1][0] == SERVER
    assert rig.status()["counters"]["admitted"]["packets"] == 1


def test_no_worker_and_no_client_can_close_what_another_has(rig: Rig) -> None:
    first = rig.open(inbound(), slot=0)
    for guess in (first.id, "*", "", first.id.upper(), first.id + " ", "0" * 16):
        rig.send(Close(guess), slot=1)
    rig.open(inbound(), slot=1)
    assert first.id in listed(rig)


def test_nothing_of_another_table_is_touched(rig: Rig) -> None:
    rig.at(rig.router, "nft add table inet mine")

    def saved() -> list[str]:
        """The rules of iptables, without the lines that say when they were read."""
        lines = run("ip", "netns", "exec", rig.router, "iptables-save").splitlines()
        return [line for line in lines if not line.startswith("#")]

    before = saved()
    rig.open(inbound())
    assert rig.end(signal.SIGTERM) == 0
    assert saved() == before
    assert "inet mine" in rig.tables()


@pytest.mark.rig(per_client=200, ports="40000-49999", restore=False)
def test_a_transaction_that_is_too_long_for_the_kernel_is_divided(rig: Rig) -> None:
    """One process asks for as many elements as it can, another one for a pinhole in the same turn of the broker's
    loop; and once more, as all of them are to be deleted and are gone already."""
    peers = tuple(f"2001:db8::{number:x}" for number in range(0x100, 0x108))
    base = inbound(client=CLIENT6, public_host=PUBLIC6, transport="udp", peer=None, kind="conversation", peers=peers)
    requests = [
        msgspec.structs.replace(base, target=Endpoint(CLIENT6, port), second=port + 1) for port in range(4000, 4120, 2)
    ]
    assert rig.broker is not None

    question = iter(range(1000, 1002))

    def at_once(messages: list[FromWorker]) -> ToWorker:
        assert rig.broker is not None
        rig.broker.send_signal(signal.SIGSTOP)
        for at in range(0, len(messages), 15):
            rig.workers[0].send(encode(*messages[at : at + 15]))
        rig.send(Open(next(question), inbound()), slot=1)
        rig.broker.send_signal(signal.SIGCONT)
        return rig.hear(slot=1)

    answer = at_once([Open(number, request) for number, request in enumerate(requests)])
    assert isinstance(answer, LeaseOpened), answer
    opened = [rig.hear() for _ in requests]
    leases = [each.lease for each in opened if isinstance(each, LeaseOpened)]
    assert len(leases) == len(requests)
    for name in ("snat6", "many6", "in6", "out6", "public6"):
        rig.at(rig.router, f"nft flush {'set' if name in ('in6', 'out6', 'public6') else 'map'} inet algate {name}")
    answer = at_once([Close(lease.id) for lease in leases])
    assert isinstance(answer, LeaseOpened), answer


@pytest.mark.rig(per_client=200, ports="40000-40299")
def test_resting_ports_do_not_end_it(rig: Rig) -> None:
    """More pinholes than there are ports, one after the other, all for one server: as 1,000 a second for a minute in
    the default range (`python -m tests.bench.pinholes --per-second 1000 --seconds 60`), at a smaller size."""
    assert steadily(rig, 40, 9.0) == (360, 0)
