"""Upstreams inside TLS, and active FTP through upstreams: the pinhole is at the upstream, by BIND."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.certificates import Authority
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, STRANGER4, Lab
from tests.lab.peers import unpacked
from tests.lab.servers import FtpServer, _listens
from tests.net import proxies
from tests.net.ftp_control import Control, port_command
from tests.net.socks_wire import ask5, receive

# By the port of the server: the way that a connection to it takes.
PLAIN, TLS, MUTUAL, DANTE, STUNNEL, SOCKS4, CHAIN, HTTP, STRANGE = range(2101, 2110)
WAYS = {PLAIN: "plain", TLS: "tls", MUTUAL: "mutual", DANTE: "dante", STUNNEL: "stunnel", SOCKS4: "socks4a"}
REAL = 21  # through TLS, with a real server and a real client


@pytest.fixture(scope="module")
def authority(lab: Lab) -> Authority:
    return Authority(lab.tmp)


@pytest.fixture(scope="module")
def others(lab: Lab, authority: Authority) -> Iterator[None]:
    """Dante with a stunnel before it, tinyproxy, and two more algates, in the stranger's host."""
    certificate = authority.issue("proxy", hosts=(STRANGER4, "proxy.example"))
    proxies.danted(lab, "stranger", STRANGER4, 1080)
    proxies.tinyproxy(lab, "stranger", STRANGER4, 1082)
    config = lab.tmp / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\n[socks]\naccept = {STRANGER4}:1083\nconnect = {STRANGER4}:1080\n"
        f"cert = {certificate}\n"
    )
    process = lab.popen("stranger", [unpacked("stunnel4", "usr/bin/stunnel4"), config])
    lab.wait_for(lambda: _listens(process, 1083), 10, f"stunnel{lab.tail_of_logs()}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(algate(lab, 1090, 1091, certificate))
        stack.enter_context(algate(lab, 1092, 1093, certificate, authority.file))
        yield


@contextlib.contextmanager
def algate(lab: Lab, port: int, tls: int, certificate: Path, client_ca: Path | None = None) -> Iterator[None]:
    """Another gateway, without privileges over its host."""
    config = lab.tmp / f"upstream-{port}.toml"
    authorities = f'client_ca = "{client_ca}"\n' if client_ca else ""
    config.write_text(
        f'[network]\ninside = ["203.0.113.2/32", "{STRANGER4}/32"]\n'
        f'[process]\nworkers = 1\nrun_dir = "{lab.tmp}/run-{port}"\n'
        f'[console]\nlisten = ""\n[socks]\nlisten = ["{STRANGER4}:{port}"]\n'
        f'[socks.tls]\nlisten = ["{STRANGER4}:{tls}"]\ncertificate = "{certificate}"\n{authorities}'
    )
    log = lab.logs / f"upstream-{port}.log"
    process = lab.popen("stranger", [Gateway(lab, config).command, "run", "-c", config], log=log)
    lab.wait_for(lambda: log.exists() and "event=ready" in log.read_text(), 60, "the other gateway")
    yield
    lab.stop(process, 20)


@pytest.fixture(scope="module")
def gateway(lab: Lab, others: None, authority: Authority) -> Iterator[Gateway]:
    encrypted = {"tls": True, "ca": str(authority.file)}
    stranger = Authority(lab.tmp, "stranger")
    ours = {"certificate": str(authority.issue("router"))}
    upstreams = [
        {"name": "plain", "kind": "socks5", "address": f"{STRANGER4}:1090"},
        {"name": "tls", "kind": "socks5", "address": f"{STRANGER4}:1091", **encrypted},
        {"name": "mutual", "kind": "socks5", "address": f"{STRANGER4}:1093", **encrypted, **ours},
        {"name": "dante", "kind": "socks5", "address": f"{STRANGER4}:1080"},
        {
            "name": "stunnel",
            "kind": "socks5",
            "address": f"{STRANGER4}:1083",
            **encrypted,
            "server_name": "proxy.example",
        },
        {"name": "socks4a", "kind": "socks4a", "address": f"{STRANGER4}:1080"},
        {"name": "http", "kind": "http", "address": f"{STRANGER4}:1091", **encrypted},
        {"name": "strange", "kind": "socks5", "address": f"{STRANGER4}:1091", "tls": True, "ca": str(stranger.file)},
    ]
    rules = [{"action": "permit", "port": [port], "via": name} for port, name in WAYS.items()]
    rules += [
        {"action": "permit", "port": [REAL], "via": "tls"},
        {"action": "permit", "port": [HTTP], "via": "http"},
        {"action": "permit", "port": [STRANGE], "via": "strange"},
        {"action": "permit", "port": [CHAIN], "chain": ["dante", "tls"]},
    ]
    config = lab.write_config(
        process={"workers": 1},
        alg={"ftp": {"ports": [REAL, *range(PLAIN, STRANGE + 1)]}},
        upstream=upstreams,
        rule=rules,
    )
    gateway = lab.start_gateway(config, 90)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@contextlib.contextmanager
def session(lab: Lab, port: int, socks: bool) -> Iterator[tuple[Control, socket.socket]]:
    """A control connection of a client, configured or not, and the server's end of it."""
    listener = lab.listen("outside", SERVER4, port)
    if socks:
        control = Control(lab, ROUTER_IN4, 1080)
        assert ask5(control.socket, SERVER4, port)[0] == 0
    else:
        control = Control(lab, SERVER4, port)
    server, (host, _) = listener.accept()
    listener.close()
    assert host == STRANGER4, "the server sees the upstream"
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert control.reply() == "220 ready"
    yield control, server
    server.close()
    control.close()


def line(sock: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b"\n"):
        got += receive(sock, 1)
    return got


@pytest.mark.parametrize(
    ("port", "socks"),
    [*((port, True) for port in (*WAYS, CHAIN)), (TLS, False), (DANTE, False)],
    ids=[*WAYS.values(), "chain", "tls-redirected", "dante-redirected"],
)
def test_active_ftp(lab: Lab, gateway: Gateway, port: int, socks: bool) -> None:
    """The server is written where the upstream waits for it, and its connection comes to the client's own port."""
    local = CLIENT4
    waiting = lab.listen("inside", local)
    with session(lab, port, socks) as (control, server):
        control.send(port_command(local, waiting.getsockname()[1]))
        written = line(server)
        numbers = written.removeprefix(b"PORT ").strip().split(b",")
        assert b".".join(numbers[:4]).decode() == STRANGER4, written
        server.sendall(b"200 ok\r\n")
        assert control.reply() == "200 ok"
        (pinhole,) = gateway.admin("pinholes")
        assert pinhole["public"] == f"{STRANGER4}:{int(numbers[4]) * 256 + int(numbers[5])}"
        with lab.connect("outside", STRANGER4, int(numbers[4]) * 256 + int(numbers[5])) as data:
            sock, _ = waiting.accept()
            with sock:
                sock.settimeout(10)
                data.sendall(b"down")
                assert receive(sock, 4) == b"down"
                sock.sendall(b"up")
                sock.shutdown(socket.SHUT_WR)
                data.settimeout(10)
                assert receive(data, 2) == b"up"
                assert data.recv(1) == b""
        assert gateway.admin("pinholes") == []
    waiting.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")


def test_a_stranger_at_the_upstream(lab: Lab, gateway: Gateway) -> None:
    """Nobody comes but the server: the upstream sees to it."""
    waiting = lab.listen("inside", CLIENT4)
    with session(lab, PLAIN, True) as (control, server):
        control.send(port_command(CLIENT4, waiting.getsockname()[1]))
        numbers = line(server).removeprefix(b"PORT ").strip().split(b",")
        with (
            contextlib.suppress(ConnectionResetError),
            lab.connect("stranger", STRANGER4, int(numbers[4]) * 256 + int(numbers[5])) as sock,
        ):
            sock.settimeout(10)
            assert sock.recv(1) == b""
        assert len(gateway.admin("pinholes")) == 1, "it waits for the one who was expected"
    waiting.close()


def test_an_upstream_without_bind(lab: Lab, gateway: Gateway) -> None:
    """The line passes as it is: no worse than without reading."""
    with session(lab, HTTP, True) as (control, server):
        sent = port_command(CLIENT4, 2000)
        control.send(sent)
        assert line(server) == sent
    gateway.wait_for_log("event=pinhole.refused .*rule=upstream")


def test_the_wrong_certificate(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN4, 1080) as sock:
        assert ask5(sock, SERVER4, STRANGE)[0] == 1
    gateway.wait_for_log("event=socks.failed .*certificate")


@pytest.mark.parametrize("how", [("--ftp-port", "-"), ("--ftp-port", "-", "--disable-eprt")], ids=["eprt", "port"])
def test_a_real_session(lab: Lab, gateway: Gateway, ftp: FtpServer, how: tuple[str, ...]) -> None:
    """curl, unconfigured, and vsftpd: each file as it was, in both directions."""
    data = os.urandom(3_000_000)
    ftp.put("pub/file", data)
    sent, fetched = lab.tmp / "sent", lab.tmp / "fetched"
    sent.write_bytes(data)
    lab.run("inside", ["curl", "-sS", "-m", "30", *how, "-o", str(fetched), ftp.url("pub/file")])
    assert fetched.read_bytes() == data
    lab.run("inside", ["curl", "-sS", "-m", "30", *how, "-T", str(sent), ftp.url("upload/sent")])
    assert (ftp.root / "upload/sent").read_bytes() == data
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinholes to close")


@pytest.fixture
def ftp(lab: Lab) -> Iterator[FtpServer]:
    server = lab.vsftpd()
    yield server
    server.stop()
