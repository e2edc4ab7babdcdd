"""TFTP through the router: real servers outside, real clients inside, and a server that does what a test says.

The servers answer from a port of their own choice, so without the module nothing comes back.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT2_4,
    CLIENT4,
    CLIENT6,
    ROUTER_OUT4,
    SERVER4,
    SERVER6,
    STRANGER4,
    STRANGER6,
    Lab,
)
from tests.lab.peers import unpacked
from tests.lab.udp import Udp
from tests.net.udp_client import Client, associate

TFTP = 69
SIZE, SMALL = 10_000_000, 500_000  # with blocks of 512 bytes each is a way there and back
ASKS = b"\0\1boot.bin\0octet\0"
DATA = b"\0\3\0\1the file"
IDLE = 10.0
pytestmark = pytest.mark.usefixtures("gateway")


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(alg={"tftp": {"idle_timeout": IDLE}}, process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


def holes(gateway: Gateway, client: Udp | Client) -> list[dict[str, Any]]:
    """The pinholes of a socket."""
    host, port = client.sock.getsockname()[:2]
    return [hole for hole in gateway.admin("pinholes") if hole["target"] == f"{host}:{port}"]


def folder(lab: Lab) -> tuple[Path, str]:
    """A server's folder with a file to fetch, and that file's checksum."""
    root = lab.tmp / f"tftp{len(list(lab.tmp.glob('tftp*')))}"
    root.mkdir()
    root.chmod(0o777)
    data = os.urandom(SIZE)
    (root / "boot.bin").write_bytes(data)
    (root / "boot.bin").chmod(0o644)
    (root / "small.bin").write_bytes(data[:SMALL])
    (root / "small.bin").chmod(0o644)
    stored = root / "stored.bin"  # in.tftpd only writes to what is there
    stored.touch()
    stored.chmod(0o666)
    return root, hashlib.sha256(data).hexdigest()


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hpa(lab: Lab, root: Path, host: str) -> Any:
    """tftpd-hpa."""
    address = f"[{host}]:69" if ":" in host else f"{host}:69"
    program = unpacked("tftpd-hpa", "usr/sbin/in.tftpd")
    return lab.popen("outside", [program, "-L", "-s", "-c", "-p", "-u", "nobody", "-a", address, root])


def atftpd(lab: Lab, root: Path, host: str) -> Any:
    program = unpacked("atftpd", "usr/sbin/atftpd")
    options = ["--daemon", "--no-fork", "--user", "nobody.nogroup", "--logfile", "-", "--bind-address", host]
    return lab.popen("outside", [program, *options, "--port", "69", root])


SERVERS = {"tftpd-hpa": hpa, "dnsmasq": servers.tftp, "atftpd": atftpd}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[str, Path, str]]:
    root, checksum = folder(lab)
    process = servers.has_tftp(lab, SERVERS[request.param](lab, root, SERVER4))
    yield request.param, root, checksum
    lab.stop(process)


def fetched_by_curl(lab: Lab, url: str, checksum: str, *options: str) -> None:
    into = lab.tmp / "got.bin"
    curl = ["curl", "-sS", "--globoff", "--max-time", "60", "-o", str(into), *options, url]
    lab.run("inside", curl, timeout=70)
    assert sum_of(into) == checksum
    into.unlink()


# --- real clients and servers -----------------------------------------------------------------------------------------


def test_curl_fetches_with_large_blocks(lab: Lab, server: tuple[str, Path, str]) -> None:
    fetched_by_curl(lab, f"tftp://{SERVER4}/boot.bin", server[2], "--tftp-blksize", "1428")


def test_curl_without_options(lab: Lab, server: tuple[str, Path, str]) -> None:
    fetched_by_curl(lab, f"tftp://{SERVER4}/small.bin", sum_of(server[1] / "small.bin"), "--tftp-no-options")


def test_curl_stores(lab: Lab, server: tuple[str, Path, str]) -> None:
    name, root, _ = server
    if name == "dnsmasq":
        pytest.skip("dnsmasq's server only reads")
    source = lab.tmp / "store.bin"
    source.write_bytes(os.urandom(SIZE))
    url = f"tftp://{SERVER4}/stored.bin"
    lab.run("inside", ["curl", "-sS", "--max-time", "60", "--tftp-blksize", "1428", "-T", source, url], timeout=70)
    lab.wait_for(lambda: sum_of(root / "stored.bin") == sum_of(source), 5, "the last block to be written")


def test_the_client_of_tftp_hpa(lab: Lab, server: tuple[str, Path, str]) -> None:
    """It knows blocks of 512 bytes only; the large file is fetched and stored with its own server."""
    name, root, _ = server
    file = "boot.bin" if name == "tftpd-hpa" else "small.bin"
    into = lab.tmp / "hpa.bin"
    program = unpacked("tftp-hpa", "usr/bin/tftp")
    lab.run("inside", [program, "-m", "binary", SERVER4, "-c", "get", file, into], timeout=70)
    assert sum_of(into) == sum_of(root / file)
    if name == "dnsmasq":
        return  # its server only reads
    lab.run("inside", [program, "-m", "binary", SERVER4, "-c", "put", into, "stored.bin"], timeout=70)
    lab.wait_for(lambda: sum_of(root / "stored.bin") == sum_of(into), 5, "the last block to be written")


def test_the_client_of_atftp_with_windows_and_options(lab: Lab, server: tuple[str, Path, str]) -> None:
    into = lab.tmp / "atftp.bin"
    program = unpacked("atftp", "usr/bin/atftp")
    options = ["--option", "blksize 1428", "--option", "tsize 0"]
    if server[0] == "atftpd":  # the others know none
        options += ["--option", "windowsize 8"]
    lab.run("inside", [program, *options, "-g", "-r", "boot.bin", "-l", into, SERVER4], timeout=70)
    assert sum_of(into) == server[2]
    if server[0] == "dnsmasq":
        return  # its server only reads
    lab.run("inside", [program, *options, "-p", "-l", into, "-r", "stored.bin", SERVER4], timeout=70)
    lab.wait_for(lambda: sum_of(server[1] / "stored.bin") == server[2], 5, "the last block to be written")


@pytest.mark.parametrize("program", ["tftpd-hpa", "dnsmasq"])  # atftpd answers nobody there, without a router either
def test_over_ipv6(lab: Lab, program: str) -> None:
    """curl fetches, and stores where the server lets it."""
    root, checksum = folder(lab)
    process = servers.has_tftp(lab, SERVERS[program](lab, root, SERVER6))
    fetched_by_curl(lab, f"tftp://[{SERVER6}]/boot.bin", checksum, "--tftp-blksize", "1428")
    if program != "dnsmasq":
        url = f"tftp://[{SERVER6}]/stored.bin"
        argv: list[str | Path] = ["curl", "-sS", "--globoff", "--max-time", "60", "--tftp-blksize", "1428"]
        lab.run("inside", [*argv, "-T", root / "boot.bin", url], timeout=70)
        lab.wait_for(lambda: sum_of(root / "stored.bin") == checksum, 5, "the last block to be written")
    lab.stop(process)


def test_the_packets_process_is_killed_while_curl_fetches(lab: Lab, gateway: Gateway) -> None:
    root, checksum = folder(lab)
    into = lab.tmp / "killed.bin"
    [pid] = [row["pid"] for row in gateway.admin("status") if row.get("process") == "packets"]
    seen = len(gateway.log_lines())
    process = servers.tftp(lab, root, SERVER4)
    url = f"tftp://{SERVER4}/boot.bin"
    curl = lab.popen("inside", ["curl", "-sS", "--max-time", "60", "--tftp-blksize", "512", "-o", into, url])
    try:
        lab.wait_for(lambda: into.exists() and into.stat().st_size > 100_000, 15, "the beginning of the file")
        os.kill(pid, signal.SIGKILL)
        assert curl.poll() is None, "too late: the file is there"
        assert curl.wait(60) == 0
        assert sum_of(into) == checksum
        gateway.wait_for_log("packets.taken_over", 10, seen)
    finally:
        lab.stop(process)


# --- byte by byte -----------------------------------------------------------------------------------------------------


def test_the_servers_own_port_comes_through_and_nobody_else(lab: Lab, gateway: Gateway) -> None:
    with (
        Udp(lab, "inside", CLIENT4, 2070) as client,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4, 3000) as answerer,
        Udp(lab, "stranger", STRANGER4, 3000) as stranger,
    ):
        client.send(ASKS, (SERVER4, TFTP))
        data, public = listener.receive()
        assert data == ASKS  # byte for byte
        assert public[0] == ROUTER_OUT4
        [hole] = holes(gateway, client)
        assert (hole["target"], hole["peer"], hole["reason"]) == (f"{CLIENT4}:2070", SERVER4, "tftp.data")
        assert hole["public"] == f"{public[0]}:{public[1]}"
        stranger.send(b"\0\3\0\1not the file", public)
        answerer.send(DATA, public)
        assert client.receive() == (DATA, (SERVER4, 3000))
        client.send(b"\0\4\0\1", (SERVER4, 3000))
        assert answerer.receive() == (b"\0\4\0\1", public)
        stranger.send(b"\0\3\0\2not the file", public)
        assert client.is_silent()


def test_two_clients_with_one_port(lab: Lab) -> None:
    with (
        Udp(lab, "inside", CLIENT4, 2071) as first,
        Udp(lab, "client2", CLIENT2_4, 2071) as other,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        public = []
        for client in (first, other):
            client.send(ASKS, (SERVER4, TFTP))
            public.append(listener.receive()[1])
        assert public[0] != public[1]
        for number, where in enumerate(public):
            answerer.send(DATA + bytes([number]), where)
        assert first.receive()[0] == DATA + b"\0"
        assert other.receive()[0] == DATA + b"\1"


def test_what_is_no_request_opens_nothing(lab: Lab, gateway: Gateway) -> None:
    said = [b"\0\3\0\1data", b"\0\4\0\1", b"GET / HTTP/1.1\r\n\r\n\0\1boot.bin\0octet\0", b"\0\1boot.bin\0", b"x"]
    with Udp(lab, "inside", CLIENT4) as client, Udp(lab, "outside", SERVER4, TFTP) as listener:
        for data in said:
            client.send(data, (SERVER4, TFTP))
            assert listener.receive()[0] == data
        assert holes(gateway, client) == []


def test_a_low_port_opens_nothing(lab: Lab, gateway: Gateway) -> None:
    with Udp(lab, "inside", CLIENT4, 123) as client, Udp(lab, "outside", SERVER4, TFTP) as listener:
        client.send(ASKS, (SERVER4, TFTP))
        assert listener.receive()[0] == ASKS
        gateway.wait_for_log("tftp.low-port")
        assert holes(gateway, client) == []


def test_the_port_closes_when_nothing_comes(lab: Lab, gateway: Gateway) -> None:
    with (
        Udp(lab, "inside", CLIENT4, 2072) as client,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        client.send(ASKS, (SERVER4, TFTP))
        _, public = listener.receive()
        answerer.send(DATA, public)
        assert client.receive()[0] == DATA
        lab.wait_for(lambda: holes(gateway, client) == [], 3 * IDLE, "the port to close")
        answerer.send(b"\0\3\0\2late", public)
        assert client.is_silent()


def test_a_request_just_when_the_port_has_closed_is_not_lost(lab: Lab, gateway: Gateway) -> None:
    """It is asked once only, while connection tracking still knows the first one."""
    with (
        Udp(lab, "inside", CLIENT4, 2075) as client,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        client.send(ASKS, (SERVER4, TFTP))
        _, public = listener.receive()
        answerer.send(DATA, public)
        assert client.receive()[0] == DATA
        gateway.wait_for_log(f"event=pinhole.(close|expire) .*target={CLIENT4}:2075", 3 * IDLE)
        client.send(ASKS, (SERVER4, TFTP))
        assert listener.receive() == (ASKS, public)
        answerer.send(DATA + b" again", public)
        assert client.receive()[0] == DATA + b" again"


def test_a_thousand_requests_in_a_second(lab: Lab, gateway: Gateway) -> None:
    """All arrive, most of them without a port; another client gets its own at once."""
    flood = [Udp(lab, "inside", CLIENT4) for _ in range(100)]
    with Udp(lab, "outside", SERVER4, TFTP) as listener, Udp(lab, "client2", CLIENT2_4, 2073) as other:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        for number in range(1000):
            flood[number % 100].send(ASKS, (SERVER4, TFTP))
        other.send(ASKS + b"tsize\0000\0", (SERVER4, TFTP))
        came = [listener.receive() for _ in range(1001)]
        [public] = [where for data, where in came if data != ASKS]
        assert [f"{public[0]}:{public[1]}"] == [hole["public"] for hole in holes(gateway, other)]
        opened = [hole for hole in gateway.admin("pinholes") if hole["client"] == CLIENT4]
        assert len(opened) <= 80  # 40 at once and 20 a second; without a rate it would be 100 and those of other tests
        assert "tftp.rate" in "".join(gateway.log_lines())
    for udp in flood:
        udp.sock.close()


def test_the_packets_process_is_killed_in_a_transfer(lab: Lab, gateway: Gateway) -> None:
    with (
        Udp(lab, "inside", CLIENT4, 2074) as client,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        client.send(ASKS, (SERVER4, TFTP))
        _, public = listener.receive()
        [pid] = [row["pid"] for row in gateway.admin("status") if row.get("process") == "packets"]
        lines = len(gateway.log_lines())
        os.kill(pid, signal.SIGKILL)
        answerer.send(DATA, public)
        assert client.receive()[0] == DATA
        gateway.wait_for_log("packets.taken_over", 10, lines)
        answerer.send(b"\0\3\0\2more", public)
        assert client.receive()[0] == b"\0\3\0\2more"
        client.send(b"\0\4\0\2", answerer.sock.getsockname())
        assert answerer.receive() == (b"\0\4\0\2", public)
        # The successor knows it: a request sent again opens no second port.
        client.send(ASKS, (SERVER4, TFTP))
        assert listener.receive() == (ASKS, public)


def test_ipv6_byte_by_byte(lab: Lab) -> None:
    with (
        Udp(lab, "inside", CLIENT6, 2070) as client,
        Udp(lab, "outside", SERVER6, TFTP) as listener,
        Udp(lab, "outside", SERVER6) as answerer,
        Udp(lab, "stranger", STRANGER6) as stranger,
    ):
        client.send(ASKS, (SERVER6, TFTP))
        data, public = listener.receive()
        assert data == ASKS
        stranger.send(b"no", public)
        answerer.send(DATA, public)
        assert client.receive()[0] == DATA
        assert client.is_silent()


# --- SOCKS ------------------------------------------------------------------------------------------------------------


def test_through_an_association(lab: Lab, gateway: Gateway) -> None:
    """The server's other port comes through the association, a stranger does not, and no further port is opened."""
    with (
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
        Udp(lab, "stranger", STRANGER4) as stranger,
    ):
        client = associate(lab)
        client.send(SERVER4, TFTP, ASKS)
        data, public = listener.receive()
        assert data == ASKS
        stranger.send(b"no", public)
        answerer.send(DATA, public)
        assert client.receive() == (SERVER4, answerer.sock.getsockname()[1], DATA)
        client.send(SERVER4, answerer.sock.getsockname()[1], b"\0\4\0\1")
        assert answerer.receive() == (b"\0\4\0\1", public)
        assert [hole["reason"] for hole in holes(gateway, client)] == ["socks.udp"]
        client.close()


