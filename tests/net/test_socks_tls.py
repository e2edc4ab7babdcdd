"""SOCKS and HTTP CONNECT inside TLS: real clients, certificates as users, and handshakes that go wrong."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from gateway.client import ProxyError, connect
from gateway.client.sockets import reset
from gateway.policy.users import HASHER
from tests.lab.certificates import Authority
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.lab.peers import installed, unpacked
from tests.lab.servers import _listens
from tests.net.socks_wire import ask5, receive, request5

WEB = 8080
PORT = 1443  # a password
MUTUAL = 1444  # a certificate
NAME = "web.example"
URL = f"http://{NAME}:{WEB}/"
CHROMIUM = "/usr/bin/chromium"
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(lab: Lab) -> Authority:
    return Authority(lab.tmp)


@pytest.fixture(scope="module")
def others(lab: Lab) -> Authority:
    return Authority(lab.tmp, "stranger")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    file = authority.issue("proxy", hosts=(ROUTER_IN4, "proxy.example"))
    file.chmod(0o600)  # root's alone: workers do not read it themselves
    return file


@pytest.fixture(scope="module")
def web(lab: Lab) -> Iterator[None]:
    """The page, and a server of many bytes each way."""
    site = lab.tmp / "site"
    site.mkdir()
    (site / "index.html").write_text("hello\n")
    process = lab.popen("outside", ["python3", "-m", "http.server", "--directory", site, "--bind", SERVER4, str(WEB)])
    lab.wait_for(lambda: _listens(process, WEB), 20, "the web server")
    yield
    lab.stop(process)


@pytest.fixture(scope="module")
def gateway(lab: Lab, web: None, certificate: Path, authority: Authority) -> Iterator[Gateway]:
    lab.dns({NAME: [SERVER4]})
    users = lab.tmp / "users"
    users.write_text(f"ann:{HASHER.hash('secret')}:staff\nbob:*:guests\n")
    tls = {"listen": [f"{ROUTER_IN4}:{PORT}"], "certificate": str(certificate)}
    socks = {"listen": [], "tls": tls, "auth": ["password"], "users": str(users), "handshake_timeout": 3.0}
    first = lab.start_gateway(lab.write_config(socks=socks), 90)
    mutual = {**tls, "listen": [f"{ROUTER_IN4}:{MUTUAL}"], "client_ca": str(authority.file)}
    socks = {**socks, "tls": mutual, "auth": ["ident", "password"]}
    rules = [
        {"name": "staff", "action": "permit", "group": ["staff"]},
        {"name": "rest", "action": "deny"},
    ]
    config = lab.write_config(socks=socks, rule=rules, pinhole={"ports": "50000-50999"})
    second = lab.start_gateway(config, 90, rules=False)
    yield first
    assert second.stop() == 0, lab.tail_of_logs()
    assert first.stop() == 0, lab.tail_of_logs()


def curl(lab: Lab, authority: Authority, *words: str, port: int = PORT) -> subprocess.CompletedProcess[str]:
    argv = ["curl", "-sS", "-m", "20", "--proxytunnel", "--proxy", f"https://{ROUTER_IN4}:{port}"]
    return lab.run("inside", [*argv, "--proxy-cacert", str(authority.file), *words, URL], check=False)


def encrypted(lab: Lab, authority: Authority, port: int = PORT, certificate: Path | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(certificate)
    plain = lab.connect("inside", ROUTER_IN4, port)
    plain.settimeout(10)
    return context.wrap_socket(plain, server_hostname=ROUTER_IN4)


def login(sock: socket.socket) -> None:
    sock.sendall(b"\5\1\2")
    assert receive(sock, 2) == b"\5\2"
    sock.sendall(b"\1\3ann\6secret")
    assert receive(sock, 2) == b"\1\0"


def test_curl(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    assert curl(lab, authority, "--proxy-user", "ann:secret").stdout == "hello\n"
    assert "response 407" in curl(lab, authority, "--proxy-user", "ann:wrong").stderr
    gateway.wait_for_log("event=flow.end .*user=ann")


@pytest.mark.parametrize(
    ("version", "served"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_versions(lab: Lab, gateway: Gateway, authority: Authority, version: ssl.TLSVersion, served: bool) -> None:
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with lab.connect("inside", ROUTER_IN4, PORT) as plain:
        if not served:
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol version"):
                context.wrap_socket(plain, server_hostname=ROUTER_IN4)
            return
        with context.wrap_socket(plain, server_hostname=ROUTER_IN4) as stream:
            login(stream)


BROWSER = """
import sys
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    proxy = {"server": sys.argv[2], "username": "ann", "password": "secret"}
    words = ["--no-sandbox", "--ignore-certificate-errors"]
    browser = playwright.chromium.launch(executable_path=sys.argv[1], args=words, proxy=proxy)
    page = browser.new_page()
    page.goto(sys.argv[3], timeout=30000)
    print(page.content())
    browser.close()
