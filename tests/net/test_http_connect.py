"""HTTP CONNECT at the SOCKS port: the same users, rules, limits and log."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client import ProxyError, connect
from gateway.policy.users import HASHER
from tests.lab.certificates import Authority
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, SERVER4, SERVER6, Lab
from tests.lab.peers import installed
from tests.lab.servers import _listens
from tests.net.socks_wire import GREETING, receive

ALL = 1080  # speaks everything, to anybody
SAFE = 1081  # HTTP only, with a password
NAME = "web.example"


@pytest.fixture(scope="module")
def web(lab: Lab) -> Iterator[None]:
    site = lab.tmp / "site"
    site.mkdir()
    (site / "index.html").write_text("hello\n")
    argv: list[str | Path] = ["python3", "-m", "http.server", "--directory", site, "--bind", "::", "8080"]
    process = lab.popen("outside", argv)

    def serves() -> bool:
        try:
            lab.connect("outside", SERVER4, 8080, timeout=1).close()
        except OSError:
            return False
        return True

    lab.wait_for(serves, 20, "the web server")
    yield
    lab.stop(process)


@pytest.fixture(scope="module")
def gateway(lab: Lab, web: None) -> Iterator[Gateway]:
    lab.dns({NAME: [SERVER4]})
    everything = {"protocols": ["socks5", "socks4", "http"]}
    rules = [
        {"name": "no-8081", "action": "deny", "port": [8081]},
        {"name": "rest", "action": "permit"},
    ]
    gateway = lab.start_gateway(lab.write_config(socks=everything, rule=rules), 90)
    users = lab.tmp / "users"
    users.write_text(f"ann:{HASHER.hash('secret word')}\n")
    listen = {"listen": [f"{ROUTER_IN4}:{SAFE}"], "protocols": ["http"], "auth": ["password"], "users": str(users)}
    config = lab.write_config(socks=listen, pinhole={"ports": "50000-50999"})
    safe = lab.start_gateway(config, 90, rules=False)
    yield gateway
    assert safe.stop() == 0, lab.tail_of_logs()
    assert gateway.stop() == 0, lab.tail_of_logs()


def curl(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.run("inside", ["curl", "-sS", "-m", "20", "--proxytunnel", *arguments], check=False)


@pytest.mark.parametrize("router", [ROUTER_IN4, f"[{ROUTER_IN6}]"])
@pytest.mark.parametrize("host", [SERVER4, f"[{SERVER6}]", NAME])
def test_curl(lab: Lab, gateway: Gateway, router: str, host: str) -> None:
    done = curl(lab, "--proxy", f"http://{router}:{ALL}", f"http://{host}:8080/")
    assert done.stdout == "hello\n", done.stderr


def test_socks_is_still_spoken_there(lab: Lab, gateway: Gateway) -> None:
    for scheme in ("socks5h", "socks4a"):
        done = lab.run("inside", ["curl", "-sS", "--proxy", f"{scheme}://{ROUTER_IN4}:{ALL}", f"http://{NAME}:8080/"])
        assert done.stdout == "hello\n"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        (f"http://{SERVER4}:8081/", 403),  # a rule
        (f"http://{SERVER4}:8082/", 502),  # nobody listens
        ("http://missing.example:8080/", 502),
        ("http://127.0.0.1:8080/", 403),
    ],
)
def test_a_refusal_has_its_status(lab: Lab, gateway: Gateway, url: str, status: int) -> None:
    done = curl(lab, "--proxy", f"http://{ROUTER_IN4}:{ALL}", url)
    assert f"response {status}" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("3405803786", b"200"),  # SERVER4, as a client that does not look at what it hands on has it
        ("0xCB.0.28938", b"200"),
        (f"[::ffff:{SERVER4}]", b"200"),
        (f"{NAME.upper()}.", b"200"),
        ("127.1", b"403"),
        ("0x7f.1", b"403"),
        ("[::ffff:7f00:1]", b"403"),
        ("0177.0.0.1", b"502"),  # others read another address
        ("[fe80::1%25eth0]", b"502"),
    ],
)
def test_however_the_host_is_written(lab: Lab, gateway: Gateway, host: str, status: bytes) -> None:
    with lab.connect("inside", ROUTER_IN4, ALL) as client:
        client.sendall(f"CONNECT {host}:8080 HTTP/1.1\r\n\r\n".encode())
        assert receive(client, 12) == b"HTTP/1.1 " + status


def test_what_is_no_connect(lab: Lab, gateway: Gateway) -> None:
    """A browser that is led to the port, or uses it as a proxy for plain HTTP."""
    done = lab.run("inside", ["curl", "-sS", "-i", f"http://{ROUTER_IN4}:{ALL}/"])
    assert "405 Method Not Allowed" in done.stdout
    with lab.connect("inside", ROUTER_IN4, ALL) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
        sock.settimeout(10)
        assert receive(sock, 12) == b"HTTP/1.1 400"


def test_no_byte_is_lost_behind_the_head(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN4, ALL) as sock:
        sock.sendall(f"CONNECT {SERVER4}:8080 HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n".encode())
        sock.settimeout(10)
        data = b""
        while part := sock.recv(65536):
            data += part
    assert data.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.0 200 OK")
    assert data.endswith(b"hello\n")


@pytest.mark.parametrize("host", [SERVER4, f"[{SERVER6}]", NAME])
def test_a_head_in_pieces(lab: Lab, gateway: Gateway, host: str) -> None:
    """Cut anywhere, with bytes for the server right behind it; addresses go a shorter way than names."""
    with lab.listen("outside", SERVER6 if ":" in host else SERVER4, 7777) as listener:
        head = f"CONNECT {host}:7777 HTTP/1.1\r\nHost: {host}:7777\r\nUser-Agent: x\r\n\r\n".encode()
        for cut in range(len(head) + 1):
            with lab.connect("inside", ROUTER_IN4, ALL) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in (head[:cut], head[cut:] + b"early"):
                    client.sendall(piece)
                server, _ = listener.accept()
                with server:
                    server.settimeout(5)
                    assert receive(server, 5) == b"early"
                    server.sendall(b"hello")
                answer = b"".join(iter(lambda: client.recv(100), b""))
                assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nhello"


def test_passwords(lab: Lab, gateway: Gateway) -> None:
    proxy, url = f"http://{ROUTER_IN4}:{SAFE}", f"http://{SERVER4}:8080/"
    assert curl(lab, "--proxy", proxy, "--proxy-user", "ann:secret word", url).stdout == "hello\n"
    assert "response 407" in curl(lab, "--proxy", proxy, url).stderr
    assert "response 407" in curl(lab, "--proxy", proxy, "--proxy-user", "ann:wrong", url).stderr
    # as browsers do: without a password first, then asked for one
    done = curl(lab, "--proxy", proxy, "--proxy-anyauth", "--proxy-user", "ann:secret word", url)
    assert done.stdout == "hello\n", done.stderr


def test_only_what_is_in_the_list_is_spoken(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN4, SAFE) as sock:
        sock.sendall(GREETING)
        sock.settimeout(10)
        assert sock.recv(1) == b""


def test_our_own_library(lab: Lab, gateway: Gateway) -> None:
    with lab.enter("inside"):
        sock = connect(f"http://ann:secret%20word@{ROUTER_IN4}:{SAFE}", NAME, 8080, 20)
        with pytest.raises(ProxyError) as caught:
            connect(f"http://ann:wrong@{ROUTER_IN4}:{SAFE}", NAME, 8080, 20)
    assert caught.value.reply == 407
    with sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        sock.settimeout(10)
        assert receive(sock, 15) == b"HTTP/1.0 200 OK"


# It ends TLS in order, and not the connection alone: apt 3 takes that for a file that was cut off.
HTTPS = """
import contextlib, http.server, os, ssl, sys
class Server(http.server.ThreadingHTTPServer):
    def shutdown_request(self, request):
        with contextlib.suppress(OSError):
            request.settimeout(5)
            request.unwrap()
        super().shutdown_request(request)
