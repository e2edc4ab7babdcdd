"""What is measured: plain kernel NAT, the gateway, and other servers, each started in the lab's router."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.lab import ROUTER_IN4, SERVER4, Lab

UNPACKED = Path(sys.prefix, "peers")
PORT = 8090  # of the load's server
SOCKS_PORT = 1080
REDSOCKS_PORT = 12345

Front = Literal["kernel", "socks", "transparent"]


@dataclass(frozen=True, slots=True)
class Peer:
    """`start` runs it in the router; the processes there are the peer's.

    `scales`: whether 8,000 flows at once are worth trying (not with a process or a thread a flow). `port`: of a SOCKS
    server.
    """

    name: str
    front: Front
    start: Callable[[Lab], Callable[[], object]]
    program: Path | None = None
    scales: bool = True
    port: int = SOCKS_PORT

    @property
    def via(self) -> str:
        """How the load's client gets there."""
        return f"{ROUTER_IN4}:{self.port}" if self.front == "socks" else "direct"

    @contextmanager
    def running(self, lab: Lab) -> Iterator[None]:
        """Run it."""
        stop = self.start(lab)
        try:
            if self.front != "kernel":
                port = self.port if self.front == "socks" else PORT
                host = ROUTER_IN4 if self.front == "socks" else SERVER4
                lab.wait_for(lambda: _answers(lab, host, port), 10, f"{self.name} to serve")
            yield
        finally:
            stop()


