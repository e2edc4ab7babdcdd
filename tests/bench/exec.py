"""What `algate exec` costs a program: `python -m tests.bench.exec [--runs N] [--megabytes M]`, as root.

Beside `curl --socks5`, which speaks SOCKS itself, through the same gateway: one stream (Gbit/s, the best of the runs,
as others on the machine only take away), a request with a connection of its own (ms, the median of a hundred in one
process), and a start (ms, the median of whole runs of `true`): of `algate-exec` from the wheel, as a user has it,
beside a Python that does nothing; and of `algate exec` from here, whose editable installation takes ten milliseconds
more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.lab.servers import _listens

ROOT = Path(__file__).parents[2]
HERE = Path(sys.executable).parent
VIA = f"socks5://{ROUTER_IN4}:1080"
PORT = 7050
ENGINES = ("namespace", "seccomp")
CONNECTIONS = 100
STARTS = 3  # times as many runs as of streams

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
        installed = _install(lab.tmp)
        options: dict[str, list[str | Path]] = {
            engine: ["-q", "--engine", engine, "--via", VIA, "--"] for engine in ENGINES
        }
        streams = {"direct": _streams(lab, [], ["--socks5", f"{ROUTER_IN4}:1080"], arguments.runs)}
        connects = {"direct": _connect(lab, [], ROUTER_IN4)}
        commands: dict[str, list[str | Path]] = {"python": [installed / "python", "-c", "pass"]}
        for engine, words in options.items():
            prefix: list[str | Path] = [installed / "algate-exec", *words]
            streams[engine] = _streams(lab, prefix, [], arguments.runs)
            connects[engine] = _connect(lab, prefix, "-")
            commands[engine] = [*prefix, "true"]
            commands[f"{engine} here"] = [HERE / "algate", "exec", *words, "true"]
        starts = _starts(lab, commands, STARTS * arguments.runs)
        gateway.stop()
    print(
        "| way | one stream, Gbit/s | of `curl --socks5` | one request, ms | start, ms | `algate exec`, editable, ms |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print(f"| `curl --socks5` | {streams['direct']:.2f} | 1.00 | {connects['direct'] * 1e3:.1f} | | |")
    for engine in ENGINES:
        share = streams[engine] / streams["direct"]
        start = f"{starts[engine] * 1e3:.0f} | {starts[f'{engine} here'] * 1e3:.0f}"
        print(f"| `{engine}` | {streams[engine]:.2f} | {share:.2f} | {connects[engine] * 1e3:.1f} | {start} |")
    print(f"\n`python -c pass`, started in the same way: {starts['python'] * 1e3:.0f} ms.")
    return 0


def _install(folder: Path) -> Path:
    """Build the client's wheel and install it in an environment of its own, as a user does. Returns where its programs
    are."""
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "gateway/client/wheel/build", folder], check=True, capture_output=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    home = folder / "environment"
    venv.create(home, symlinks=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", home / "bin/python"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    return home / "bin"


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


def _starts(lab: Lab, commands: Mapping[str, Sequence[str | Path]], runs: int) -> dict[str, float]:
    """The median time of a run of each from its beginning to its end, in seconds. They take turns."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            argv = ["ip", "netns", "exec", lab.ns("inside"), *map(str, command)]
            began = time.perf_counter()
            subprocess.run(argv, check=True)
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}


if __name__ == "__main__":
    sys.exit(main())
