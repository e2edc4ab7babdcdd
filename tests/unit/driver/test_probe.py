"""What is found out about a port before it opens: real sockets on loopback."""

from __future__ import annotations

import gevent
import gevent.socket as gsocket
import pytest

from alg.address import Endpoint
from alg.api import Probe
from gateway.driver.probe import is_proven


def answered(answer: bytes, expect: bytes, unchecked: tuple[int, int] = (0, 0), send: bytes = b"hello") -> bool:
    """Whether a listener that answers like this is what was expected."""
    listener = gsocket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        for at in range(0, len(answer), 5):
            connection.sendall(answer[at : at + 5])
            gevent.sleep(0)
        connection.close()

    serving = gevent.spawn(serve)
    target = Endpoint("127.0.0.1", listener.getsockname()[1])
    try:
        return is_proven(Probe(1, target, send, expect, unchecked))
    finally:
        serving.kill()
        listener.close()


@pytest.mark.parametrize(
    ("answer", "expect", "unchecked", "proven"),
    [
        (b"HELLO and more", b"HELLO", (0, 0), True),
        (b"HELL", b"HELLO", (0, 0), False),
        (b"HELlO", b"HELLO", (0, 0), False),
        (b"head-xyz-tail", b"head-\0\0\0-tail", (5, 8), True),
        (b"head-xyz-tale", b"head-\0\0\0-tail", (5, 8), False),
        (b"heap-xyz-tail", b"head-\0\0\0-tail", (5, 8), False),
        (b"head-xy", b"head-\0\0\0-tail", (5, 8), False),
        (b"", b"", (0, 0), True),
        (b"", b"x", (0, 0), False),
        (b"x" * 600, b"x" * 600, (0, 0), False),
    ],
)
def test_what_is_proof(answer: bytes, expect: bytes, unchecked: tuple[int, int], proven: bool) -> None:
    assert answered(answer, expect, unchecked) is proven


def test_nobody_listens() -> None:
    with gsocket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not is_proven(Probe(1, Endpoint("127.0.0.1", unused.getsockname()[1]), b"", b""))
