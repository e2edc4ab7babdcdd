"""A client that has IPv6 only, a server that has IPv4 only: tayga translates packets, the gateway FTP (RFC 6384)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import SERVER4, Lab
from tests.lab.servers import FtpServer

PREFIX = ipaddress.IPv6Network("2001:db8:64::/96")  # tayga serves no documentation addresses by 64:ff9b::/96
SERVER64 = f"[{PREFIX[int(ipaddress.IPv4Address(SERVER4))]}]"
SIZE = 200_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(strict=True, logs=tmp_path_factory.mktemp("nat64")) as lab:
        servers.tayga(lab, str(PREFIX))
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(alg={"ftp": {"nat64": [str(PREFIX)]}}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module", params=[Lab.vsftpd, servers.old], ids=["vsftpd", "without-epsv"])
def server(lab: Lab, request: pytest.FixtureRequest) -> Iterator[FtpServer]:
    make: Callable[[Lab], FtpServer] = request.param
    server = make(lab)
    server.put("pub/here", b"x" * SIZE)
    yield server
    server.stop()


@pytest.mark.parametrize("mode", [[], ["--ftp-port", "-"]], ids=["epsv", "eprt"])
def test_curl(lab: Lab, gateway: Gateway, server: FtpServer, mode: list[str]) -> None:
    base = ["curl", "-sS", "-m", "15", *mode]
    assert lab.run("inside", [*base, server.url("pub/here", host=SERVER64)]).stdout == "x" * SIZE
    lab.run("inside", [*base, "-T", server.root / "pub/here", server.url("upload/there", host=SERVER64)])
    assert (server.root / "upload" / "there").read_bytes() == b"x" * SIZE
    assert "here" in lab.run("inside", [*base, server.url("pub/", host=SERVER64)]).stdout
    lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    assert gateway.admin("pinholes") == []


@pytest.mark.parametrize("passive", [True, False], ids=["epsv", "eprt"])
def test_ftplib(lab: Lab, gateway: Gateway, server: FtpServer, passive: bool, tmp_path: Path) -> None:
    """Several transfers in one session."""
    script = f"""
import ftplib, io
ftp = ftplib.FTP({SERVER64[1:-1]!r}, {server.user!r}, {server.password!r}, timeout=15)
ftp.set_pasv({passive})
for _ in range(3):
    got = io.BytesIO()
    ftp.retrbinary("RETR pub/here", got.write)
    assert got.getvalue() == b"x" * {SIZE}
    assert "pub/here" in ftp.nlst("pub") or "here" in ftp.nlst("pub")
ftp.quit()
"""
    lab.run("inside", ["python3", "-c", script])
