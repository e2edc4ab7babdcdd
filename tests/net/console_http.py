"""Speaking HTTP with the console of a gateway in the lab."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

from tests.lab.lab import Lab

PORT = 9180
LISTEN = f"127.0.0.1:{PORT}"


def fetch(lab: Lab, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, str]:
    """Status and body of one answer, asked in the router itself."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    connection.sock = lab.connect("router", "127.0.0.1", PORT, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read().decode()


def samples(lab: Lab) -> dict[tuple[str, str], float]:
    """The exposition, by the metric's name and its labels as they are written."""
    found = {}
    for line in fetch(lab, "/metrics")[1].splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            found[name, labels.rstrip("}")] = float(value)
    return found


def total(lab: Lab, name: str, *labels: str) -> float:
    """The sum over all series of a metric that have these labels (as `front="socks"`)."""
    return sum(
        value
        for (metric, text), value in samples(lab).items()
        if metric == name and all(label in text for label in labels)
    )


class Door:
    """A port of this machine's loopback that leads to the console in the router's namespace, for a browser out here."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                browser, _ = self._listener.accept()
            except OSError:
                return
            try:
                console = self._lab.connect("router", "127.0.0.1", PORT, timeout=5)
            except OSError:
                browser.close()
                continue
            for source, sink in ((browser, console), (console, browser)):
                sink.settimeout(None)
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def door(lab: Lab) -> Iterator[str]:
    """Its URL."""
    own_door = Door(lab)
    try:
        yield own_door.url
    finally:
        own_door.close()
