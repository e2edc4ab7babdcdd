"""A client of random SOCKS handshakes: `python -m tests.fuzz.random_handshakes HOST PORT SEED COUNT`.

Each is a right one that was cut, doubled, or changed in some bytes, sent in some pieces; each has to end in a close.
"""

from __future__ import annotations

import random
import socket
import struct
import sys

import gevent
import gevent.pool
import gevent.socket as gsocket

from tests.lab.lab import SERVER4, SERVER6
from tests.net.socks_wire import GREETING, request4, request5

AT_ONCE = 64
DEADLINE = 20  # seconds: more than the gateway's own for a handshake
HOSTS = [
    SERVER4,
    SERVER6,
    "127.0.0.1",
    "0.0.0.0",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "198.51.100.1",
    "no.invalid",
    "x" * 255,
]
RESET = struct.pack("ii", 1, 0)


def handshake(rng: random.Random) -> bytes:
    host, port = rng.choice(HOSTS), rng.choice([9, 0, 65535])
    if rng.random() < 0.3:
        wire = request4(
            host if ":" not in host else "no.invalid", port, rng.choice([1, 1, 2, 0xF0, rng.randrange(256)])
        )
    else:
        methods = rng.choice([GREETING, b"\5\2\0\2", b"\5\3\0\1\2", bytes([5, rng.randrange(256)]) + rng.randbytes(3)])
        wire = methods + request5(host, port, rng.choice([1, 1, 2, 3, 0xF0, 0xF1, rng.randrange(256)]))
    changed = bytearray(wire)
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    match rng.randrange(6):
        case 0:
            del changed[rng.randrange(len(changed)) :]
        case 1:
            changed += rng.randbytes(rng.randrange(40))
        case 2:
            changed[:] = rng.randbytes(rng.randrange(1, 40))
    return bytes(changed)


def play(host: str, port: int, rng: random.Random) -> None:
    """One handshake, to its end. TimeoutError if the gateway does not end it."""
    wire = handshake(rng)
    sock = gsocket.create_connection((host, port), DEADLINE)
    try:
        sock.settimeout(DEADLINE)
        cut = rng.randrange(len(wire) + 1)
        for piece in (wire[:cut], wire[cut:]):
            if piece:
                sock.sendall(piece)
                gevent.sleep(0)
        if rng.random() < 0.3:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    except (ConnectionResetError, BrokenPipeError):
        pass
    except OSError as error:
        if error.errno != 107:  # ENOTCONN: reset before the shutdown
            raise RuntimeError(f"{wire!r}: {error!r}") from error
    finally:
        sock.close()


def main() -> None:
    host, port, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    failed: list[object] = []
    pool = gevent.pool.Pool(AT_ONCE)
    for _ in range(count):
        playing = pool.spawn(play, host, port, random.Random(rng.getrandbits(64)))
        playing.link_exception(lambda greenlet: failed.append(greenlet.exception))
    pool.join()
    print(f"{count} handshakes, {len(failed)} that did not end as they should", *failed[:5], sep="\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
