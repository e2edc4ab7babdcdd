"""Clients that connect again and again while a test does something to the gateway, and remember what went wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import ask5, receive

BANNER = b"hello\n"


class Greeter:
    """A server outside that says hello to whoever connects, and closes."""

    def __init__(self, lab: Lab, port: int = 0) -> None:
        self._listener = lab.listen("outside", SERVER4, port)
        self._listener.settimeout(None)
        self._listener.listen(512)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):  # it has gone
                sock.sendall(BANNER)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class SteadyLoad:
    """From `__enter__` to `__exit__`: clients inside that connect through SOCKS, each again and again."""

    def __init__(self, lab: Lab, greeter: Greeter, clients: int = 8, port: int = 1080) -> None:
        self._lab = lab
        self._greeter = greeter
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._lock = threading.Lock()
        self.served = 0
        self.refused = 0
        """Connections that were not established; nobody has lost anything but time."""
        self.errors: list[str] = []
        """What went wrong after that."""

    def __enter__(self) -> SteadyLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def more(self, count: int, deadline: float = 20) -> None:
        """Wait until so many more have been served."""
        goal = self.served + count
        self._lab.wait_for(lambda: self.served >= goal or self.errors, deadline, f"{count} more connections")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                sock = self._lab.connect("inside", ROUTER_IN4, self._port, timeout=5)
            except OSError:
                with self._lock:
                    self.refused += 1
                self._stop.wait(0.02)
                continue
            try:
                with sock:
                    code, _, _ = ask5(sock, SERVER4, self._greeter.port)
                    assert code == 0, f"refused with {code}"
                    assert receive(sock, len(BANNER)) == BANNER
                with self._lock:
                    self.served += 1
            except (OSError, AssertionError) as error:
                with self._lock:
                    self.errors.append(repr(error))
