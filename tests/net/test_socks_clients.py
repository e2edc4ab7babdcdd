"""Programs that people use with a SOCKS server, as they are."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_OUT4, SERVER4, SERVER6, Lab
from tests.lab.peers import installed, unpacked
from tests.lab.servers import FtpServer
from tests.lab.sshd import sshd

PORT = 8024
SSH_PORT = 2222
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.dns({"files.example": [SERVER4], "six.example": [SERVER6]})
    users = lab.tmp / "users"
    gateway = Gateway(lab, lab.write_config(socks={"auth": ["password", "none"], "users": str(users)}))
    lab.run("router", [gateway.command, "passwd", users, "ann"], stdin="secret\n")
    gateway.start()
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def ftp(lab: Lab, gateway: Gateway) -> Iterator[FtpServer]:
    server = lab.vsftpd()
    server.put("pub/file", CONTENT)
    yield server
    server.stop()


@pytest.fixture
def hello(lab: Lab) -> Iterator[int]:
    """A server that greets, waits for a line and says it again; its port."""
    listener = lab.listen("outside", "::", PORT)
    listener.settimeout(0.1)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            with sock:
                sock.settimeout(5)
                sock.sendall(b"hello\n" + sock.makefile("rb").readline())

    thread = threading.Thread(target=serve)
    thread.start()
    yield PORT
    stop.set()
    thread.join()
    listener.close()


# --- dante-client's socksify -----------------------------------------------------------------------------------------


@pytest.fixture
def socksify(lab: Lab) -> tuple[list[str | Path], dict[str, str]]:
    conf = lab.tmp / "socks.conf"
    conf.write_text(
        f"""
resolveprotocol: fake
route {{
  from: 0.0.0.0/0 to: 0.0.0.0/0 via: {ROUTER_IN4} port = 1080
  proxyprotocol: socks_v5
  command: connect udpassociate bind
  protocol: tcp udp
  method: none
}}
"""
    )
    return [installed("dante-client", "/usr/bin/socksify")], {"SOCKS_CONF": str(conf)}


def test_socksify_active_ftp(
    lab: Lab, gateway: Gateway, ftp: FtpServer, socksify: tuple[list[str | Path], dict[str, str]]
) -> None:
    """Active mode by BIND, of a program that knows nothing of SOCKS."""
    command, env = socksify
    fetched = lab.tmp / "fetched"
    script = f"user anonymous guest\nbinary\nls pub\nget pub/file {fetched}\nbye\n"
    after = len(gateway.log_lines())
    done = lab.run("inside", [*command, "tnftp", "-n", "-v", "-A", SERVER4], 60, stdin=script, env=env, check=False)
    assert fetched.exists(), done.stdout + done.stderr
    assert fetched.read_bytes() == CONTENT
    gateway.wait_for_log("socks.bind", after=after)


QUERY = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
q = b"\\x12\\x34\\1\\0\\0\\1" + bytes(6) + b"\\5files\\7example\\0\\0\\1\\0\\1"
s.sendto(q, (sys.argv[1], 53)); data, sender = s.recvfrom(512)
print(sender, data[:2] == q[:2], socket.inet_ntoa(data[-4:]))
"""


def test_socksify_udp(lab: Lab, gateway: Gateway, socksify: tuple[list[str | Path], dict[str, str]]) -> None:
    """A question to a name server. (Not by dig: docs/outside-suites.md.)"""
    command, env = socksify
    after = len(gateway.log_lines())
    done = lab.run("inside", [*command, "/usr/bin/python3", "-c", QUERY, SERVER4], env=env)
    assert done.stdout == f"('{SERVER4}', 53) True {SERVER4}\n"
    gateway.wait_for_log("socks.udp", after=after)


# --- others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [SERVER4, "files.example"])
@pytest.mark.parametrize("version", ["4", "5"])
def test_netcat(lab: Lab, gateway: Gateway, hello: int, version: str, host: str) -> None:
    """As ssh's ProxyCommand calls it."""
    if version == "4" and host != SERVER4:
        pytest.skip("netcat has no 4a")
    argv = ["nc", "-X", version, "-x", f"{ROUTER_IN4}:1080", "-N", host, str(hello)]
    assert lab.run("inside", argv, stdin="again\n").stdout == "hello\nagain\n"


