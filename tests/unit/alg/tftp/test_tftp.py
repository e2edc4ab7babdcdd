"""TFTP: properties and limits. Dialogues are in tests/wire/tftp."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import Activity, ClosePinhole, Note, OpenConversation, Opened, Refused, Side, Tick, UpdateConversation
from alg.datagrams import Datagram, DatagramContext, Moved, Release
from alg.tftp.module import MOST_TRANSFERS, MOST_WAITING, TftpModule
from alg.tftp.options import TftpOptions
from alg.tftp.request import LONGEST, read_request

CLIENT, SERVER = Endpoint("192.168.56.10", 2070), Endpoint("203.0.113.5", 69)
PUBLIC = Endpoint("203.0.113.1", 40000)
ASKS = b"\0\1pxelinux.0\0octet\0"

names = st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name)
pairs = st.lists(st.tuples(names, names), max_size=3)
requests = st.builds(
    lambda code, name, mode, options: (
        code + name + b"\0" + mode + b"\0" + b"".join(key + b"\0" + value + b"\0" for key, value in options)
    ),
    st.sampled_from([b"\0\1", b"\0\2"]),
    names,
    st.sampled_from([b"octet", b"NetASCII", b"mail"]),
    pairs,
)


def asks(number: int, client: Endpoint = CLIENT, data: bytes = ASKS, now: float = 0.0) -> Datagram:
    return Datagram(number, Side.CLIENT, client, SERVER, data, now)


@given(requests)
def test_every_request_is_read(data: bytes) -> None:
    read = read_request(data)
    assert (read is not None) == (len(data) <= LONGEST)
    assert read is None or read.write == (data[1] == 2)


@given(requests, st.integers(0, 40))
def test_a_request_that_is_cut_before_the_end_of_its_mode_is_none(data: bytes, at: int) -> None:
    mode_ends = data.index(b"\0", data.index(b"\0", 2) + 1)
    assert read_request(data[: min(at, mode_ends)]) is None


@given(st.lists(st.tuples(st.sampled_from(list(Side)), st.one_of(st.binary(max_size=600), requests)), max_size=30))
def test_each_datagram_goes_once_and_untouched(said: list[tuple[Side, bytes]]) -> None:
    """Whatever comes, in whichever order, and whatever the broker says: no byte is edited, none is lost or doubled."""
    module = TftpModule(DatagramContext())
    gone: list[int] = []
    for number, (side, data) in enumerate(said, 1):
        event = Datagram(number, side, CLIENT, SERVER, data, number / 7)
        for command in module.handle(event):
            if isinstance(command, Release):
                assert command.edits == ()
                gone.append(command.packet)
            elif isinstance(command, OpenConversation):
                assert command.target == CLIENT
                assert command.peers == (SERVER.host,)
                answer = Opened(command.ref, PUBLIC, number / 7) if number % 3 else Refused(command.ref, "", number / 7)
                gone += [command.packet for command in module.handle(answer) if isinstance(command, Release)]
    assert sorted(gone) == list(range(1, len(said) + 1))


def test_a_flood_of_one_client_opens_twenty_a_second_and_leaves_others_theirs() -> None:
    module = TftpModule(DatagramContext(TftpOptions(rate=20)))
    opened = 0
    for number in range(1000):
        commands = module.handle(asks(number, Endpoint(CLIENT.host, 2000 + number), now=number / 1000))
        opened += sum(isinstance(command, OpenConversation) for command in commands)
        assert all(not isinstance(command, Note) or command.code == "tftp.rate" for command in commands)
    assert 40 <= opened <= 61
    other = module.handle(asks(1000, Endpoint("192.168.56.11", 2000), now=1.0))
    assert [type(command) for command in other] == [OpenConversation]


def test_there_are_never_more_transfers_than_the_limit() -> None:
    module = TftpModule(DatagramContext())
    for number in range(MOST_TRANSFERS):
        client = Endpoint(f"10.{number >> 8}.{number & 255}.1", 2000)
        assert isinstance(module.handle(asks(number, client))[0], OpenConversation)
    commands = module.handle(asks(MOST_TRANSFERS))
    assert [type(command) for command in commands] == [Note, Release]


def test_not_more_requests_wait_than_the_limit() -> None:
    module = TftpModule(DatagramContext())
    for number in range(MOST_WAITING):
        assert Release(number) not in module.handle(asks(number))
    assert module.handle(asks(MOST_WAITING)) == [Release(MOST_WAITING)]


def test_what_it_costs_grows_with_the_number_of_requests() -> None:
    """A full table makes a request no dearer: the time of a request is looked at, not that of the clock."""
    module = TftpModule(DatagramContext(TftpOptions(rate=10000)))
    took = []
    for part in range(4):
        began = time.process_time()
        for number in range(part * 1000, (part + 1) * 1000):
            client = Endpoint(f"10.{number >> 8}.{number & 255}.1", 2000)
            module.handle(asks(number, client))
            module.handle(Opened(number + 1, PUBLIC, 0.0))
            module.handle(Activity(number + 1, 1, 1, 1.0))
        took.append(time.process_time() - began)
    assert took[3] < 5 * took[0] + 0.01


def test_another_process_goes_on_with_what_the_journal_says() -> None:
    module = TftpModule(DatagramContext(recorded=True))
    module.handle(asks(1))
    assert module.journal() == ()
    module.handle(Opened(1, PUBLIC, 0.0))
    entries = list(module.journal())
    assert module.journal() == ()
    successor = TftpModule(DatagramContext(recorded=True))
    successor.restore(entries, 5.0)
    assert successor.handle(asks(1, now=5.0)) == [Release(1)]
    assert successor.handle(asks(2, Endpoint(CLIENT.host, 2071), now=5.0))[0] == OpenConversation(
        2, Endpoint(CLIENT.host, 2071), None, (SERVER.host,), 30.0, "tftp.data"
    )
    assert successor.deadline() == 30.0
    assert successor.handle(Tick(35.0)) == [ClosePinhole(1)]
    assert [(entry.key, entry.record) for entry in successor.journal()][-1] == ("1", None)


@pytest.mark.parametrize("record", [b"", b"[]", b"nonsense", b'["x", 1, [], 0, 0, 0, 0, 0]'])
def test_a_record_that_cannot_be_read_is_left_out(record: bytes) -> None:
    module = TftpModule(DatagramContext(recorded=True))
    module.handle(asks(1))
    module.handle(Opened(1, PUBLIC, 0.0))
    (entry,) = module.journal()
    successor = TftpModule(DatagramContext(recorded=True))
    successor.restore([entry._replace(record=record)], 1.0)
    assert isinstance(successor.handle(asks(1, now=1.0))[0], OpenConversation)


def test_an_address_that_moved_ends_its_transfers() -> None:
    module = TftpModule(DatagramContext())
    module.handle(asks(1))
    module.handle(Opened(1, PUBLIC, 0.0))
    assert module.handle(Moved(1, 1.0)) == [ClosePinhole(1)]
    assert isinstance(module.handle(asks(2, now=1.0))[0], OpenConversation)


def test_a_transfer_lasts_two_hours_at_most() -> None:
    module = TftpModule(DatagramContext())
    module.handle(asks(1))
    module.handle(Opened(1, PUBLIC, 0.0))
    latest = 0.0
    for second in range(5, 7300, 5):
        for command in module.handle(Activity(1, second, second, float(second))):
            assert isinstance(command, UpdateConversation)
            assert command.ttl is not None
            latest = second + command.ttl
        if module.handle(Tick(float(second))):
            break
    assert second == 7200
    assert 7190 < latest <= 7200


def test_the_deadline_is_never_in_the_past_for_long() -> None:
    """A conversation that nobody answers about makes no clock that runs without end."""
    module = TftpModule(DatagramContext())
    module.handle(asks(1))
    assert module.deadline() == 30.0
    assert module.handle(Tick(30.0)) == []
    assert module.deadline() == 31.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"idle_timeout": 9.0}, "idle_timeout: 9 is not between 10 and 300"),
        ({"idle_timeout": float("nan")}, "idle_timeout: nan is not between"),
        ({"rate": 0}, "rate: 0 is not between 1 and 10000"),
    ],
)
def test_options_that_make_no_sense(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TftpOptions(**keys)  # type: ignore[arg-type]
