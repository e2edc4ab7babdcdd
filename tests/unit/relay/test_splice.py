"""The relay with real TCP connections: every byte, every end of a connection, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gc
import hashlib
import os
import random
import resource
import socket as stdlib
import termios
from collections.abc import Callable
from time import monotonic

import gevent
import pytest
from gevent.event import AsyncResult

from gateway.net.relay import splice
from gateway.net.relay.half import RelayResult
from gateway.net.relay.splice import Relay, RelayHandle
from gateway.net.relay.wheel import Wheel
from gateway.net.sockets import prepare
from tests.greenlets import join_all
from tests.unit.relay.ends import Joined, descriptors, join, read_all, read_exactly, reset, settle, tcp_pair

MIB = 1024 * 1024
TCP_CLOSE = 7  # tcpi_state


def wait_until(condition: object, message: str, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, message
        gevent.sleep(0.005)


def all_acknowledged(sock: gevent.socket.socket) -> bool:
    """Whether the other side has all that was sent."""
    return fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)) == bytes(4)


def peer_is_gone(sock: gevent.socket.socket) -> bool:
    """Whether a RST has come (after an end of stream `recv` does not tell)."""
    return sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_INFO, 1)[0] == TCP_CLOSE


def send_all(joined: Joined, data: bytes) -> None:
    joined.client.sendall(data)
    joined.client.shutdown(stdlib.SHUT_WR)


# --- orderly ends ----------------------------------------------------------------------------------------------------


def test_request_and_answer(relay: Relay) -> None:
    flow = join(relay)
    flow.client.sendall(b"ping")
    assert flow.server.recv(100) == b"ping"
    flow.server.sendall(b"pong!")
    assert flow.client.recv(100) == b"pong!"
    assert (flow.handle.up, flow.handle.down) == (4, 5)
    flow.client.close()
    assert flow.server.recv(1) == b""
    flow.server.close()
    assert flow.result() == RelayResult(4, 5, "eof")


def test_half_close_up_then_answer(relay: Relay) -> None:
    flow = join(relay)
    data = random.Random(1).randbytes(8 * MIB)
    sender = gevent.spawn(send_all, flow, data)
    assert hashlib.sha256(read_all(flow.server)).digest() == hashlib.sha256(data).digest()
    sender.get()
    answer = random.Random(2).randbytes(MIB)
    flow.server.sendall(answer)
    flow.server.close()
    assert read_all(flow.client) == answer
    flow.client.close()
    assert flow.result() == RelayResult(8 * MIB, MIB, "eof")


def test_half_close_by_the_server_first(relay: Relay) -> None:
    flow = join(relay)
    flow.server.sendall(b"banner")
    flow.server.shutdown(stdlib.SHUT_WR)
    assert read_all(flow.client) == b"banner"
    flow.client.sendall(b"still here")
    flow.client.close()
    assert read_all(flow.server) == b"still here"
    flow.server.close()
    assert flow.result() == RelayResult(10, 6, "eof")


def test_what_came_before_the_start_is_relayed(relay: Relay) -> None:
    client, left = tcp_pair()
    server, right = tcp_pair()
    client.sendall(b"early")
    client.close()
    done: AsyncResult[RelayResult] = AsyncResult()
    relay.start(left, right, done.set)
    assert read_all(server) == b"early"
    server.close()
    assert done.get(timeout=10) == RelayResult(5, 0, "eof")


def test_sockets_of_the_standard_library(relay: Relay) -> None:
    """Also Unix ones, and blocking ones."""
    client, left = stdlib.socketpair()
    right, server = stdlib.socketpair()
    done: AsyncResult[RelayResult] = AsyncResult()
    relay.start(left, right, done.set)
    assert left.fileno() == right.fileno() == -1, "the relay took them over"
    client.sendall(b"hello")
    client.close()
    server.setblocking(False)
    gevent.socket.wait_read(server.fileno(), timeout=10)
    assert server.recv(100) == b"hello"
    server.close()
    assert done.get(timeout=10) == RelayResult(5, 0, "eof")


def test_a_closed_socket_is_refused_and_the_other_left_alone(relay: Relay) -> None:
    client, left = tcp_pair()
    client.close()
    with pytest.raises(ValueError, match="closed socket"):
        relay.start(left, client, lambda _result: None)
    assert left.fileno() >= 0
    left.close()


# --- backpressure ----------------------------------------------------------------------------------------------------


def test_a_sink_that_does_not_read_stops_the_source(relay: Relay) -> None:
    flow = join(relay, buffers=65536)
    data = random.Random(3).randbytes(16 * MIB)
    sender = gevent.spawn(send_all, flow, data)

    def stuck() -> bool:
        seen = flow.handle.up
        gevent.sleep(0.1)
        return bool(seen and flow.handle.up == seen)

    wait_until(stuck, "the flow never stopped")
    assert not sender.ready()
    assert flow.handle.up < 4 * MIB
    assert relay.pool.lent == 1, "the bytes that are on their way are in one pipe"
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    gevent.sleep(0.3)
    assert sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - spent < 0.1, "it spins while it waits"
    flow.server.sendall(b"the other direction is free")
    assert flow.client.recv(100) == b"the other direction is free"
    assert read_all(flow.server) == data
    flow.close()
    sender.get()
    assert flow.result() == RelayResult(16 * MIB, 27, "eof")


def test_an_idle_flow_holds_two_sockets_and_nothing_else(relay: Relay) -> None:
    before = descriptors()
    flow = join(relay)
    flow.client.sendall(b"x" * MIB)
    read_exactly(flow.server, MIB)
    wait_until(lambda: relay.pool.lent == 0, "a pipe is still lent")
    relay.pool.close()
    settle()
    assert descriptors() == before + 4  # two of them are the ends of this test
    flow.close()
    assert flow.result().reason == "eof"


def test_a_few_bytes_do_not_overtake_those_in_a_pipe(relay: Relay) -> None:
    """What is spliced and what is copied keeps its order, where one turns into the other before a full sink."""
    few = 0
    for seed in range(100):
        flow = join(relay, buffers=16384)
        rng = random.Random(seed)
        sent = b""
        while not (waiting := flow.handle._up.waiting) and len(sent) < 4 * MIB:
            part = rng.randbytes(rng.choice([16384, 20_000]) if len(sent) % 3 else rng.randrange(1, 4000))
            flow.client.sendall(part)
            sent += part
            gevent.sleep(0.001)  # it is read for itself
        assert waiting, "the sink took everything"
        pipe = flow.handle._up.pipe
        few += pipe is not None and pipe.held < splice.FEW
        tail = rng.randbytes(10)
        flow.client.sendall(tail)
        flow.client.shutdown(stdlib.SHUT_WR)
        assert read_all(flow.server) == sent + tail
        flow.close()
        assert flow.result() == RelayResult(len(sent) + 10, 0, "eof")
        if few == 3:
            return
    raise AssertionError("no pipe had a few bytes in it")


def test_small_messages_need_no_pipe(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def no_pipe(flags: int) -> tuple[int, int]:
        asked.append(flags)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", no_pipe)
    flow = join(relay)
    for _ in range(20):
        flow.client.sendall(b"x" * 1000)
        assert read_exactly(flow.server, 1000) == b"x" * 1000
    assert not asked
    flow.client.sendall(bytes(MIB))  # this one asks, gets none here, and goes on all the same
    read_exactly(flow.server, MIB)
    assert asked
    flow.close()
    assert flow.result() == RelayResult(20_000 + MIB, 0, "eof")


@pytest.mark.parametrize("state", ["idle", "half-closed", "sink full", "sink full, source gone", "reset, sink full"])
def test_waiting_costs_nothing(relay: Relay, state: str) -> None:
    """epoll tells what lasts again and again: whatever a flow waits for, nothing else is reported meanwhile."""
    flow = join(relay, buffers=65536)
    if "full" in state:
        flow.client.setblocking(False)
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                flow.client.send(bytes(MIB))
            gevent.sleep(0.005)
        flow.client.setblocking(True)
        assert relay.pool.lent == 1
    if state == "half-closed":
        flow.client.shutdown(stdlib.SHUT_WR)
        assert flow.server.recv(1) == b""
    elif "gone" in state:
        flow.client.close()
    elif "reset" in state:
        reset(flow.client)
    gevent.sleep(0.05)
    reported: list[int] = []

    def listen(handler: Callable[[int], None], events: int) -> None:
        reported.append(events)
        handler(events)

    for watch in relay.poller.watches.values():
        watch.handler = functools.partial(listen, watch.handler)
    gevent.sleep(0.3)
    assert len(reported) <= 3, f"{len(reported)} events in 0.3 s"
    flow.handle.abort()
    flow.result()
    flow.close()


def test_a_flow_needs_no_watcher_and_no_greenlet(relay: Relay) -> None:
    gc.collect()
    greenlets = sum(isinstance(thing, gevent.Greenlet) for thing in gc.get_objects())
    watchers = gevent.get_hub().loop.activecnt
    flows = [join(relay) for _ in range(20)]
    for flow in flows:
        flow.client.sendall(b"x")
        assert flow.server.recv(1) == b"x"
    settle()
    gc.collect()
    assert gevent.get_hub().loop.activecnt <= watchers + 1  # the wheel's timer
    assert sum(isinstance(thing, gevent.Greenlet) for thing in gc.get_objects()) <= greenlets
    assert len(relay.poller) == 40
    for flow in flows:
        flow.close()
        flow.result()


# --- broken connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["left", "right"])
def test_a_reset_is_passed_on(relay: Relay, who: str) -> None:
    flow = join(relay)
    breaker, other = (flow.client, flow.server) if who == "left" else (flow.server, flow.client)
    breaker.sendall(b"last words")
    assert other.recv(100) == b"last words"
    reset(breaker)
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    assert flow.result() in (RelayResult(10, 0, "reset", "left"), RelayResult(0, 10, "reset", "right"))
    assert flow.result().side == who
    flow.close()


def test_what_was_sent_before_a_reset_is_delivered(relay: Relay) -> None:
    """A server that answers and resets (it did not read the whole request) is not cut short by the gateway."""
    for round_ in range(20):
        flow = join(relay)
        answer = random.Random(round_).randbytes(300_000)
        uploader = gevent.spawn(flow.client.send, b"u" * MIB)
        read_exactly(flow.server, 1000)
        flow.server.sendall(answer)
        wait_until(functools.partial(all_acknowledged, flow.server), "the gateway did not take the answer")
        flow.server.close()  # with unread bytes: the kernel sends a RST
        assert read_exactly(flow.client, len(answer)) == answer
        with pytest.raises(ConnectionResetError):
            flow.client.recv(1)
        uploader.join()
        assert flow.result().reason == "reset"
        assert flow.result().side == "right"
        assert flow.result().down == len(answer)
        flow.close()


def test_a_slow_reader_gets_what_was_sent_before_a_reset(relay: Relay) -> None:
    flow = join(relay, buffers=65536)
    answer = random.Random(7).randbytes(200_000)
    flow.client.sendall(b"request that the server does not read")
    gevent.spawn(flow.server.sendall, answer).join(timeout=10)
    wait_until(functools.partial(all_acknowledged, flow.server), "the gateway did not take the answer")
    flow.server.close()
    gevent.sleep(0.1)  # the gateway knows of the reset now
    assert read_exactly(flow.client, len(answer)) == answer
    with pytest.raises(ConnectionResetError):
        flow.client.recv(1)
    assert flow.result() == RelayResult(37, len(answer), "reset", "right")
    flow.close()


def test_both_break_one_after_the_other(relay: Relay) -> None:
    """What is still on its way to a side that breaks too is not waited for."""
    flow = join(relay, buffers=65536)
    gevent.spawn(flow.server.sendall, bytes(200_000)).join(timeout=10)
    wait_until(functools.partial(all_acknowledged, flow.server), "the gateway did not take the answer")
    reset(flow.server)
    gevent.sleep(0.1)
    assert not flow.done.ready()
    start = monotonic()
    reset(flow.client)
    assert flow.result().reason == "reset"
    assert monotonic() - start < splice.RESET_GRACE / 2


def test_a_reset_while_the_other_does_not_read(relay: Relay) -> None:
    flow = join(relay, buffers=65536)
    sender = gevent.spawn(flow.client.sendall, bytes(16 * MIB))
    wait_until(lambda: relay.pool.lent == 1, "the sink never filled")
    reset(flow.server)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sender.get(timeout=10)
    assert flow.result().side == "right"
    flow.close()


def test_a_reset_after_a_half_close(relay: Relay) -> None:
    flow = join(relay)
    flow.client.shutdown(stdlib.SHUT_WR)
    assert flow.server.recv(1) == b""
    reset(flow.client)  # and the server is silent
    assert flow.result().reason == "reset"
    assert flow.result().side == "left"
    wait_until(lambda: peer_is_gone(flow.server), "the reset was not passed on")
    flow.close()


def test_a_reset_while_its_bytes_are_stuck(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not read. It gets the reset all the same, after a while and not after the idle limit."""
    monkeypatch.setattr(splice, "RESET_GRACE", 0.5)
    flow = join(relay, buffers=65536)
    sender = gevent.spawn(flow.client.sendall, bytes(16 * MIB))
    wait_until(lambda: relay.pool.lent == 1, "the sink never filled")
    sender.kill()
    reset(flow.client)
    assert flow.result().reason == "reset"
    assert flow.result().side == "left"
    wait_until(lambda: peer_is_gone(flow.server), "the reset was not passed on")
    flow.close()