def router_pids(lab: Lab) -> list[int]:
    """All processes in the router's namespace."""
    done = subprocess.run(["ip", "netns", "pids", lab.ns("router")], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def peers() -> list[Peer]:
    """Those that there are on this machine."""
    found = [
        Peer("kernel NAT", "kernel", lambda _lab: lambda: None),
        Peer("algate, 1 worker", "socks", lambda lab: _algate(lab, 1)),
        Peer("algate, 2 workers", "socks", lambda lab: _algate(lab, 2)),
        Peer("algate, 1 worker, transparent", "transparent", lambda lab: _algate(lab, 1)),
        Peer("algate, 2 workers, transparent", "transparent", lambda lab: _algate(lab, 2)),
    ]
    hev = shutil.which("hev-socks5-server")
    if hev:
        found.append(Peer("hev-socks5-server", "socks", lambda lab: _hev(lab, Path(hev)), Path(hev)))
    threeproxy = shutil.which("3proxy")
    if threeproxy:
        start = _three_proxy
        found.append(Peer("3proxy", "socks", lambda lab: start(lab, Path(threeproxy)), Path(threeproxy), False))
    microsocks, danted = UNPACKED / "usr/bin/microsocks", UNPACKED / "usr/sbin/danted"
    found.append(Peer("microsocks", "socks", lambda lab: _microsocks(lab, microsocks), microsocks, False))
    found.append(Peer("danted", "socks", lambda lab: _danted(lab, danted), danted, False))
    redsocks = UNPACKED / "usr/sbin/redsocks"
    upstream = Path(hev) if hev else None
    found.append(Peer("redsocks", "transparent", lambda lab: _redsocks(lab, redsocks, upstream), redsocks))
    return found


def versions(found: list[Peer]) -> dict[str, str]:
    """The version of each, as its Debian package or the program itself says it."""
    stated: dict[str, str] = {}
    for peer in found:
        if peer.program is None:
            continue
        if UNPACKED in peer.program.parents:
            name = {"danted": "dante-server"}.get(peer.name, peer.name)
            said = _said("apt-cache", "policy", name)
            version = re.search(r"Candidate: (\S+)", said)
        else:
            version = re.search(r"\d+(?:\.\d+)+\S*", _said(peer.program, "--version")) or re.search(
                rf"(?<={peer.name}-)\d+(?:\.\d+)+", peer.program.read_bytes().decode("latin-1")
            )
        stated[peer.name] = version[1 if version.re.groups else 0] if version else "of unknown version"
    return stated


def _said(*argv: str | Path) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def _answers(lab: Lab, host: str, port: int) -> bool:
    try:
        lab.connect("inside", host, port, timeout=1).close()
    except OSError:
        return False
    return True


def beside_each_other() -> tuple[Peer, Peer]:
    """Two gateways of one worker that can run at the same time; the second one writes no lines of flows."""
    ports = SOCKS_PORT + 1, SOCKS_PORT + 2
    return (
        Peer("with lines", "socks", lambda lab: _socks_only(lab, ports[0], log=True), port=ports[0]),
        Peer("without lines", "socks", lambda lab: _socks_only(lab, ports[1], log=False), port=ports[1]),
    )


def _algate(lab: Lab, workers: int) -> Callable[[], object]:
    # One client has all flows here, and a process few descriptors: without its bound one worker has 8,000 idle ones.
    config = lab.write_config(
        process={"workers": workers, "drain_timeout": 1}, transparent={"ports": [PORT]}, limits={"flows": 0}
    )
    gateway = lab.start_gateway(config)
    return gateway.stop


def _socks_only(lab: Lab, port: int, log: bool) -> Callable[[], object]:
    config = lab.write_config(
        network={"inside_interfaces": []},
        socks={"listen": [f"{ROUTER_IN4}:{port}"]},
        process={"workers": 1, "drain_timeout": 1},
        log={"connections": log},
        console={"listen": ""},
    )
    gateway = lab.start_gateway(config, rules=False)
    return gateway.stop


def allow_descriptors(wanted: int) -> int:
    """Let what is started from now on have as many descriptors as that, if this host allows it; how many it has."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only with CAP_SYS_RESOURCE
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, wanted), max(hard, wanted)))
    hard = _descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _process(lab: Lab, *argv: str | Path) -> Callable[[], object]:
    process = lab.popen("router", argv)
    return lambda: lab.stop(process)


def _hev(lab: Lab, program: Path, host: str = ROUTER_IN4) -> Callable[[], object]:
    config = lab.tmp / "hev.yml"
    # As many workers as there are cores; the limits of time as long as ours, so that no flow ends while it is held.
    config.write_text(
        f"main:\n  workers: {os.cpu_count()}\n  port: {SOCKS_PORT}\n  listen-address: '{host}'\n"
        f"misc:\n  tcp-read-write-timeout: 600000\n  limit-nofile: {_descriptors()}\n"
    )
    return _process(lab, program, config)


def _three_proxy(lab: Lab, program: Path) -> Callable[[], object]:
    config = lab.tmp / "3proxy.cfg"
    config.write_text(f"maxconn 20000\nauth none\nsocks -p{SOCKS_PORT} -i{ROUTER_IN4}\n")
    return _process(lab, program, config)


def _microsocks(lab: Lab, program: Path, host: str = ROUTER_IN4) -> Callable[[], object]:
    return _process(lab, program, "-i", host, "-p", str(SOCKS_PORT))


def _danted(lab: Lab, program: Path) -> Callable[[], object]:
    config = lab.tmp / "danted.conf"
    config.write_text(
        f"logoutput: /dev/null\ninternal: {ROUTER_IN4} port = {SOCKS_PORT}\nexternal: eth0\n"
        "clientmethod: none\nsocksmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\nsocks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    return _process(lab, program, "-f", config)


def _redsocks(lab: Lab, program: Path, hev: Path | None) -> Callable[[], object]:
    """It knows no way but through a SOCKS server: the quickest there is, on the same router."""
    stop_upstream = (
        _hev(lab, hev, "127.0.0.1") if hev else _microsocks(lab, UNPACKED / "usr/bin/microsocks", "127.0.0.1")
    )
    config = lab.tmp / "redsocks.conf"
    config.write_text(
        "base { log_debug = off; log_info = off; log = stderr; daemon = off; redirector = iptables;"
        f" rlimit_nofile = {_descriptors()}; redsocks_conn_max = {_descriptors() // 2 - 100}; }}\n"
        f"redsocks {{ local_ip = 0.0.0.0; local_port = {REDSOCKS_PORT}; ip = 127.0.0.1; port = {SOCKS_PORT};"
        " type = socks5; }\n"
    )
    stop = _process(lab, program, "-c", config)
    rule = ["PREROUTING", "-t", "nat", "-i", "eth1", "-p", "tcp", "--dport", str(PORT)]
    rule += ["-j", "REDIRECT", "--to-ports", str(REDSOCKS_PORT)]
    lab.run("router", ["iptables", "-I", *rule])

    def end() -> None:
        lab.run("router", ["iptables", "-D", *rule])
        stop()
        stop_upstream()

    return end