@pytest.mark.parametrize("host", [SERVER4, SERVER6, "files.example", "six.example"])
def test_ncat(lab: Lab, gateway: Gateway, hello: int, host: str) -> None:
    argv = [
        "ncat",
        "--proxy",
        f"{ROUTER_IN4}:1080",
        "--proxy-type",
        "socks5",
        "--proxy-dns",
        "remote",
        host,
        str(hello),
    ]
    assert lab.run("inside", argv, stdin="again\n").stdout == "hello\nagain\n"


@pytest.mark.parametrize("version", ["socks4", "socks5"])
def test_proxychains(lab: Lab, gateway: Gateway, ftp: FtpServer, version: str) -> None:
    conf = lab.tmp / "proxychains.conf"
    conf.write_text(f"strict_chain\nproxy_dns\n[ProxyList]\n{version} {ROUTER_IN4} 1080\n")
    fetched = lab.tmp / f"fetched-{version}"
    url = "ftp://anonymous:guest@files.example/pub/file"
    # What the program takes for the server's address is the proxy's: only the 227 names the server.
    passive = ["-sS", "--disable-epsv", "--no-ftp-skip-pasv-ip"]
    lab.run("inside", ["proxychains4", "-q", "-f", conf, "curl", *passive, "-o", fetched, url], 60)
    assert fetched.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["--socks4", "--socks4a", "--socks5", "--socks5-hostname"])
@pytest.mark.parametrize("host", [SERVER4, "files.example", f"[{SERVER6}]"])
def test_curl(lab: Lab, gateway: Gateway, ftp: FtpServer, kind: str, host: str) -> None:
    if (kind.startswith("--socks4") and "[" in host) or (kind in ("--socks4", "--socks5") and host == "files.example"):
        pytest.skip("not in that version, or the client has no name server")
    fetched = lab.tmp / "fetched-curl"
    url = f"ftp://anonymous:guest@{host}/pub/file"
    lab.run("inside", ["curl", "-sS", kind, f"{ROUTER_IN4}:1080", "-o", fetched, url], 60)
    assert fetched.read_bytes() == CONTENT


PYSOCKS = """
import socks, sys
for kind in (socks.SOCKS4, socks.SOCKS5):
    s = socks.socksocket(); s.set_proxy(kind, sys.argv[1], 1080, rdns=True)
    s.connect(("files.example", int(sys.argv[2])))
    s.sendall(b"again\\n"); print(s.makefile("rb").read().decode(), end=""); s.close()
u = socks.socksocket(type=socks.socket.SOCK_DGRAM); u.set_proxy(socks.SOCKS5, sys.argv[1], 1080); u.settimeout(5)
q = b"\\x12\\x34\\1\\0\\0\\1" + bytes(6) + b"\\5files\\7example\\0\\0\\1\\0\\1"
u.sendto(q, (sys.argv[3], 53)); data, sender = u.recvfrom(512)
print(sender[0], data[:2] == q[:2])
"""


def test_pysocks(lab: Lab, gateway: Gateway, hello: int) -> None:
    pytest.importorskip("socks")
    done = lab.run("inside", [sys.executable, "-c", PYSOCKS, ROUTER_IN4, str(hello), SERVER4])
    assert done.stdout == "hello\nagain\n" * 2 + f"{SERVER4} True\n"


# --- ssh through a ProxyCommand --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh(lab: Lab) -> Iterator[list[str | Path]]:
    """A command up to its ProxyCommand: ssh with a key that a server in `outside` lets in."""
    server, command = sshd(lab, SSH_PORT, (SERVER4, "files.example"))
    yield command
    lab.stop(server)


@pytest.mark.parametrize("host", [SERVER4, "files.example"])
@pytest.mark.parametrize(
    "proxy",
    [
        f"nc -X 5 -x {ROUTER_IN4}:1080 %h %p",
        f"ncat --proxy {ROUTER_IN4}:1080 --proxy-type socks5 --proxy-dns remote %h %p",
    ],
    ids=["nc", "ncat"],
)
def test_ssh(lab: Lab, gateway: Gateway, ssh: list[str | Path], proxy: str, host: str) -> None:
    """A command with 300,000 bytes to its input, whose end it has to see, and back."""
    data = CONTENT.hex()
    command = [*ssh, "-o", f"ProxyCommand={proxy}", f"root@{host}", "cat; echo $SSH_CONNECTION"]
    done = lab.run("inside", command, 60, stdin=data)
    assert done.stdout[: len(data)] == data
    # From the router, to the server.
    words = done.stdout[len(data) :].split()
    assert (words[0], *words[2:]) == (ROUTER_OUT4, SERVER4, str(SSH_PORT))


