"""What a round of the event loop costs while others upload as fast as they can: in time of the processor, so that a
busy machine does not matter."""

from __future__ import annotations

import subprocess
import sys
import time

import gevent
import gevent.socket as gsocket
import pytest

from gateway.net.relay.splice import Relay
from gateway.net.sockets import prepare

SECONDS = 2.0
# Four uploads of 64 KiB pieces, each followed by what argv says; and a server that reads them.
UPLOADS = """
import socket, sys, threading
def work():
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            sock.sendall(bytes(65536))
            if sys.argv[2] != "nothing":
                sock.send(b"!", socket.MSG_OOB if sys.argv[2] == "urgent" else 0)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
"""
SINK = """
import socket, threading
def swallow(sock):
    while sock.recv(65536): pass
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=swallow, args=[listener.accept()[0]]).start()
"""


@pytest.mark.parametrize("between", ["nothing", "a byte", "urgent"])
def test_uploads_at_full_speed_cost_a_few_milliseconds_a_round(relay: Relay, between: str) -> None:
    """Urgent bytes, at each of which splice stops, cost no more than others."""
    rounds: list[float] = []
    last = time.thread_time()

    def turn() -> None:
        nonlocal last
        now = time.thread_time()
        rounds.append(now - last)
        last = now

    with gsocket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        sink = subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE)
        assert sink.stdout is not None
        port = int(sink.stdout.readline())
        argv = [sys.executable, "-c", UPLOADS, str(listener.getsockname()[1]), between]
        uploads = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        watcher = gevent.get_hub().loop.check()
        try:
            for _ in range(4):
                client, _ = listener.accept()
                server = gsocket.create_connection(("127.0.0.1", port))
                for sock in (client, server):
                    prepare(sock)
                relay.start(client, server, lambda _: None)
            watcher.start(turn)
            until = time.monotonic() + SECONDS
            while time.monotonic() < until or len(rounds) < 200:
                gevent.sleep(0.001)
            assert all(handle.up > 1 << 20 for handle in relay.live)
        finally:
            watcher.stop()
            watcher.close()
            for process in (uploads, sink):
                process.kill()
                process.wait()
            sink.stdout.close()
    while relay.live:
        for handle in tuple(relay.live):
            handle.abort()
        gevent.sleep(0)
    rounds.sort()
    assert rounds[len(rounds) // 2] < 0.003
    assert rounds[len(rounds) * 99 // 100] < 0.01