"""


def test_chromium(lab: Lab, gateway: Gateway, certificate: Path) -> None:
    """It offers HTTP/2 in its handshake, is told HTTP/1, asked for its password, and shows the page."""
    pytest.importorskip("playwright.sync_api")
    installed("chromium", CHROMIUM)
    argv: list[str | Path] = [
        "openssl",
        "s_server",
        "-accept",
        "8443",
        "-cert",
        certificate,
        "-key",
        certificate,
        "-www",
    ]
    process = lab.popen("outside", argv)
    lab.wait_for(lambda: _listens(process, 8443), 10, "openssl to listen")
    words = [CHROMIUM, f"https://{ROUTER_IN4}:{PORT}", f"https://{NAME}:8443/"]
    done = lab.run("inside", [sys.executable, "-c", BROWSER, *words], timeout=60)
    lab.stop(process)
    assert "s_server" in done.stdout


def test_stunnel_for_clients_that_know_no_tls(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    """As people use it: stunnel here, and a SOCKS client that knows nothing of it."""
    config = lab.tmp / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\n[socks]\nclient = yes\naccept = 127.0.0.1:1080\nconnect = {ROUTER_IN4}:{PORT}\n"
        f"CAfile = {authority.file}\nverifyChain = yes\ncheckIP = {ROUTER_IN4}\n"
    )
    process = lab.popen("inside", [unpacked("stunnel4", "usr/bin/stunnel4"), config])
    lab.wait_for(lambda: _listens(process, 1080), 10, f"stunnel{lab.tail_of_logs()}")
    done = lab.run("inside", ["curl", "-sS", "-m", "20", "--proxy", "socks5h://ann:secret@127.0.0.1:1080", URL])
    lab.stop(process)
    assert done.stdout == "hello\n"


def test_openssl(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    """HTTP CONNECT by hand, with all bytes at once."""
    argv = ["openssl", "s_client", "-quiet", "-CAfile", str(authority.file), "-verify_return_error"]
    text = (
        f"CONNECT {SERVER4}:{WEB} HTTP/1.1\r\nProxy-Authorization: Basic YW5uOnNlY3JldA==\r\n\r\nGET / HTTP/1.0\r\n\r\n"
    )
    done = lab.run("inside", [*argv, "-connect", f"{ROUTER_IN4}:{PORT}"], stdin=text, check=False)
    assert done.stdout.endswith("hello\n"), done.stderr


@pytest.mark.parametrize("scheme", ["socks5+tls", "https"])
def test_our_own_library(lab: Lab, gateway: Gateway, authority: Authority, scheme: str) -> None:
    where = f"ann:secret@{ROUTER_IN4}:{PORT}?ca={authority.file}"
    with lab.enter("inside"):
        with connect(f"{scheme}://{where}", NAME, WEB, 20) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            sock.settimeout(10)
            assert receive(sock, 15) == b"HTTP/1.0 200 OK"
        with pytest.raises(ProxyError, match="certificate"):
            connect(f"{scheme}://ann:secret@{ROUTER_IN4}:{PORT}", NAME, WEB, 20)


LIBRARY = """
import asyncio, socket, sys
from gateway.client import aio, datagrams, listen, resolve
via, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
async def run():
    reader, writer = await aio.open_connection(via, host, port, timeout=10)
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    assert (await reader.read()).endswith(b"hello\\n")
    writer.close()
asyncio.run(run())
assert resolve(via, sys.argv[4], 10) == host
with datagrams(via, 10) as udp:
    udp.settimeout(10)
    udp.sendto(b"ping", (host, port))
    assert udp.recvfrom() == (b"pong", (host, port))
with listen(via, host, 0, 10) as waiting:
    print(*waiting.address, flush=True)
    sock, _ = waiting.accept(10)
    with sock:
        sock.settimeout(10)
        assert sock.recv(5) == b"first"
        sock.sendall(b"second")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
