"""Announces over UDP (BEP 15): a dialogue of datagrams and commands."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from alg.address import Endpoint
from alg.api import ClosePinhole, Edit, Note, Opened, OpenMapping, Probe, Refused, Side, Tick, UpdateMapping
from alg.bittorrent.udp import AnnounceModule
from alg.datagrams import Datagram, DatagramCommand, DatagramContext, Moved, Release

CLIENT, TRACKER = Endpoint("192.168.56.10", 6881), Endpoint("203.0.113.5", 6969)
MAGIC = bytes.fromhex("0000041727101980")
ID = b"12345678"
URL_DATA = b"\x02\x09/announce"  # BEP 41


def announce(
    port: int = 6881, event: int = 2, address: str = "0.0.0.0", info_hash: bytes = b"h" * 20, key: bytes = ID
) -> bytes:
    data = key + b"\0\0\0\1" + b"tran" + info_hash + b"p" * 20 + bytes(24) + event.to_bytes(4)
    return data + ipaddress.ip_address(address).packed + b"key!" + b"\xff" * 4 + port.to_bytes(2)


class Play:
    """A module, and the number of the latest datagram."""

    def __init__(self, recorded: bool = False) -> None:
        self.module = AnnounceModule(DatagramContext(recorded=recorded))
        self.now = 0.0
        self.number = 0

    def client(self, data: bytes, client: Endpoint = CLIENT) -> Sequence[DatagramCommand]:
        return self._say(Side.CLIENT, data, client)

    def tracker(self, data: bytes, client: Endpoint = CLIENT) -> Sequence[DatagramCommand]:
        return self._say(Side.SERVER, data, client)

    def _say(self, side: Side, data: bytes, client: Endpoint) -> Sequence[DatagramCommand]:
        self.number += 1
        return self.module.handle(Datagram(self.number, side, client, TRACKER, data, self.now))

    def connect(self, client: Endpoint = CLIENT) -> None:
        assert self.client(MAGIC + b"\0\0\0\0conn", client) == [Release(self.number)]
        assert self.tracker(b"\0\0\0\0conn" + ID, client) == [Release(self.number)]

    def open(self, public: int, **how: int) -> tuple[int, Sequence[DatagramCommand]]:
        """Announce, prove, open: the mapping's number, and what is done at last."""
        [probe] = self.client(announce(**how))  # type: ignore[arg-type]
        assert isinstance(probe, Probe)
        [mapping] = self.module.handle(Opened(probe.ref, probe.target, self.now))
        assert isinstance(mapping, OpenMapping)
        assert (mapping.transports, mapping.peers, mapping.port) == (("tcp", "udp"), None, probe.target.port)
        return mapping.ref, self.module.handle(Opened(mapping.ref, Endpoint("203.0.113.1", public), self.now))


@pytest.fixture
def play() -> Play:
    play = Play()
    play.connect()
    return play


def test_the_same_port_outside(play: Play) -> None:
    assert play.open(6881)[1] == [Release(play.number)]


def test_another_port_outside(play: Play) -> None:
    edits = (Edit(96, 98, (7000).to_bytes(2), "bittorrent.port"),)
    assert play.open(7000)[1] == [Release(play.number, edits)]
    # The next ones of the same socket wait for nothing, those with options (BEP 41) too.
    assert play.client(announce(info_hash=b"i" * 20) + URL_DATA) == [Release(play.number, edits)]


def test_the_clients_own_address(play: Play) -> None:
    play.open(6881)
    edits = (Edit(84, 88, bytes((203, 0, 113, 1)), "bittorrent.address"),)
    assert play.client(announce(address=CLIENT.host)) == [Release(play.number, edits)]
    assert play.client(announce(address="198.51.100.7")) == [Release(play.number)]


@pytest.mark.parametrize("port", [0, 1, 22, 80, 1023])
def test_ports_that_open_nothing(play: Play, port: int) -> None:
    assert play.client(announce(port)) == [Release(play.number)]


def test_an_id_that_the_tracker_has_not_given() -> None:
    play = Play()
    assert play.client(announce()) == [Release(1)]
    # Asked for, and answered to somebody else; or with another transaction; or a made up one.
    play.client(MAGIC + b"\0\0\0\0conn")
    play.tracker(b"\0\0\0\0conx" + ID)
    play.tracker(b"\0\0\0\0conn" + ID, Endpoint("192.168.56.11", 6881))
    assert play.client(announce()) == [Release(play.number)]
    play.connect()
    assert play.client(announce(key=b"87654321")) == [Release(play.number)]
    assert play.client(announce(), Endpoint("192.168.56.10", 6882)) == [Release(play.number)]
    play.now = 131.0
    assert play.client(announce()) == [Release(play.number)]