def test_an_orderly_end_in_a_full_pipe_is_no_reset(relay: Relay) -> None:
    """Both sides have closed in order, and the slow reader still gets all, and an end of stream behind it."""
    flow = join(relay, buffers=65536)
    flow.server.shutdown(stdlib.SHUT_WR)
    assert flow.client.recv(1) == b""
    data = random.Random(6).randbytes(2 * MIB)
    sender = gevent.spawn(flow.client.sendall, data)
    sender.link(lambda _sender: flow.client.close())
    received = b""
    stuck = False
    while part := flow.server.recv(50_000):
        received += part
        gevent.sleep(0.005)
        stuck = stuck or (sender.ready() and relay.pool.lent == 1)
    assert received == data
    assert stuck, "the client was to close while the pipe was full"
    flow.close()
    assert flow.result() == RelayResult(len(data), 0, "eof")


def test_a_reset_of_both_sides_after_a_half_close(relay: Relay) -> None:
    flows = [join(relay) for _ in range(20)]
    for flow in flows:
        flow.client.shutdown(stdlib.SHUT_WR)
        assert flow.server.recv(1) == b""
    for flow in flows:
        reset(flow.client)
        reset(flow.server)
    assert [flow.result().reason for flow in flows] == ["reset"] * 20


@pytest.mark.parametrize("hard", [True, False])
def test_abort(relay: Relay, hard: bool) -> None:
    flow = join(relay)
    flow.client.sendall(b"abc")
    assert flow.server.recv(100) == b"abc"
    flow.handle.abort(reset=hard)
    flow.handle.abort(reset=hard)
    for end in (flow.client, flow.server):
        if hard:
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        else:
            assert end.recv(1) == b""
    assert flow.result() == RelayResult(3, 0, "aborted")
    flow.handle.abort()
    flow.close()