print("done")
"""


def test_all_that_our_library_can(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    """asyncio, RESOLVE, datagrams (which go beside TLS), and BIND with an end in each direction."""
    with lab.enter("outside"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((SERVER4, WEB))
        udp.settimeout(20)
        via = f"socks5+tls://ann:secret@{ROUTER_IN4}:{PORT}?ca={authority.file}"
        argv = ["ip", "netns", "exec", lab.ns("inside"), sys.executable, "-c", LIBRARY, via, SERVER4, str(WEB), NAME]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdout is not None
            data, peer = udp.recvfrom(100)
            assert data == b"ping"
            udp.sendto(b"pong", peer)
            host, port = process.stdout.readline().split()
            with lab.connect("outside", host, int(port)) as sock:
                sock.settimeout(10)
                sock.sendall(b"first")
                assert receive(sock, 6) == b"second"
                assert sock.recv(1) == b""
            assert process.stdout.read() == "done\n"
        assert process.returncode == 0


@pytest.fixture
def echo(lab: Lab) -> Iterator[int]:
    """Sends back what it got, once that has ended."""
    listener = lab.listen("outside", SERVER4)
    listener.settimeout(None)

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                parts = []
                try:
                    while part := sock.recv(65536):
                        parts.append(part)
                    sock.sendall(b"".join(parts))
                except OSError:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def test_many_bytes_and_both_ends(lab: Lab, gateway: Gateway, authority: Authority, echo: int) -> None:
    """What ends in one direction goes on in the other; both ends are told inside TLS."""
    sent = bytes(range(256)) * (4 * MIB // 256)
    where = f"socks5+tls://ann:secret@{ROUTER_IN4}:{PORT}?ca={authority.file}"
    with lab.enter("inside"):
        sock = connect(where, SERVER4, echo, 20)
    with sock:
        sock.settimeout(20)
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, len(sent)) == sent
        assert sock.recv(1) == b""
    gateway.wait_for_log(f"event=flow.end .*reason=eof up={len(sent)} down={len(sent)} ")


def test_a_stream_that_is_cut_is_no_end(lab: Lab, gateway: Gateway, authority: Authority, echo: int) -> None:
    seen = len(gateway.log_lines())
    sock = encrypted(lab, authority)
    login(sock)
    sock.sendall(request5(SERVER4, echo) + b"abc")
    assert receive(sock, 10)[1] == 0
    plain = socket.socket(fileno=sock.detach())
    plain.shutdown(socket.SHUT_WR)  # an end of TCP that anybody on the way can make
    plain.settimeout(10)
    gateway.wait_for_log("event=flow.end .*reason=reset", after=seen)
    plain.close()


def test_a_server_that_breaks_is_no_end_for_our_library(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    """The program gets what had come before, and an error; both inside TLS."""
    listener = lab.listen("outside", SERVER4)
    where = f"socks5+tls://ann:secret@{ROUTER_IN4}:{PORT}?ca={authority.file}"
    with lab.enter("inside"):
        sock = connect(where, SERVER4, listener.getsockname()[1], 20)
    peer, _ = listener.accept()
    peer.sendall(bytes(300_000))
    reset_thread = threading.Thread(target=reset, args=(peer,))
    reset_thread.start()
    with listener, sock:
        assert receive(sock, 300_000) == bytes(300_000)
        sock.settimeout(10)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    reset_thread.join()


def test_udp_ends_with_its_connection(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    sock = encrypted(lab, authority)
    login(sock)
    sock.sendall(request5("0.0.0.0", 0, 3))
    assert receive(sock, 10)[1] == 0
    lab.wait_for(lambda: len(gateway.admin("flows")) == 1, 5, "the association")
    sock.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 5, "its end")


def test_bind(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    sock = encrypted(lab, authority)
    login(sock)
    sock.sendall(request5(SERVER4, 0, 2))
    first = receive(sock, 10)
    assert first[1] == 0
    with lab.connect("outside", socket.inet_ntoa(first[4:8]), int.from_bytes(first[8:10], "big")) as peer:
        assert receive(sock, 10)[1] == 0
        peer.sendall(b"data")
        assert receive(sock, 4) == b"data"
    sock.close()


# --- certificates as users


def test_a_certificate_is_the_user(lab: Lab, gateway: Gateway, authority: Authority, others: Authority) -> None:
    """Its common name, with the groups of the users file; whatever method the client offers."""
    ann = authority.issue("ann", "/O=example/CN=ann")
    assert curl(lab, authority, "--proxy-cert", str(ann), port=MUTUAL).stdout == "hello\n"
    with lab.enter("inside"):
        sock = connect(f"socks5+tls://{ROUTER_IN4}:{MUTUAL}?ca={authority.file}&certificate={ann}", SERVER4, WEB, 20)
    sock.close()
    with encrypted(lab, authority, MUTUAL, ann) as stream:
        assert ask5(stream, SERVER4, WEB)[0] == 0
    with encrypted(lab, authority, MUTUAL, authority.issue("bob")) as stream:
        assert ask5(stream, SERVER4, WEB)[0] == 2, "a guest is not of the staff"


@pytest.mark.parametrize("whose", ["nobody", "a stranger", "no name"])
def test_a_certificate_that_is_not_accepted(
    lab: Lab, gateway: Gateway, authority: Authority, others: Authority, whose: str
) -> None:
    words = {
        "nobody": (),
        "a stranger": ("--proxy-cert", str(others.issue("eve", "/CN=ann"))),
        "no name": ("--proxy-cert", str(authority.issue("nameless", "/O=example"))),
    }[whose]
    done = curl(lab, authority, *words, port=MUTUAL)
    assert done.returncode, done.stdout
    assert "hello" not in done.stdout


# --- what goes wrong


def test_what_is_no_tls(lab: Lab, gateway: Gateway) -> None:
    seen = len(gateway.log_lines())
    with lab.connect("inside", ROUTER_IN4, PORT) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.settimeout(5)
        while sock.recv(100):
            pass
    gateway.wait_for_log("event=socks.tls_failed .*reason=", after=seen)


def test_slow_handshakes_hold_nothing(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    """Two hundred that say nothing, or the beginning of a ClientHello: others are served, and they end in time."""
    began = time.monotonic()
    with lab.enter("inside"):
        slow = [socket.create_connection((ROUTER_IN4, PORT)) for _ in range(200)]
    for sock in slow[::2]:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
    assert curl(lab, authority, "--proxy-user", "ann:secret").stdout == "hello\n"
    assert time.monotonic() - began < 3, "before their time was over"
    for sock in slow:
        sock.settimeout(10)
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
        sock.close()
    gateway.wait_for_log("event=socks.timeout")


def test_a_handshake_that_dribbles(lab: Lab, gateway: Gateway) -> None:
    """Its time is for the whole, however many bytes come."""
    began = time.monotonic()
    hello = (bytes([byte]) for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(512))
    with lab.connect("inside", ROUTER_IN4, PORT) as sock:
        sock.settimeout(0.2)
        while time.monotonic() - began < 8:
            try:
                sock.sendall(next(hello))
                if not sock.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - began < 5


def test_a_new_certificate(lab: Lab, gateway: Gateway, authority: Authority, certificate: Path) -> None:
    """It is used within seconds, without a reload; one that cannot be used is rejected, and the one before stays."""

    def serial() -> str:
        with encrypted(lab, authority) as stream:
            found = stream.getpeercert()
            assert found is not None
            return str(found["serialNumber"])

    before = serial()
    seen = len(gateway.log_lines())
    whole = certificate.read_bytes()
    certificate.write_bytes(whole[:600])
    gateway.wait_for_log("event=file.rejected .*key=socks.tls.certificate", 10, seen)
    assert serial() == before
    authority.issue("proxy", hosts=(ROUTER_IN4, "proxy.example"))
    gateway.wait_for_log("event=file.loaded key=socks.tls.certificate", 10, seen)
    lab.wait_for(lambda: serial() != before, 5, "the new one")


def test_a_reload_takes_it_away_and_brings_it_back(lab: Lab, gateway: Gateway, authority: Authority) -> None:
    whole = gateway.config.read_text()
    document = tomllib.loads(whole)
    del document["socks"]["tls"]
    document["socks"]["listen"] = [f"{ROUTER_IN4}:1080"]
    gateway.config.write_text(tomli_w.dumps(document))
    gateway.algate("reload")
    with pytest.raises(ConnectionRefusedError):
        lab.connect("inside", ROUTER_IN4, PORT)
    gateway.config.write_text(whole)
    gateway.algate("reload")
    assert curl(lab, authority, "--proxy-user", "ann:secret").stdout == "hello\n"


def test_a_certificate_that_ends_soon_is_warned_of(lab: Lab, gateway: Gateway) -> None:
    """Those of this test live for two days: the log and doctor say so."""
    gateway.wait_for_log("level=warning .*event=certificate.expires key=socks.tls.certificate .*days=[01] ")
    assert "socks.tls.certificate: ends on" in gateway.algate("doctor", check=False).stdout