os.chdir(sys.argv[1])
server = Server(("0.0.0.0", 8443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def secure(lab: Lab, web: None) -> Iterator[Path]:
    """The web server by HTTPS, with a repository for each program; the authority of its certificate."""
    site, authority = lab.tmp / "site", Authority(lab.tmp)
    certificate = authority.issue("web", hosts=(NAME,))
    subprocess.run(["git", "init", "-q", "--bare", site / "repository.git"], check=True)
    subprocess.run(["git", "-C", site / "repository.git", "update-server-info"], check=True)
    (site / "Packages").write_text("Package: tiny\nVersion: 1\nArchitecture: all\nFilename: ./tiny.deb\nSize: 1\n\n")
    index = site / "simple/tiny"
    index.mkdir(parents=True)
    with zipfile.ZipFile(index / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    (index / "index.html").write_text('<a href="tiny-1-py3-none-any.whl">tiny-1-py3-none-any.whl</a>')
    process = lab.popen("outside", [sys.executable, "-c", HTTPS, site, certificate])
    lab.wait_for(lambda: _listens(process, 8443), 20, "the web server")
    yield authority.file
    lab.stop(process)


def apt(lab: Lab) -> list[str]:
    """Options with which apt keeps to a directory of the test's own."""
    root = lab.tmp / "apt"
    for name in ("lists/partial", "cache/archives/partial", "etc", "state"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "sources.list").write_text(f"deb [trusted=yes] https://{NAME}:8443/ ./\n")
    (root / "status").touch()
    options = {
        "Dir::State": root / "state",
        "Dir::State::lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root / "cache",
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


@pytest.mark.parametrize("program", ["git", "pip", "apt"])
def test_programs(lab: Lab, gateway: Gateway, secure: Path, program: str) -> None:
    proxy = f"http://{ROUTER_IN4}:{ALL}"
    env = {"https_proxy": proxy, "HOME": str(lab.tmp)}
    seen = len(gateway.log_lines())
    match program:
        case "git":
            env["GIT_SSL_CAINFO"] = str(secure)
            lab.run("inside", ["git", "ls-remote", f"https://{NAME}:8443/repository.git"], env=env)
        case "pip":
            index = [
                "--index-url",
                f"https://{NAME}:8443/simple/",
                "--proxy",
                proxy,
                "--trusted-host",
                f"{NAME}:8443",
                "-q",
            ]
            argv = [
                sys.executable,
                "-m",
                "pip",
                "--isolated",
                "download",
                "--no-deps",
                *index,
                "-d",
                str(lab.tmp),
                "tiny",
            ]
            lab.run("inside", argv, env=env, timeout=60)
            assert (lab.tmp / "tiny-1-py3-none-any.whl").exists()
        case "apt":
            ours = ["-o", f"Acquire::https::Proxy={proxy}", "-o", f"Acquire::https::CaInfo={secure}"]
            lab.run("inside", ["apt-get", *apt(lab), *ours, "update"], env=env, timeout=60)
            assert any("_Packages" in path.name for path in (lab.tmp / "apt/lists").iterdir())
    gateway.wait_for_log(f"event=flow.end .*target={NAME}:8443", after=seen)


BROWSER = """
import sys
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    words = ["--no-sandbox", "--ignore-certificate-errors"]
    account = {"username": sys.argv[4], "password": sys.argv[5]} if len(sys.argv) > 4 else {}
    proxy = {"server": sys.argv[2], **account}
    browser = playwright.chromium.launch(executable_path=sys.argv[1], args=words, proxy=proxy)
    page = browser.new_page()
    page.goto(sys.argv[3], timeout=30000)
    print(page.content())
    browser.close()
"""


@pytest.mark.parametrize("port", [ALL, SAFE])
def test_chromium(lab: Lab, gateway: Gateway, secure: Path, port: int) -> None:
    """To anybody, and to who knows the password, for which it is asked (407)."""
    pytest.importorskip("playwright.sync_api")
    program = installed("chromium", "/usr/bin/chromium")
    account = ["ann", "secret word"] if port == SAFE else []
    words = [str(program), f"http://{ROUTER_IN4}:{port}", f"https://{NAME}:8443/", *account]
    done = lab.run("inside", [sys.executable, "-c", BROWSER, *words], timeout=60)
    assert "hello" in done.stdout


def test_a_line_of_spaces_from_one_client_delays_nobody(lab: Lab, gateway: Gateway) -> None:
    head = b"CONNECT a.test:80 HTTP/1.1\r\na:" + b" " * 15000 + b"\n\r\n\r\n"
    began = time.monotonic()
    with lab.connect("inside", ROUTER_IN4, SAFE, timeout=10) as hostile:  # which has no password
        hostile.sendall(head)
        assert receive(hostile, 13) == b"HTTP/1.1 400 "
    assert curl(lab, "--proxy", f"http://{ROUTER_IN4}:{ALL}", f"http://{SERVER4}:8080/").stdout == "hello\n"
    assert time.monotonic() - began < 5
