"""A phone's datagrams through a SOCKS UDP association, for phones that know nothing of SOCKS: a helper on their host.

The phone sends to the helper in place of its server (SIPp: `-rsa`) and hears from it; the gateway sees the helper's
socket, at the phone's address.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from tests.lab.lab import ROUTER_IN4
from tests.net.socks_wire import ask5, datagram, undatagram

if TYPE_CHECKING:
    from tests.lab.lab import Lab

UDP_ASSOCIATE = 3
PORT = 5059  # where the helper listens for the phone


class SocksPhone:
    """From making to `close`: what the phone at `host`:`port` (inside) sends to `local` goes to `target` and back."""

    def __init__(self, lab: Lab, host: str, port: int, target: tuple[str, int]) -> None:
        self.phone = (host, port)
        self.target = target
        with lab.enter("inside"):
            self.control = socket.create_connection((ROUTER_IN4, 1080), 5, (host, 0))
            self.near, self.far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.near.bind((host, PORT))
        self.far.bind((host, 0))
        self.local = f"{host}:{PORT}"
        code, relay_host, relay_port = ask5(self.control, "0.0.0.0", 0, UDP_ASSOCIATE)
        assert code == 0
        self.relay = (relay_host, relay_port)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            for sock in select.select([self.near, self.far], [], [], 0.05)[0]:
                with contextlib.suppress(ConnectionError):  # the other end is not there yet, or not any more
                    data, source = sock.recvfrom(65535)
                    if sock is self.near:
                        self.far.sendto(datagram(*self.target, data), self.relay)
                    elif source == self.relay:
                        assert undatagram(data)[:2] == self.target
                        self.near.sendto(undatagram(data)[2], self.phone)

    def hang_up(self) -> None:
        """End the association, as a SOCKS client that closes its connection."""
        self.control.close()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for sock in (self.control, self.near, self.far):
            sock.close()

    def __enter__(self) -> SocksPhone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
