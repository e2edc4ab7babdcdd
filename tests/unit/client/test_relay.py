"""How `algate exec` joins a program's connection and the proxy's: every byte, every end, and what is none."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client.engine import relay as module
from gateway.client.engine.relay import relay
from gateway.client.sockets import pair, reset

BIG = bytes(range(256)) * (3 << 12)  # more than fits in any buffer


class Ends:
    """The two ends of a relayed connection, as a program and a server see them."""

    def __init__(self) -> None:
        self.program, near = pair()
        self.server, far = pair()
        for sock in (self.program, self.server):
            sock.settimeout(10)
        self.thread = threading.Thread(target=relay, args=(near, far))
        self.thread.start()


@pytest.fixture
def ends() -> Iterator[Ends]:
    before = set(os.listdir("/proc/self/fd"))
    made = Ends()
    yield made
    made.program.close()
    made.server.close()
    made.thread.join(20)
    assert not made.thread.is_alive()
    assert set(os.listdir("/proc/self/fd")) <= before  # threads of other tests may have closed some


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 20):
        data += part
    return bytes(data)


def send_in_background(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    return thread


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(BIG)


@pytest.mark.parametrize("size", [1, 4096, module.COPY_SIZE - 1, module.COPY_SIZE, module.COPY_SIZE + 1, len(BIG)])
def test_every_byte_both_ways_and_both_ends(ends: Ends, size: int) -> None:
    """What has ended in one direction goes on in the other."""
    sending = send_in_background(ends.program, BIG[:size])
    back = send_in_background(ends.server, BIG[:size][::-1])
    for sock, expected in ((ends.server, BIG[:size]), (ends.program, BIG[:size][::-1])):
        got = bytearray()
        while len(got) < size:
            got += sock.recv(1 << 20)
        assert got == expected
    sending.join()
    back.join()
    ends.program.shutdown(socket.SHUT_WR)
    assert ends.server.recv(1) == b""
    ends.server.sendall(b"after")
    assert ends.program.recv(10) == b"after"
    ends.server.close()
    assert ends.program.recv(1) == b""


def test_much_and_little_in_turns(ends: Ends) -> None:
    """A side goes from copying to the pipe and back, in order."""
    parts = [BIG[:size] for size in (10, 200_000, 3, module.COPY_SIZE, 1, 500_000)] * 4
    sending = send_in_background(ends.server, b"".join(parts))
    for part in parts:
        got = bytearray()
        while len(got) < len(part):
            got += ends.program.recv(len(part) - len(got))
        assert got == part
    sending.join()


@pytest.mark.parametrize("size", [0, 5, 100_000, len(BIG)])
def test_a_reset_is_no_end(ends: Ends, size: int) -> None:
    """What came before it is delivered, and then there is an error: a shorter file would look whole."""
    sending = send_in_background(ends.server, BIG[:size])
    got = bytearray(ends.program.recv(1)) if size else bytearray()
    while len(got) < size:
        got += ends.program.recv(1 << 20)
    sending.join()
    assert got == BIG[:size]
    reset(ends.server)
    with pytest.raises(ConnectionResetError):
        ends.program.recv(1)


def test_what_came_before_a_reset_is_delivered_to_a_slow_program(ends: Ends) -> None:
    """The server has gone, and the program begins to read more than fits in any buffer."""
    much = BIG * 10

    def send() -> None:
        ends.server.sendall(much)
        reset(ends.server)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join(0.5)  # it fills what there is of buffers
    got = bytearray()
    while len(got) < len(much):
        part = ends.program.recv(100_000)
        assert part, len(got)
        got += part
    assert got == much
    with pytest.raises(ConnectionResetError):
        ends.program.recv(1)
    thread.join()


def test_a_reset_by_the_program_reaches_the_server(ends: Ends) -> None:
    ends.program.sendall(b"half of it")
    assert ends.server.recv(100) == b"half of it"
    ends.program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends.program.close()
    with pytest.raises(ConnectionResetError):
        ends.server.recv(1)


def test_a_reset_after_the_end_of_a_direction(ends: Ends) -> None:
    """The server has ended its direction in order, and then goes while the program still sends."""
    ends.server.shutdown(socket.SHUT_WR)
    assert ends.program.recv(1) == b""
    ends.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends.server.close()
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        send_for_ever(ends.program)


def test_a_server_that_goes_while_it_is_written_to(ends: Ends) -> None:
    """Writing finds it out, and takes the error: what reading finds is no end all the same."""
    ends.program.settimeout(0.2)
    with pytest.raises(TimeoutError):
        send_for_ever(ends.program)  # all buffers are full
    ends.program.settimeout(10)
    ends.server.close()  # with unread data: that is a reset
    with pytest.raises(ConnectionResetError):
        ends.program.recv(1)


@pytest.mark.parametrize("size", [10, 300_000])
def test_an_urgent_byte_is_no_end(ends: Ends, size: int) -> None:
    """Telnet and FTP send one at ^C: splice(2) says 0 there, as at the end."""
    sending = send_in_background(ends.program, BIG[:size])
    sending.join()
    ends.program.send(b"!", socket.MSG_OOB)
    ends.program.sendall(b"after")
    ends.program.shutdown(socket.SHUT_WR)
    assert read_all(ends.server) == BIG[:size] + b"after"


def test_without_descriptors_for_a_pipe(ends: Ends) -> None:
    """It copies."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists())
    kept = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        while True:
            try:
                kept.append(os.dup(0))
            except OSError:
                break
        sending = send_in_background(ends.program, BIG)
        got = bytearray()
        while len(got) < len(BIG):
            got += ends.server.recv(1 << 20)
        sending.join()
        assert got == BIG
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in kept:
            os.close(descriptor)
