"""The socket that a program gets where its bytes are encoded on the wire: its ends, and what is none."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client.pump import protected
from gateway.client.sockets import pair, reset
from gateway.client.tls import TlsCodec
from tests.lab.certificates import Authority


@contextlib.contextmanager
def encrypted(folder: Path) -> Iterator[tuple[socket.socket, ssl.SSLSocket]]:
    """A program's socket, and the proxy's end of its wire."""
    authority = Authority(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("proxy", hosts=("127.0.0.1",)))
    wire, other = pair()
    found: list[ssl.SSLSocket] = []

    def serve() -> None:
        found.append(context.wrap_socket(other, server_side=True, suppress_ragged_eofs=False))

    thread = threading.Thread(target=serve)
    thread.start()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    stream = ssl.create_default_context(cafile=authority.file).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    while True:
        try:
            stream.do_handshake()
        except ssl.SSLWantReadError:
            wire.sendall(outgoing.read())
            incoming.write(wire.recv(65536))
        else:
            break
    wire.sendall(outgoing.read())
    thread.join()
    codec = TlsCodec(stream, incoming, outgoing)
    program, proxy = protected(wire, codec, codec.feed(b"")), found[0]
    program.settimeout(10)
    proxy.settimeout(10)
    with program, proxy:
        yield program, proxy


def test_an_end_in_order_is_an_end(tmp_path: Path) -> None:
    with encrypted(tmp_path) as (program, proxy):
        proxy.sendall(b"all of it")
        with contextlib.suppress(TimeoutError):
            proxy.settimeout(0.1)
            proxy.unwrap()  # close_notify; nobody answers yet
        assert program.recv(100) == b"all of it"
        assert program.recv(1) == b""


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_a_wire_that_is_cut_is_no_end(tmp_path: Path, how: str) -> None:
    """Anybody on the way could end the connection: the program gets what came before, and an error."""
    with encrypted(tmp_path) as (program, proxy):
        proxy.sendall(b"half of")
        assert program.recv(100) == b"half of"
        proxy.sendall(b" it")
        if how == "cut":
            socket.socket.shutdown(proxy, socket.SHUT_WR)  # an end of TCP, and none of TLS
        else:
            reset(socket.socket(fileno=proxy.detach()))
        assert program.recv(100) == b" it"
        with pytest.raises(ConnectionResetError):
            program.recv(1)


def test_a_program_that_goes_is_no_end_for_the_proxy(tmp_path: Path) -> None:
    with encrypted(tmp_path) as (program, proxy):
        program.sendall(b"half of it")
        assert proxy.recv(100) == b"half of it"
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        program.close()
        with pytest.raises(OSError, match=r"reset|EOF"):
            proxy.recv(1)


def test_a_program_that_has_said_all_waits_for_the_answer(tmp_path: Path) -> None:
    with encrypted(tmp_path) as (program, proxy):
        program.sendall(b"question")
        program.shutdown(socket.SHUT_WR)
        assert proxy.recv(100) == b"question"
        assert proxy.recv(1) == b""
        proxy.sendall(b"answer")
        assert program.recv(100) == b"answer"


def test_it_takes_what_programs_set_on_sockets_of_the_internet(tmp_path: Path) -> None:
    """http.client, and others, set it on what `connect` has returned, and take an error of it for one."""
    with encrypted(tmp_path) as (program, _):
        program.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert program.getpeername()[0] == "127.0.0.1"