def test_abort_with_bytes_in_the_pipe(relay: Relay) -> None:
    flow = join(relay, buffers=65536)
    sender = gevent.spawn(flow.client.sendall, bytes(16 * MIB))
    wait_until(lambda: relay.pool.lent == 1, "the sink never filled")
    flow.handle.abort()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sender.get(timeout=10)
    flow.close()
    other = join(relay)  # and nobody else gets what was in that pipe
    other.client.sendall(b"mine")
    other.client.close()
    assert read_all(other.server) == b"mine"
    other.close()
    assert other.result().reason == "eof"


def test_closing_the_relay_aborts_all(relay: Relay) -> None:
    flows = [join(relay) for _ in range(5)]
    relay.close()
    assert [flow.result().reason for flow in flows] == ["aborted"] * 5
    for flow in flows:
        flow.close()


def test_an_error_in_on_done_harms_nobody(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    client, left = tcp_pair()
    server, right = tcp_pair()

    def fails(result: RelayResult) -> None:
        raise RuntimeError("on_done failed")

    relay.start(left, right, fails)
    client.close()
    server.close()
    wait_until(lambda: not relay.live, "the flow did not end")
    settle()
    assert "on_done failed" in capsys.readouterr().err
    flow = join(relay)
    flow.close()
    assert flow.result().reason == "eof"


# --- limits ----------------------------------------------------------------------------------------------------------


def test_idle_limit(relay: Relay) -> None:
    relay.idle_timeout = 0.8
    start = monotonic()
    flow = join(relay)
    for _ in range(4):  # a flow that is used lives on
        gevent.sleep(0.4)
        flow.client.sendall(b"x")
        assert flow.server.recv(1) == b"x"
    with pytest.raises(ConnectionResetError):
        flow.client.recv(1)
    assert 2.4 <= monotonic() - start < 4
    assert flow.result() == RelayResult(4, 0, "idle")
    flow.close()


def test_half_closed_limit(relay: Relay) -> None:
    relay.half_close_timeout = 0.5
    flow = join(relay)
    flow.client.shutdown(stdlib.SHUT_WR)
    assert flow.server.recv(1) == b""
    for _ in range(4):  # an answer that takes long is not cut
        gevent.sleep(0.3)
        flow.server.sendall(b"x")
        assert flow.client.recv(1) == b"x"
    assert flow.result() == RelayResult(0, 4, "half-closed")
    with pytest.raises(ConnectionResetError):
        flow.client.recv(1)
    wait_until(lambda: peer_is_gone(flow.server), "the server's side was not reset")
    flow.close()


def test_half_closed_limit_beyond_the_wheels_turn(relay: Relay) -> None:
    """A limit that is longer than a turn of the wheel is kept without a new entry."""
    relay.wheel = Wheel(tick=0.02, slots=8)
    relay.half_close_timeout = 0.5
    flow = join(relay)
    flow.client.shutdown(stdlib.SHUT_WR)
    start = monotonic()
    assert flow.result() == RelayResult(0, 0, "half-closed")
    assert 0.45 <= monotonic() - start < 3
    flow.close()


def test_no_descriptor_left_for_a_pipe(relay: Relay) -> None:
    """Data goes on by copying, with backpressure and both ends, until there are descriptors again."""
    flow = join(relay, buffers=65536)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert relay.pool.borrow() is None
        data = random.Random(4).randbytes(4 * MIB)
        sender = gevent.spawn(send_all, flow, data)
        assert read_all(flow.server) == data
        sender.get()
        flow.server.sendall(data[:MIB][::-1][: MIB // 8])
        assert read_exactly(flow.client, MIB // 8) == data[:MIB][::-1][: MIB // 8]
        flow.server.close()
        assert flow.client.recv(1) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    flow.close()
    assert flow.result() == RelayResult(4 * MIB, MIB // 8, "eof")


def test_small_pipes(relay: Relay) -> None:
    relay.pool.size = 4096
    flow = join(relay)
    data = random.Random(5).randbytes(2 * MIB)
    sender = gevent.spawn(send_all, flow, data)
    assert read_all(flow.server) == data
    sender.get()
    flow.close()
    assert flow.result() == RelayResult(2 * MIB, 0, "eof")


# --- many ------------------------------------------------------------------------------------------------------------


def converse(relay: Relay, seed: int) -> None:
    """One flow of random shape in both directions at once; ends in order, or by a reset somewhere."""
    rng = random.Random(seed)
    flow = join(relay, buffers=rng.choice([0, 0, 8192]))
    up, down = rng.randbytes(rng.choice([0, 1, 1000, 200_000])), rng.randbytes(rng.choice([0, 1, 1000, 200_000]))

    def talk(sock: gevent.socket.socket, data: bytes, chunks: random.Random) -> None:
        view = memoryview(data)
        while view:
            size = chunks.choice([1, 100, 1460, 65536])
            sock.sendall(view[:size])
            view = view[size:]
            gevent.sleep(0)
        sock.shutdown(stdlib.SHUT_WR)

    talkers = [
        gevent.spawn(talk, flow.client, up, random.Random(seed)),
        gevent.spawn(talk, flow.server, down, random.Random(-seed)),
    ]
    if rng.random() < 0.3:
        gevent.sleep(rng.random() * 0.05)
        gevent.killall(talkers)
        reset(rng.choice([flow.client, flow.server]))
        result = flow.result()
        assert result.up <= len(up)
        assert result.down <= len(down)
    else:
        readers = [gevent.spawn(read_all, flow.server), gevent.spawn(read_all, flow.client)]
        join_all(talkers, 60, raise_error=True)
        join_all(readers, 60, raise_error=True)
        assert readers[0].get(timeout=0) == up
        assert readers[1].get(timeout=0) == down
        flow.close()
        assert flow.result() == RelayResult(len(up), len(down), "eof")
    flow.close()


def test_many_flows_at_once(relay: Relay) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    flows = [gevent.spawn(converse, relay, seed) for seed in range(500)]
    join_all(flows, 100, raise_error=True)


def test_a_fast_flow_does_not_starve_the_others(relay: Relay) -> None:
    fast, slow = join(relay), join(relay)

    def pour() -> None:
        while True:
            fast.client.send(bytes(MIB))

    def drink() -> None:
        while fast.server.recv(MIB):
            pass

    busy = [gevent.spawn(pour), gevent.spawn(drink)]
    worst = 0.0
    for _ in range(100):
        start = monotonic()
        slow.client.sendall(b"ping")
        assert slow.server.recv(4) == b"ping"
        worst = max(worst, monotonic() - start)
    assert fast.handle.up > 10 * MIB
    assert worst < 0.5
    busy[0].kill()
    fast.client.close()
    busy[1].join()
    fast.close()
    assert fast.result().reason == "eof"
    fast.close()
    slow.close()
    slow.result()


def test_no_reference_cycle_keeps_a_flow_alive(relay: Relay) -> None:
    gc.collect()
    gc.disable()
    try:
        flow = join(relay)
        flow.close()
        assert flow.result().reason == "eof"
        del flow
        settle()
        assert not [thing for thing in gc.get_objects() if isinstance(thing, RelayHandle)]
    finally:
        gc.enable()


def test_a_side_that_has_much_to_do_lets_others_go_first(relay: Relay) -> None:
    """Forty streams begin at once, and then somebody says a few bytes: these do not wait until each stream has moved
    as much as it can."""
    streams = [join(relay) for _ in range(40)]
    few = join(relay)
    for stream in streams:
        stream.client.setblocking(False)
        stream.server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stream.client.send(bytes(MIB))
    few.client.send(b"few")
    few.server.settimeout(5)
    assert few.server.recv(10) == b"few"
    assert max(stream.handle.up for stream in streams) < MIB
    for flow in (*streams, few):
        flow.close()
        flow.result()


def test_every_urgent_byte_of_a_bulk_transfer_arrives_in_its_place(relay: Relay) -> None:
    client, left = tcp_pair()
    server, right = tcp_pair()
    for sock in (left, right):
        prepare(sock)
    done: AsyncResult[RelayResult] = AsyncResult()
    flow = Joined(client, server, relay.start(left, right, done.set), done)
    piece = random.Random(5).randbytes(100_000)
    reading = gevent.spawn(read_all, server)
    for _ in range(100):
        client.sendall(piece)
        client.send(b"!", stdlib.MSG_OOB)
    client.shutdown(stdlib.SHUT_WR)
    assert reading.get(timeout=60) == (piece + b"!") * 100
    flow.close()
    flow.result()