@pytest.mark.parametrize(
    "data",
    [
        announce()[:97],
        b"",
        b"\0",
        MAGIC,
        MAGIC + b"\0\0\0\2conn" + bytes(20),
        announce().replace(b"\0\0\0\1", b"\0\0\0\2", 1),
    ],
)
def test_what_is_no_announce_passes(play: Play, data: bytes) -> None:
    assert play.client(data) == [Release(play.number)]
    assert play.tracker(data) == [Release(play.number)]


def test_not_proven(play: Play) -> None:
    [probe] = play.client(announce())
    assert isinstance(probe, Probe)
    note, release = play.module.handle(Refused(probe.ref, "probe", 0.0))
    assert isinstance(note, Note)
    assert note.code == "bittorrent.unproven"
    assert release == Release(play.number)
    assert play.client(announce()) == [Release(play.number)]


def test_nobody_answers(play: Play) -> None:
    play.client(announce())
    assert play.module.deadline() == 0.0
    play.module.handle(Tick(0.0))
    assert play.module.deadline() == 2.0
    assert play.module.handle(Tick(2.0)) == [Release(play.number)]


def test_until_the_last_torrent_has_stopped(play: Play) -> None:
    ref, _ = play.open(7000)
    play.client(announce(info_hash=b"i" * 20))
    edits = (Edit(96, 98, (7000).to_bytes(2), "bittorrent.port"),)
    assert play.client(announce(event=3)) == [Release(play.number, edits)]
    last = play.client(announce(event=3, info_hash=b"i" * 20))
    assert last == [Release(play.number, edits), ClosePinhole(ref)]
    assert play.client(announce(event=3)) == [Release(play.number)]


def test_the_trackers_interval(play: Play) -> None:
    ref, _ = play.open(6881)
    play.tracker(b"\0\0\0\1tran" + (600).to_bytes(4) + bytes(8))
    assert play.module.handle(Tick(5.0)) == [UpdateMapping(ref, None, 1015.0)]
    assert play.module.handle(Tick(1019.0)) == []
    assert play.module.handle(Tick(1021.0)) == [ClosePinhole(ref)]
    assert play.module.deadline() is None


def test_a_successor_knows_what_is_open() -> None:
    play = Play(recorded=True)
    play.connect()
    ref, _ = play.open(7000)
    entries = play.module.journal()
    assert [(entry.key, entry.ref) for entry in entries] == [(str(ref), ref)]
    assert b"h" * 20 not in (entries[0].record or b"")
    successor = Play(recorded=True)
    successor.module.restore(entries, 1.0)
    successor.now = 1.0
    successor.connect()
    edits = (Edit(96, 98, (7000).to_bytes(2), "bittorrent.port"),)
    assert successor.client(announce()) == [Release(successor.number, edits)]
    assert successor.module.handle(Tick(2701.5)) == [ClosePinhole(ref)]
    assert [entry.record for entry in successor.module.journal()] == [None]


def test_the_routers_address_has_changed(play: Play) -> None:
    ref, _ = play.open(6881)
    assert play.module.handle(Moved(ref, 1.0)) == [ClosePinhole(ref)]
    [probe] = play.client(announce())
    assert isinstance(probe, Probe)


def test_many_clients_are_bounded() -> None:
    play = Play()
    for number in range(20_000):
        play.client(MAGIC + b"\0\0\0\0conn", Endpoint(f"192.168.56.{number % 64}", number))
    assert len(play.module._connections) == 16384


def test_a_client_that_floods_takes_no_other_clients_place() -> None:
    play = Play()
    other, hostile = Endpoint("192.168.56.11", 6881), "192.168.56.66"
    play.connect(other)
    for port in range(1024, 1024 + 17000):  # more than the table of connections holds
        play.client(MAGIC + b"\0\0\0\0conn", Endpoint(hostile, port))
    play.connect(Endpoint(hostile, 6000))
    for _ in range(1100):  # more than may wait for their ports
        play.client(announce(6001), Endpoint(hostile, 6000))
    [probe] = play.client(announce(), other)  # it is known, and waits for its port
    assert isinstance(probe, Probe)
    [mapping] = play.module.handle(Opened(probe.ref, probe.target, play.now))
    assert isinstance(mapping, OpenMapping)
    edits = (Edit(96, 98, (7000).to_bytes(2), "bittorrent.port"),)
    opened = Opened(mapping.ref, Endpoint("203.0.113.1", 7000), play.now)
    assert play.module.handle(opened) == [Release(play.number, edits)]
