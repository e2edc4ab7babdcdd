"""What `algate exec` costs a program: `python -m tests.bench.exec [--runs N] [--megabytes M]`, as root.

Beside `curl --socks5`, which speaks SOCKS itself, through the same gateway: one stream (Gbit/s, the best of the runs,
as others on the machine only take away), a request with a connection of its own (ms, the median of a hundred in one
process), and a start (ms, the median of whole runs of `true`, and what of that is Python's own).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.lab.servers import _listens

EXEC = Path(sys.executable).parent / "algate-exec"
VIA = f"socks5://{ROUTER_IN4}:1080"
PORT = 7050
ENGINES = ("namespace", "seccomp")
CONNECTIONS = 100

_SERVER = """
import os, socket, sys, threading
size = int(sys.argv[3]) << 20
file = os.memfd_create("bench")
os.ftruncate(file, 1 << 26)
def serve(sock):
    with sock:
        if b"/one" in sock.recv(4096):
            sock.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 1\\r\\n\\r\\nx")
            return
        sock.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
        left = size
        while left:
            left -= os.sendfile(sock.fileno(), file, 0, min(left, 1 << 26))
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=256)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
# Its own connections, so that no start of a program is in it.
_CONNECT = """
import socket, statistics, sys, time
host, port, count, proxy = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
times = []
for _ in range(count):
    began = time.perf_counter()
    sock = socket.create_connection((proxy, 1080) if proxy != "-" else (host, port))
    if proxy != "-":
        sock.sendall(b"\\5\\1\\0")
        sock.recv(2)
        sock.sendall(b"\\5\\1\\0\\1" + socket.inet_aton(host) + port.to_bytes(2, "big"))
        sock.recv(10)
    sock.sendall(b"GET /one HTTP/1.0\\r\\n\\r\\n")
    while sock.recv(4096):
        pass
    times.append(time.perf_counter() - began)
    sock.close()
print(statistics.median(times))
"""


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.exec")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=2048)
    arguments = parser.parse_args()
    with Lab() as lab:
        server = lab.popen("outside", [sys.executable, "-c", _SERVER, SERVER4, str(PORT), str(arguments.megabytes)])
        lab.wait_for(lambda: _listens(server, PORT), 20, "the server")
        config = lab.write_config(process={"workers": 1, "drain_timeout": 1}, log={"connections": False})
        gateway = lab.start_gateway(config, rules=False)
        ways: dict[str, list[str | Path]] = {
            engine: [EXEC, "-q", "--engine", engine, "--via", VIA, "--"] for engine in ENGINES
        }
        streams = {"direct": _streams(lab, [], ["--socks5", f"{ROUTER_IN4}:1080"], arguments.runs)}
        connects = {"direct": _connect(lab, [], ROUTER_IN4)}
        starts = {
            "direct": _starts(lab, [sys.executable, "-c", "import gateway.client.engine.program"], arguments.runs)
        }
        for engine, prefix in ways.items():
            streams[engine] = _streams(lab, prefix, [], arguments.runs)
            connects[engine] = _connect(lab, prefix, "-")
            starts[engine] = _starts(lab, [*prefix, "true"], arguments.runs)
        gateway.stop()
    print("| way | one stream, Gbit/s | of `curl --socks5` | one request, ms | start, ms | of which Python's own |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print(f"| `curl --socks5` | {streams['direct']:.2f} | 1.00 | {connects['direct'] * 1e3:.1f} | | |")
    for engine in ENGINES:
        share = streams[engine] / streams["direct"]
        own = f"{starts[engine] * 1e3:.0f} | {starts['direct'] * 1e3:.0f}"
        print(f"| `{engine}` | {streams[engine]:.2f} | {share:.2f} | {connects[engine] * 1e3:.1f} | {own} |")
    return 0


def _streams(lab: Lab, prefix: Sequence[str | Path], options: Sequence[str], runs: int) -> float:
    """The rate of the best run, in Gbit/s."""
    found = []
    for _ in range(runs):
        words = [*prefix, "curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}", *options]
        found.append(float(lab.run("inside", [*words, f"http://{SERVER4}:{PORT}/"], 120).stdout))
    return max(found) * 8 / 1e9


def _connect(lab: Lab, prefix: Sequence[str | Path], proxy: str) -> float:
    """The median time of a request with a connection of its own, in seconds."""
    words = [*prefix, sys.executable, "-c", _CONNECT, SERVER4, str(PORT), str(CONNECTIONS), proxy]
    return float(lab.run("inside", words, 120).stdout)


def _starts(lab: Lab, command: Sequence[str | Path], runs: int) -> float:
    """The median time of a run from its beginning to its end, in seconds."""
    found = []
    for _ in range(runs):
        argv = ["ip", "netns", "exec", lab.ns("inside"), *map(str, command)]
        began = time.perf_counter()
        subprocess.run(argv, check=True)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
