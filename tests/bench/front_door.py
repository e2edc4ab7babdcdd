"""SOCKS 5, HTTP CONNECT, and both inside TLS: `python -m tests.bench.front_door [--seconds S] [--clients N]`, as root.

Each way through algate (one worker) and through what people use in its place: tinyproxy for HTTP CONNECT, stunnel
before microsocks for TLS; 3proxy and gost if they are on PATH, as Debian has neither: without them their rows say so.
Connections: N processes of clients connect, ask, send
and get one byte, close. Streams: one connection brings as much as it can. Clients and servers share the machine with
the proxy, so what each costs the proxy is said too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.measures import _cpu
from tests.bench.peers import router_pids
from tests.lab.certificates import Authority
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.lab.peers import PEERS
from tests.net.socks_wire import GREETING, receive, request5

ECHO, FLOW = 7040, 7041  # servers: one byte back; bytes without end
PLAIN, TLS = 1080, 1443


class Way(NamedTuple):
    """A proxy and how it is spoken to: "socks" or "http", in clear or inside TLS. `program`: one that is measured only
    where it is on PATH."""

    name: str
    protocol: str
    tls: bool
    start: Callable[[Lab, Path], Callable[[], object]]
    program: str | None = None


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.front_door")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=2, help="processes that connect")
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        what, protocol, port, ca, seconds = arguments.client
        print(json.dumps(_client(what, protocol, int(port), ca, float(seconds))))
        return 0
    print(
        "| proxy | way | connections/s | us each | Gbit/s | ms for each MB |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    with Lab() as lab:
        certificate = Authority(lab.tmp).issue("proxy", hosts=(ROUTER_IN4,))
        for source in (_ECHO, _FLOW):
            lab.popen("outside", [sys.executable, "-c", source])
        for port in (ECHO, FLOW):
            lab.wait_for(lambda port=port: _answers(lab, "outside", SERVER4, port), 20, "the servers")  # type: ignore[misc]
        for way in WAYS:
            if way.program is not None and shutil.which(way.program) is None:
                print(f"| {way.name}: {way.program} is not on PATH | – | – | – | – |", flush=True)
                continue
            with _running(lab, way, certificate):
                print(_row(lab, way, arguments.seconds, arguments.clients), flush=True)
    return 0


def _row(lab: Lab, way: Way, seconds: float, clients: int) -> str:
    found = []
    for what, number in (("connections", clients), ("stream", 1)):
        port, ca = (TLS if way.tls else PLAIN), str(lab.tmp / "authority.pem") if way.tls else "-"
        argv = [
            sys.executable,
            "-m",
            "tests.bench.front_door",
            "--client",
            what,
            way.protocol,
            str(port),
            ca,
            str(seconds),
        ]
        command = ["ip", "netns", "exec", lab.ns("inside"), *argv]
        before = _cpu(router_pids(lab))
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(number)]
        said = [json.loads(process.communicate(timeout=seconds + 60)[0]) for process in running]
        cpu = _cpu(router_pids(lab)) - before
        count = sum(client["count"] for client in said)
        found.append((count / max(client["took"] for client in said), cpu / max(count, 1)))
    (rate, each), (bytes_a_second, byte) = found
    return f"| {way.name} | {rate:,.0f} | {each * 1e6:,.0f} | {bytes_a_second * 8 / 1e9:.2f} | {byte * 1e9:.2f} |"


def _client(what: str, protocol: str, port: int, ca: str, seconds: float) -> dict[str, float]:
    """In a process of its own: connections one after the other, or one that is read for as long."""
    context = None if ca == "-" else ssl.create_default_context(cafile=ca)
    began, count = time.monotonic(), 0
    if what == "connections":
        while time.monotonic() - began < seconds:
            with _open(context, protocol, port, ECHO) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            count += 1
    else:
        buffer = bytearray(1 << 18)
        with _open(context, protocol, port, FLOW) as sock:
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                count += sock.recv_into(buffer)
    return {"count": count, "took": time.monotonic() - began}


def _open(context: ssl.SSLContext | None, protocol: str, port: int, target: int) -> socket.socket:
    sock = socket.create_connection((ROUTER_IN4, port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        sock = context.wrap_socket(sock, server_hostname=ROUTER_IN4)
    if protocol == "http":
        sock.sendall(f"CONNECT {SERVER4}:{target} HTTP/1.1\r\nHost: {SERVER4}:{target}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += receive(sock, 1)
        assert head.split()[1] == b"200", head
    else:
        sock.sendall(GREETING)
        assert receive(sock, 2) == b"\5\0"
        sock.sendall(request5(SERVER4, target))
        assert receive(sock, 10)[1] == 0
    return sock


@contextlib.contextmanager
def _running(lab: Lab, way: Way, certificate: Path) -> Iterator[None]:
    stop = way.start(lab, certificate)
    try:
        lab.wait_for(lambda: _answers(lab, "inside", ROUTER_IN4, TLS if way.tls else PLAIN), 20, way.name)
        yield
    finally:
        stop()


def _answers(lab: Lab, role: str, host: str, port: int) -> bool:
    try:
        lab.connect(role, host, port, timeout=1).close()  # type: ignore[arg-type]
    except OSError:
        return False
    return True


def _algate(lab: Lab, certificate: Path) -> Callable[[], object]:
    tls = {"listen": [f"{ROUTER_IN4}:{TLS}"], "certificate": str(certificate)}
    socks = {"listen": [f"{ROUTER_IN4}:{PLAIN}"], "protocols": ["socks5", "http"], "tls": tls}
    config = lab.write_config(
        network={"inside_interfaces": []},
        socks=socks,
        process={"workers": 1, "drain_timeout": 1},
        log={"connections": False},
    )
    return lab.start_gateway(config, rules=False).stop


def _tinyproxy(lab: Lab, _certificate: Path) -> Callable[[], object]:
    config = lab.tmp / "tinyproxy.conf"
    config.write_text(f"Port {PLAIN}\nListen {ROUTER_IN4}\nTimeout 60\nMaxClients 1000\nLogLevel Critical\n")
    return _process(lab, PEERS / "usr/bin/tinyproxy", "-d", "-c", config)


def _stunnel(lab: Lab, certificate: Path) -> Callable[[], object]:
    config = lab.tmp / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\ndebug = 3\n[socks]\naccept = {ROUTER_IN4}:{TLS}\nconnect = 127.0.0.1:{PLAIN}\n"
        f"cert = {certificate}\n"
    )
    stops = [
        _process(lab, PEERS / "usr/bin/microsocks", "-i", "127.0.0.1", "-p", str(PLAIN)),
        _process(lab, PEERS / "usr/bin/stunnel4", config),
    ]
    return lambda: [stop() for stop in stops]


def _three_proxy(service: str, port: int) -> Callable[[Lab, Path], Callable[[], object]]:
    def start(lab: Lab, certificate: Path) -> Callable[[], object]:
        config = lab.tmp / "3proxy.cfg"
        secret = f"ssl_server_cert {certificate}\nssl_server_key {certificate}\nssl_serv\n" if port == TLS else ""
        config.write_text(f"maxconn 20000\nauth none\n{secret}{service} -p{port} -i{ROUTER_IN4}\n")
        return _process(lab, Path(shutil.which("3proxy") or ""), config)

    return start


def _gost(scheme: str, port: int) -> Callable[[Lab, Path], Callable[[], object]]:
    def start(lab: Lab, certificate: Path) -> Callable[[], object]:
        secret = f"?certFile={certificate}&keyFile={certificate}" if port == TLS else ""
        return _process(lab, Path(shutil.which("gost") or ""), "-L", f"{scheme}://{ROUTER_IN4}:{port}{secret}")

    return start


def _process(lab: Lab, *argv: str | Path) -> Callable[[], object]:
    process = lab.popen("router", argv)
    return lambda: lab.stop(process)


WAYS = (
    Way("algate, 1 worker | SOCKS 5", "socks", False, _algate),
    Way("algate, 1 worker | SOCKS 5 in TLS", "socks", True, _algate),
    Way("algate, 1 worker | HTTP CONNECT", "http", False, _algate),
    Way("algate, 1 worker | HTTP CONNECT in TLS", "http", True, _algate),
    Way("tinyproxy | HTTP CONNECT", "http", False, _tinyproxy),
    Way("stunnel and microsocks | SOCKS 5 in TLS", "socks", True, _stunnel),
    Way("3proxy | SOCKS 5", "socks", False, _three_proxy("socks", PLAIN), "3proxy"),
    Way("3proxy | SOCKS 5 in TLS", "socks", True, _three_proxy("socks", TLS), "3proxy"),
    Way("3proxy | HTTP CONNECT", "http", False, _three_proxy("proxy", PLAIN), "3proxy"),
    Way("3proxy | HTTP CONNECT in TLS", "http", True, _three_proxy("proxy", TLS), "3proxy"),
    Way("gost | HTTP CONNECT", "http", False, _gost("http", PLAIN), "gost"),
    Way("gost | SOCKS 5 in TLS", "socks", True, _gost("socks5+tls", TLS), "gost"),
)

_SERVER = """
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            {action}
        except OSError:
            pass
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 4096
Server(({host!r}, {port}), Handler).serve_forever()
"""
_ECHO = _SERVER.format(action="self.request.sendall(self.request.recv(1))", host=SERVER4, port=ECHO)
_FLOW = _SERVER.format(
    action="\n            ".join(("data = bytes(1 << 18)", "while True: self.request.sendall(data)")),
    host=SERVER4,
    port=FLOW,
)

if __name__ == "__main__":
    sys.exit(main())