# --- modes, and without the module ------------------------------------------------------------------------------------


@pytest.fixture(params=["observe", "off"])
def passive(request: pytest.FixtureRequest, lab: Lab, gateway: Gateway) -> Iterator[str]:
    before = gateway.config.read_text()
    assert "[alg.tftp]" in before
    gateway.config.write_text(before.replace("[alg.tftp]", f'[alg.tftp]\nmode = "{request.param}"'))
    gateway.rules("apply")
    gateway.reload()
    yield request.param
    gateway.config.write_text(before)
    gateway.rules("apply")
    gateway.reload()


def test_without_the_module_nothing_comes_back(lab: Lab, gateway: Gateway, passive: str) -> None:
    """What the kernel does by itself: the request goes, and the answer from another port is nobody's."""
    with (
        Udp(lab, "inside", CLIENT4) as client,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        client.send(ASKS, (SERVER4, TFTP))
        data, public = listener.receive()
        assert data == ASKS
        answerer.send(DATA, public)
        assert client.is_silent()
        listener.send(DATA, public)  # what a NAT lets through, it still does
        assert client.receive()[0] == DATA
        assert holes(gateway, client) == []


def test_random_source_ports(lab: Lab, gateway: Gateway) -> None:
    """`--random-fully` chooses a port for every connection: the pinhole's own is not touched by it."""
    rule = ["POSTROUTING", "-o", "eth0", "-p", "udp", "-j", "MASQUERADE", "--random-fully"]
    lab.run("router", ["iptables", "-t", "nat", "-I", *rule])
    try:
        root, checksum = folder(lab)
        process = servers.tftp(lab, root, SERVER4)
        fetched_by_curl(lab, f"tftp://{SERVER4}/boot.bin", checksum, "--tftp-blksize", "1428")
        lab.stop(process)
    finally:
        lab.run("router", ["iptables", "-t", "nat", "-D", *rule])


def test_trace_shows_the_request(lab: Lab, gateway: Gateway) -> None:
    with Udp(lab, "inside", CLIENT4) as client, Udp(lab, "outside", SERVER4, TFTP) as listener:
        client.send(ASKS, (SERVER4, TFTP))
        listener.receive()
        assert "boot.bin" in gateway.algate("trace", "--json").stdout


def test_a_server_that_answers_slowly_is_no_reason_to_close(lab: Lab, gateway: Gateway) -> None:
    """Packets that the kernel counts keep the port open, beyond the time of one pause."""
    with (
        Udp(lab, "inside", CLIENT4) as client,
        Udp(lab, "outside", SERVER4, TFTP) as listener,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        client.send(ASKS, (SERVER4, TFTP))
        _, public = listener.receive()
        ends = time.monotonic() + 1.5 * IDLE
        number = 0
        while time.monotonic() < ends:
            number += 1
            answerer.send(DATA + str(number).encode(), public)
            assert client.receive()[0] == DATA + str(number).encode()
            client.send(b"\0\4\0\1", answerer.sock.getsockname())
            answerer.receive()
            assert client.is_silent(1.0)  # a server that takes a second for a block