# --- python-socks ----------------------------------------------------------------------------------------------------

PYTHON_SOCKS = """
import sys
from python_socks import ProxyError
from python_socks.sync import Proxy
url, rdns, host, port = sys.argv[1:]
try:
    s = Proxy.from_url(url, rdns=rdns == "yes").connect(host, int(port), timeout=5)
except ProxyError as error:
    sys.exit(f"ProxyError: {error}")
s.sendall(b"again\\n"); print(s.makefile("rb").read().decode(), end="")
"""


def python_socks(lab: Lab, url: str, host: str, port: int, rdns: bool) -> str:
    pytest.importorskip("python_socks")
    argv = [sys.executable, "-c", PYTHON_SOCKS, url, "yes" if rdns else "no", host, str(port)]
    done = lab.run("inside", argv, check=False)
    return done.stdout or done.stderr


@pytest.mark.parametrize(
    ("scheme", "host", "rdns"),
    [
        ("socks4", SERVER4, False),
        ("socks4", "files.example", True),  # 4a
        ("socks5", SERVER4, False),
        ("socks5", SERVER6, False),
        ("socks5", "files.example", True),
        ("socks5", "six.example", True),
    ],
)
@pytest.mark.parametrize("user", ["", "ann:secret@"])
def test_python_socks(lab: Lab, gateway: Gateway, hello: int, scheme: str, user: str, host: str, rdns: bool) -> None:
    """SOCKS 4 has a user id only, which nobody asks for here."""
    user = "ann@" if user and scheme == "socks4" else user
    assert python_socks(lab, f"{scheme}://{user}{ROUTER_IN4}:1080", host, hello, rdns) == "hello\nagain\n"


def test_python_socks_with_a_wrong_password(lab: Lab, gateway: Gateway, hello: int) -> None:
    said = python_socks(lab, f"socks5://ann:wrong@{ROUTER_IN4}:1080", SERVER4, hello, False)
    assert said.startswith("ProxyError: ")
    assert "uthentication" in said


# --- Tor's extensions ------------------------------------------------------------------------------------------------


def ask(lab: Lab, wire: bytes) -> bytes:
    with lab.connect("inside", ROUTER_IN4, 1080) as sock:
        sock.sendall(wire)
        answer = b""
        while data := sock.recv(512):
            answer += data
        return answer


def test_resolve(lab: Lab, gateway: Gateway) -> None:
    name = b"files.example"
    assert ask(lab, b"\5\1\0\5\xf0\0\3" + bytes([len(name)]) + name + b"\0\0")[2:] == (
        b"\5\0\0\1" + socket.inet_aton(SERVER4) + b"\0\0"
    )
    assert ask(lab, b"\4\xf0\0\0\0\0\0\1\0" + name + b"\0") == b"\0\x5a\0\0" + socket.inet_aton(SERVER4)
    assert ask(lab, b"\5\1\0\5\xf0\0\3\x07nowhere\0\0")[3:4] == b"\4"


def test_resolve_ptr(lab: Lab, gateway: Gateway) -> None:
    answer = ask(lab, b"\5\1\0\5\xf1\0\1" + socket.inet_aton(SERVER4) + b"\0\0")
    assert answer[2:] == b"\5\0\0\3\x0dfiles.example\0\0"
    assert ask(lab, b"\5\1\0\5\xf1\0\1" + socket.inet_aton("127.0.0.1") + b"\0\0")[3:4] == b"\2"


@pytest.mark.parametrize("version", ["-4", "-5"])
def test_tor_resolve(lab: Lab, gateway: Gateway, version: str) -> None:
    program = unpacked("tor", "usr/bin/tor-resolve")
    assert lab.run("inside", [program, version, "files.example", f"{ROUTER_IN4}:1080"]).stdout == f"{SERVER4}\n"
    assert lab.run("inside", [program, version, "nowhere", f"{ROUTER_IN4}:1080"], check=False).returncode


def test_tor_resolve_ptr(lab: Lab, gateway: Gateway) -> None:
    program = unpacked("tor", "usr/bin/tor-resolve")
    assert lab.run("inside", [program, "-x", SERVER4, f"{ROUTER_IN4}:1080"]).stdout == "files.example\n"
