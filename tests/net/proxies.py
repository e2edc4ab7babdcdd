"""Real proxies as upstreams, from Debian packages that `make setup` unpacked into .venv/peers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.lab.lab import Lab, Role
from tests.lab.peers import unpacked
from tests.lab.servers import _listens

USER, PASSWORD = "ann", "secret"


def danted(lab: Lab, role: Role, host: str, port: int = 1080) -> None:
    """Dante's server, SOCKS 4 and 5 without authentication. Debian builds it without GSSAPI."""
    config = lab.tmp / "danted.conf"
    config.write_text(
        f"logoutput: stderr\ninternal: {host} port = {port}\nexternal: {host}\n"
        "clientmethod: none\nsocksmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\nsocks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    _start(lab, role, [unpacked("dante-server", "usr/sbin/danted"), "-f", config, "-p", lab.tmp / "danted.pid"], port)


def microsocks(lab: Lab, role: Role, host: str, port: int) -> None:
    """SOCKS 5 for USER with PASSWORD."""
    argv: list[str | Path] = [unpacked("microsocks", "usr/bin/microsocks")]
    argv += ["-i", host, "-p", str(port), "-u", USER, "-P", PASSWORD]
    _start(lab, role, argv, port)


def tinyproxy(lab: Lab, role: Role, host: str, port: int) -> None:
    """HTTP CONNECT for USER with PASSWORD."""
    config = lab.tmp / "tinyproxy.conf"
    config.write_text(f"Port {port}\nListen {host}\nTimeout 60\nMaxClients 20\nBasicAuth {USER} {PASSWORD}\n")
    _start(lab, role, [unpacked("tinyproxy-bin", "usr/bin/tinyproxy"), "-d", "-c", config], port)


def three_proxy(lab: Lab, role: Role, host: str, port: int) -> None:
    """3proxy: SOCKS 4 and 5 without authentication at `port`, for USER with PASSWORD at the next one, HTTP CONNECT at
    the one after. No release has a package of it: skips the test where it is not on PATH (`make -f Makefile.Linux` of
    its source makes it).

    Without -Ne, the address behind a NAT, its first reply to BIND names the port of its own listener and not the one
    that waits (1.0.0)."""
    program = shutil.which("3proxy")
    if program is None:
        pytest.skip("3proxy is not on PATH")
    config = lab.tmp / "3proxy.cfg"
    config.write_text(
        f"users {USER}:CL:{PASSWORD}\nauth none\n"
        f"socks -p{port} -i{host} -e{host} -Ne{host}\nproxy -p{port + 2} -i{host} -e{host}\n"
        f"auth strong\nallow {USER}\nsocks -p{port + 1} -i{host} -e{host}\n"
    )
    _start(lab, role, [program, config], port + 1)


def _start(lab: Lab, role: Role, argv: list[str | Path], port: int) -> None:
    process = lab.popen(role, argv)
    lab.wait_for(lambda: _listens(process, port), 10, f"{argv[0]} to listen{lab.tail_of_logs()}")
