"""FTP through the NAT with real clients and real servers: list, get and put, active and passive, IPv4 and IPv6; with
each client 200 MB to and from one server.

The router forwards nothing from inside to outside but TCP to port 21, so data passes only where the gateway says so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, SERVER4, Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_clients import CLIENTS, Client, Job, curl

SIZE = 200_000_000
SMALL = 3_000_000


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    gateway = strict_lab.start_gateway()
    yield gateway
    assert gateway.stop() == 0, strict_lab.tail_of_logs()
    assert strict_lab.leftovers() == []


@pytest.fixture(scope="module", params=["vsftpd", "pure_ftpd", "proftpd"])
def server(request: pytest.FixtureRequest, strict_lab: Lab) -> Iterator[FtpServer]:
    server: FtpServer = getattr(strict_lab, request.param)()
    yield server
    server.stop()


class Files:
    """A local file of random bytes, made once: what is fetched and stored."""

    def __init__(self, directory: Path, size: int) -> None:
        self.local = directory / f"local-{size}"
        self.local.write_bytes(os.urandom(size))
        self.size = size

    def equals(self, copy: Path) -> bool:
        return subprocess.run(["cmp", "-s", self.local, copy], check=False).returncode == 0


@pytest.fixture(scope="module")
def large(strict_lab: Lab) -> Files:
    return Files(strict_lab.tmp, SIZE)


@pytest.fixture(scope="module")
def small(strict_lab: Lab) -> Files:
    return Files(strict_lab.tmp, SMALL)


def session(client: Client, job: Job, files: Files) -> None:
    """One session; the listing names the file, and both copies are what they should be."""
    served = job.server.root / "pub" / "file"
    served.unlink(missing_ok=True)
    os.link(files.local, served)
    served.chmod(0o644)
    fetched = job.lab.tmp / "fetched"
    stored = job.server.root / "upload" / "stored"
    for path in (fetched, stored):
        path.unlink(missing_ok=True)
    try:
        listing = client(job, "pub/file", fetched, files.local, "upload/stored")
        assert "file" in listing
        assert str(files.size) in listing
        assert files.equals(fetched)
        assert files.equals(stored)
    finally:
        for path in (fetched, stored, served):
            path.unlink(missing_ok=True)


def relayed(gateway: Gateway) -> int:
    """Bytes that the workers have relayed up to now."""
    rows = [row for row in gateway.admin("status") if row["process"].startswith("worker")]
    return sum(int(row["up"]) + int(row["down"]) for row in rows)


def through_pinholes(gateway: Gateway) -> int:
    """Bytes that the kernel has counted on connections that a pinhole admitted."""
    (row,) = [row for row in gateway.admin("status") if row["process"] == "broker"]
    return int(row["counters"]["data"]["bytes"])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("active", [True, False], ids=["active", "passive"])
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_unconfigured(
    gateway: Gateway, server: FtpServer, large: Files, small: Files, client: Client, active: bool, version: int
) -> None:
    files = large if (server.name, version) == ("vsftpd", 4) else small
    through_python, through_kernel = relayed(gateway), through_pinholes(gateway)
    session(client, Job(gateway.lab, server, version, active), files)
    # Both files went through the pinholes of the kernel, and none of their bytes through a worker.
    assert through_pinholes(gateway) - through_kernel > 2 * files.size
    assert relayed(gateway) - through_python < 20_000
    assert gateway.admin("pinholes") == []


@pytest.mark.parametrize("extra", [("--ftp-port", "-", "--disable-eprt"), ("--disable-epsv",)], ids=["port", "pasv"])
def test_unconfigured_with_the_commands_of_rfc_959(
    gateway: Gateway, server: FtpServer, small: Files, extra: tuple[str, ...]
) -> None:
    through_kernel = through_pinholes(gateway)
    session(curl, Job(gateway.lab, server, 4, False, extra), small)
    assert through_pinholes(gateway) - through_kernel > 2 * SMALL


@pytest.mark.parametrize(
    ("version", "proxy"),
    [
        (4, ("--socks5-hostname", f"{ROUTER_IN4}:1080")),
        (4, ("--socks5", f"{ROUTER_IN4}:1080")),
        (4, ("--socks4a", f"{ROUTER_IN4}:1080")),
        (4, ("--socks4", f"{ROUTER_IN4}:1080")),
        (6, ("--socks5-hostname", f"[{ROUTER_IN6}]:1080")),
    ],
    ids=["socks5-hostname", "socks5", "socks4a", "socks4", "ipv6"],
)
@pytest.mark.parametrize("active", [True, False], ids=["active", "passive"])
def test_through_socks(
    gateway: Gateway,
    server: FtpServer,
    large: Files,
    small: Files,
    version: int,
    proxy: tuple[str, ...],
    active: bool,
) -> None:
    files = large if (server.name, proxy[0]) == ("vsftpd", "--socks5-hostname") else small
    through_python = relayed(gateway)
    session(curl, Job(gateway.lab, server, version, active, proxy), files)
    assert relayed(gateway) - through_python > 2 * files.size
    assert gateway.admin("pinholes") == []


@pytest.mark.parametrize("extra", [("--ftp-port", "-", "--disable-eprt"), ("--disable-epsv",)], ids=["port", "pasv"])
def test_through_socks_with_the_commands_of_rfc_959(
    gateway: Gateway, server: FtpServer, small: Files, extra: tuple[str, ...]
) -> None:
    job = Job(gateway.lab, server, 4, False, (*extra, "--socks5-hostname", f"{ROUTER_IN4}:1080"))
    session(curl, job, small)


def test_a_download_is_one_whoever_connects_and_ends_with_its_session(
    gateway: Gateway, server: FtpServer, small: Files
) -> None:
    """In active mode the server connects; all the same the client downloads, and an operator sees whose it is."""
    lab = gateway.lab
    served = server.root / "pub" / "slow"
    served.unlink(missing_ok=True)
    os.link(small.local, served)
    served.chmod(0o644)
    before = worker_bytes(gateway)
    url = server.url("pub/slow", 4)
    command = ["curl", "-sS", "-o", "/dev/null", "--limit-rate", "20k", "--ftp-port", "-"]
    fetching = lab.popen("inside", [*command, "--socks5-hostname", f"{ROUTER_IN4}:1080", url])
    try:
        Lab.wait_for(
            lambda: any(row["front"] == "pinhole" for row in gateway.admin("flows")), 20, "the data connection"
        )
        data = next(row for row in gateway.admin("flows") if row["front"] == "pinhole")
        control = next(row for row in gateway.admin("flows") if row["id"] == data["parent"])
        assert data["client"].rpartition(":")[0] == control["client"].rpartition(":")[0]
        assert data["server"].rpartition(":")[0] == SERVER4
        Lab.wait_for(lambda: worker_bytes(gateway)[1] - before[1] > 10_000, 20, "bytes of the file")
        assert worker_bytes(gateway)[0] - before[0] < 2_000
        kicked = gateway.algate("kick", control["id"])
        assert kicked.stdout.count("flow of") == 2
    finally:
        fetching.kill()
        fetching.wait()
        served.unlink()
    Lab.wait_for(lambda: gateway.admin("flows") == [], 20, "the end of both")


def worker_bytes(gateway: Gateway) -> tuple[int, int]:
    """Bytes from the clients and to them, of all flows up to now."""
    rows = [row for row in gateway.admin("status") if row["process"].startswith("worker")]
    return sum(int(row["up"]) for row in rows), sum(int(row["down"]) for row in rows)
