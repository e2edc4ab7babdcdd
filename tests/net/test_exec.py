"""`algate exec`: programs of all kinds, whose whole network is the proxy; a sniffer sees nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, SERVER4, SERVER6, STRANGER4, Lab
from tests.lab.servers import FtpServer, _listens
from tests.lab.sshd import sshd
from tests.net.exec_rig import (
    ALGATE,
    ECHO,
    ENGINES,
    NAME,
    OURS,
    echo_server,
    gateway_before_servers,
    run,
    sniffer,
    static_program,
)
from tests.net.ftp_clients import ALL_CLIENTS as CLIENTS
from tests.net.ftp_clients import Job
from tests.net.proxies import danted

SSH_D = 1085


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    yield from gateway_before_servers(lab)


@pytest.fixture(scope="module")
def echo(lab: Lab) -> Iterator[None]:
    yield from echo_server(lab)


@pytest.fixture(scope="module")
def static(lab: Lab) -> Path:
    return static_program(lab)


@pytest.mark.parametrize("engine", ENGINES)
def test_names_that_stand_for_addresses(lab: Lab, gateway: Gateway, engine: str) -> None:
    """The proxy is told the name, as one without RESOLVE has to be. Such addresses never leave."""
    with sniffer(lab) as beside:
        words = ["curl", "-sS", "-w", "%{remote_ip}", f"http://{NAME}:8080/"]
        done = run(lab, *words, options=("--dns", "fake"), engine=engine)
    assert done.stdout.startswith("hello\n198.18.")
    assert not beside


UDP = """
import os, socket, sys
server = (sys.argv[1], int(sys.argv[2]))
family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
socks = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
for size in (1, 1400, 9000):
    for number, sock in enumerate(socks):
        sock.settimeout(10)
        data = bytes([number]) + os.urandom(size)
        sock.sendto(data, server)
        got, source = sock.recvfrom(65536)
        assert (got, source[:2]) == (data, server)
socks[0].connect(server)
socks[0].send(b"connected")
assert socks[0].recv(100) == b"connected"
socks[1].sendto(b"other", server)
socks[1].settimeout(0.5)
try:
    print("came:", socks[1].recvfrom(100))
except TimeoutError:
    print("done")
"""


@pytest.mark.parametrize("host", [SERVER4, SERVER6])
def test_datagrams(lab: Lab, gateway: Gateway, echo: None, host: str) -> None:
    """Two sockets and one server, small and large; an answer from another port is dropped; the association ends."""
    with sniffer(lab) as beside:
        assert run(lab, sys.executable, "-c", UDP, host, str(ECHO)).stdout == "done\n"
    assert beside <= {(ROUTER_IN4, 17)}, "only the relay's own datagrams"
    lab.wait_for(lambda: not [row for row in gateway.admin("flows") if row["class"] == "association"], 10, "their end")


CLOSED = """
import socket, sys, time
def ask():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
        assert sock.recv(10) == b"x"
for _ in range(30):
    ask()
print("asked", flush=True)
sys.stdin.read()
"""


def test_an_association_ends_with_its_socket(lab: Lab, gateway: Gateway, echo: None) -> None:
    argv = [ALGATE, "exec", "--via", OURS, "--", sys.executable, "-c", CLOSED, SERVER4, str(ECHO)]
    command = ["ip", "netns", "exec", lab.ns("inside"), *map(str, argv)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asked\n"
        lab.wait_for(lambda: gateway.admin("flows") == [], 15, "the associations to end while the program runs")
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("command", "code"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("true", 0)]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_exit_codes(lab: Lab, gateway: Gateway, command: str, code: int, engine: str) -> None:
    assert run(lab, "sh", "-c", command, check=False, engine=engine).returncode == code


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_that_is_not_there(lab: Lab, gateway: Gateway, engine: str) -> None:
    done = run(lab, "no-such-program", check=False, engine=engine)
    assert done.returncode == 127
    assert "no-such-program: No such file" in done.stderr


def test_who_one_is(lab: Lab, gateway: Gateway) -> None:
    assert run(lab, "id", "-u", user=True).stdout == "65534\n"
    done = run(lab, "nft", "list", "ruleset", check=False)
    assert done.returncode, "the program has no right over its namespace"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"http://{SERVER4}:8099/", "reset|Recv failure|Empty|Connection refused"),
        ("http://missing.example/", "Could not resolve host"),
        ("http://127.0.0.1:8080/", "Failed to connect|refused"),
    ],
)
def test_what_fails_fails_soon(lab: Lab, gateway: Gateway, url: str, says: str) -> None:
    began = time.monotonic()
    done = run(lab, "curl", "-sS", url, check=False)
    assert done.returncode
    assert any(word in done.stderr for word in says.split("|")), done.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gateway_that_is_not_there(lab: Lab, gateway: Gateway, engine: str) -> None:
    words = ["curl", "-sS", "-m", "20", f"http://{SERVER4}:8080/"]
    with sniffer(lab) as beside:
        done = run(lab, *words, via=f"socks5://{ROUTER_IN4}:9", check=False, engine=engine)
    assert done.returncode
    assert not beside


@pytest.mark.parametrize("engine", ENGINES)
def test_a_direct_network(lab: Lab, gateway: Gateway, engine: str) -> None:
    words = ["curl", "-sS", f"http://{SERVER4}:8080/"]
    options = ("--direct", f"{SERVER4}/32", "--trace")
    done = run(lab, *words, via=f"socks5://{ROUTER_IN4}:9", options=options, engine=engine)
    assert done.stdout == "hello\n"
    assert (f"{SERVER4} port 8080: connected" in done.stderr) == (engine == "namespace")


@pytest.mark.parametrize("engine", ENGINES)
def test_many_bytes(lab: Lab, gateway: Gateway, engine: str) -> None:
    done = run(lab, "sh", "-c", f"curl -sS http://{SERVER4}:8080/big | sha256sum", engine=engine)
    expected = subprocess.run(["sha256sum", lab.tmp / "site/big"], capture_output=True, text=True, check=True).stdout
    assert done.stdout.split()[0] == expected.split()[0]


@pytest.mark.parametrize("victim", ["parent", "program"])
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left(lab: Lab, gateway: Gateway, victim: str, engine: str) -> None:
    """Whoever is killed: no process stays, and with it no namespace and no mount."""
    argv = [ALGATE, "exec", "--engine", engine, "--via", OURS, "--", "sh", "-c", "echo $$; exec sleep 1000"]
    process = subprocess.Popen(["ip", "netns", "exec", lab.ns("inside"), *map(str, argv)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    program = int(process.stdout.readline())
    os.kill(process.pid if victim == "parent" else program, signal.SIGKILL)
    process.wait(20)
    lab.wait_for(lambda: not _alive(program), 10, "the program to end")
    process.stdout.close()
    children = Path(f"/proc/{process.pid}")
    assert not children.exists()


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("engine", ENGINES)
def test_two_hundred_children_at_once(lab: Lab, gateway: Gateway, static: Path, engine: str) -> None:
    command = f"for n in $(seq 200); do {static} {SERVER4} & done | grep -c ^hello"
    assert run(lab, "sh", "-c", f"({command}; wait)", engine=engine).stdout == "200\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_job_control(lab: Lab, gateway: Gateway, engine: str) -> None:
    """A shell stops it by ^Z, lets it go on, and ends it by ^C."""
    argv = ["ip", "netns", "exec", lab.ns("inside"), "bash", "--norc", "-i"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(argv[0], argv)
    said = b""

    def hear(text: bytes) -> None:
        nonlocal said
        until = time.monotonic() + 30
        while text not in said:
            assert time.monotonic() < until, said
            if select.select([terminal], [], [], 0.2)[0]:
                said += os.read(terminal, 4096)
        said = said.partition(text)[2]

    try:
        os.write(terminal, b"PS1=ready'> '\n")
        hear(b"ready> ")
        program = "echo be''gun; while sleep 0.1; do echo ti''ck; done"
        os.write(terminal, f"{ALGATE} exec -q --engine {engine} --via {OURS} -- sh -c '{program}'\n".encode())
        hear(b"begun")
        os.write(terminal, b"\x1a")
        hear(b"Stopped")
        hear(b"ready> ")
        os.write(terminal, b"fg\n")
        hear(b"tick")  # it has the terminal again
        os.write(terminal, b"\x03")
        hear(b"ready> ")
        os.write(terminal, b"echo code $?\nexit\n")
        hear(b"code 130")
    finally:
        os.close(terminal)  # who is still there is hung up
        os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def ftp(lab: Lab) -> Iterator[FtpServer]:
    """A server that connects to nobody but the proxy."""
    server = lab.vsftpd()
    yield server
    server.stop()


CURL = {
    "eprt": "curl -sS -m 30 --ftp-port - -o {fetched} {url} && curl -sS -m 30 --ftp-port - -T {fetched} {upload}",
    "port": "curl -sS -m 30 --ftp-port - --disable-eprt -o {fetched} {url}"
    " && curl -sS -m 30 --ftp-port - --disable-eprt -T {fetched} {upload}",
    "passive": "curl -sS -m 30 -o {fetched} {url} && curl -sS -m 30 -T {fetched} {upload}",
}


@pytest.mark.parametrize(
    ("client", "dns", "engine"),
    [
        *((client, "resolve", "namespace") for client in CURL),
        ("port", "fake", "namespace"),
        ("passive", "resolve", "seccomp"),
    ],
)
def test_ftp_inside(lab: Lab, gateway: Gateway, ftp: FtpServer, client: str, dns: str, engine: str) -> None:
    """In active mode the server connects to the proxy, which is told to the program's server in place of its port."""
    data = os.urandom(300_000)
    ftp.put("pub/file", data)
    fetched = lab.tmp / "fetched"
    fetched.unlink(missing_ok=True)
    stored = ftp.root / f"upload/{client}-{dns}-{engine}"
    words = {
        "fetched": fetched,
        "url": ftp.url("pub/file", host=NAME),
        "upload": ftp.url(f"upload/{stored.name}", host=NAME),
    }
    with sniffer(lab) as beside:
        done = run(lab, "sh", "-c", CURL[client].format(**words), options=("--dns", dns), engine=engine)
    assert fetched.read_bytes() == data, done.stderr
    assert stored.read_bytes() == data, done.stderr
    assert not beside


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("active", [True, False], ids=["active", "passive"])
@pytest.mark.parametrize("client", ["tnftp", "lftp", "ftplib"])
def test_classic_ftp_clients_inside(
    lab: Lab, gateway: Gateway, ftp: FtpServer, client: str, active: bool, version: int, engine: str, tmp_path: Path
) -> None:
    """List, get and put. By notification nobody reads what a program says of its port, and no server could reach it."""
    if engine == "seccomp" and active:
        pytest.skip("in active mode the namespace is needed, as the page says")
    data = os.urandom(700_000)
    ftp.put("pub/file", data)
    (tmp_path / "local").write_bytes(data[::-1])
    stored = f"upload/{client}-{active}-{version}-{engine}"
    prefix = (ALGATE, "exec", "-q", "--engine", engine, "--via", OURS, "--")
    job = Job(lab, ftp, version, active, prefix=prefix)
    seen = len(ftp.log.read_text().splitlines())
    with sniffer(lab) as beside:
        listing = CLIENTS[client](job, "pub/file", tmp_path / "fetched", tmp_path / "local", stored)
    said = ftp.log.read_text().splitlines()[seen:]
    assert "file" in listing
    assert (tmp_path / "fetched").read_bytes() == data
    assert (ftp.root / stored).read_bytes() == data[::-1]
    commands = {word for line in said for word in ("PORT", "EPRT", "PASV", "EPSV") if f'"{word}' in line}
    assert commands & ({"PORT", "EPRT"} if active else {"PASV", "EPSV"}), said
    assert not commands & ({"PASV", "EPSV"} if active else {"PORT", "EPRT"}), said
    assert not beside


# What lftp does: the second connection comes from the address of the first one.
SOCKETS = """
import ctypes, socket, struct, sys
host = sys.argv[1]
family, size = (socket.AF_INET6, 28) if ":" in host else (socket.AF_INET, 16)
def hello(sock):
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    with sock.makefile("rb") as answer:
        assert answer.read().endswith(b"hello\\n")
for only in (False, True):
    with socket.socket(family) as first, socket.socket(family) as second:
        if only and family == socket.AF_INET6:
            first.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        first.connect((host, 8080))
        own, peer = first.getsockname(), first.getpeername()
        assert len(own) == len(peer) == (4 if family == socket.AF_INET6 else 2), (own, peer)
        assert peer[:2] == (host, 8080), peer
        assert own[1] > 0
        hello(first)
        second.bind((own[0], 0, *own[2:]))
        second.connect(peer)
        hello(second)
# Of an address that is passed on in a struct sockaddr_storage, the kernel tells what belongs to it.
libc = ctypes.CDLL(None, use_errno=True)
with socket.socket(family) as third:
    address = struct.pack("=H", family) + struct.pack("!H", 8080)
    address += bytes(4 if family == socket.AF_INET6 else 0) + socket.inet_pton(family, host)
    assert libc.connect(third.fileno(), address.ljust(128, b"\\0"), 128) == 0, ctypes.get_errno()
    said, length = ctypes.create_string_buffer(128), ctypes.c_int(128)
    assert libc.getpeername(third.fileno(), said, ctypes.byref(length)) == 0
    assert (said.raw[:length.value], length.value) == (address.ljust(size, b"\\0"), size)
    hello(third)
print("all")
"""


@pytest.mark.parametrize("host", [SERVER4, SERVER6])
@pytest.mark.parametrize("proxys", [ROUTER_IN4, f"[{ROUTER_IN6}]"], ids=["proxy4", "proxy6"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_addresses_of_a_socket_are_of_its_family(
    lab: Lab, gateway: Gateway, engine: str, proxys: str, host: str
) -> None:
    """Also where the proxy's is another one."""
    done = run(lab, sys.executable, "-c", SOCKETS, host, engine=engine, via=f"socks5://{proxys}:1080")
    assert done.stdout == "all\n", done.stderr


def test_active_ftp_inside_through_dante(lab: Lab, gateway: Gateway, ftp: FtpServer) -> None:
    """The last proxy of the chain waits for the server."""
    danted(lab, "stranger", STRANGER4)
    ftp.put("pub/file", b"through both\n")
    options = ("--via", f"socks5://{STRANGER4}:1080", "--dns", "fake")
    words = ["curl", "-sS", "-m", "30", "--ftp-port", "-", ftp.url("pub/file")]
    assert run(lab, *words, options=options, engine="namespace").stdout == "through both\n"


@pytest.fixture(scope="module")
def ssh_proxy(lab: Lab, gateway: Gateway) -> Iterator[str]:
    """The SOCKS server of `ssh -D`, at the router, from which ssh reaches its own server."""
    etc = Path("/etc/netns", lab.ns("outside"))
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "resolv.conf").write_text(f"nameserver {SERVER4}\n")  # ssh's server looks names up
    server, ssh = sshd(lab, 2222, (SERVER4,))
    client = lab.popen("router", [*ssh, "-N", "-D", f"{ROUTER_IN4}:{SSH_D}", f"root@{SERVER4}"])
    lab.wait_for(lambda: _listens(client, SSH_D), 20, "ssh to listen")
    yield f"socks5://{ROUTER_IN4}:{SSH_D}"
    lab.stop(client)
    lab.stop(server)


@pytest.mark.parametrize("host", [SERVER4, NAME])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_proxy_of_ssh(lab: Lab, gateway: Gateway, ssh_proxy: str, engine: str, host: str) -> None:
    """It has CONNECT, and closes the connection of whoever asks for anything else."""
    done = run(lab, "curl", "-sS", "-m", "20", f"http://{host}:8080/", via=ssh_proxy, engine=engine)
    assert done.stdout == "hello\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_that_is_published(lab: Lab, gateway: Gateway, engine: str) -> None:
    """One connection after the other, each at the port that is said, and only from the host that may come."""
    program = [sys.executable, "-m", "http.server", "--directory", str(lab.tmp / "site"), "--bind", "127.0.0.1", "8099"]
    argv = [str(ALGATE), "exec", "--engine", engine, "--via", OURS, "--publish", f"{SERVER4}:8099", "--", *program]
    command = ["ip", "netns", "exec", lab.ns("inside"), *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        served = 0
        for line in process.stderr:
            if line.startswith("algate exec: port 8099 is at "):
                host, _, port = line.split()[-1].rpartition(":")
                answer = fetch(lab, host, int(port))
                # The program may be about to listen at first: then the connection has ended, and there is a next one.
                assert answer.endswith(b"hello\n") or not served
                served += answer.endswith(b"hello\n")
                if served == 2:
                    break
        process.terminate()
        process.wait(20)
    assert served == 2


def fetch(lab: Lab, host: str, port: int) -> bytes:
    data = b""
    with contextlib.suppress(OSError), lab.connect("outside", host, port) as sock:
        sock.settimeout(10)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while part := sock.recv(65536):
            data += part
    return data


CONNECTED = """
import os, socket, sys
server = (sys.argv[1], int(sys.argv[2]))
family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
socks = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
for sock in socks:
    sock.settimeout(10)
    sock.connect(server)
for size in (1, 1400, 9000):
    for number, sock in enumerate(socks):
        data = bytes([number]) + os.urandom(size)
        sock.send(data)
        assert sock.recv(65536) == data
for send in (lambda: socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", server),
             lambda: socket.socket(family, socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, server)):
    try:
        send()
    except OSError as error:
        print(error.errno)
with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
    one.bind(("127.0.0.1", 0))
    other.sendto(b"here", one.getsockname())
    print(one.recv(10))
"""


@pytest.mark.parametrize("host", [SERVER4, SERVER6])
def test_datagrams_of_connected_sockets(lab: Lab, gateway: Gateway, echo: None, host: str) -> None:
    """What the other engine can do; what it cannot is refused, and nothing of it leaves."""
    with sniffer(lab) as beside:
        done = run(lab, sys.executable, "-c", CONNECTED, host, str(ECHO), engine="seccomp")
    assert done.stdout == f"{errno.ENETUNREACH}\n{errno.ENETUNREACH}\nb'here'\n"
    assert done.stderr.count("not connected are refused") == 1
    assert beside <= {(ROUTER_IN4, 17)}, "only the relay's own datagrams"
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the associations to end")


ERRNO = """
import errno, socket, sys
for host, port in [(sys.argv[1], 8099), ("203.0.113.250", 80)]:
    for blocking in (True, False):
        sock = socket.socket()
        sock.setblocking(blocking)
        code = sock.connect_ex((host, port))
        print(errno.errorcode.get(code, code), sock.getblocking() == blocking)
"""


def test_the_error_is_that_of_the_connection(lab: Lab, gateway: Gateway) -> None:
    done = run(lab, sys.executable, "-c", ERRNO, SERVER4, engine="seccomp")
    assert done.stdout == "ECONNREFUSED True\n" * 2 + "EHOSTUNREACH True\n" * 2


@pytest.mark.parametrize("value", ["--strict", "--dns=off"])
def test_less_than_all_is_refused_where_all_is_wanted(lab: Lab, gateway: Gateway, value: str) -> None:
    done = run(lab, "true", options=(value,), engine="seccomp", check=False)
    assert done.returncode == 2


def test_no_names_where_they_are_off(lab: Lab, gateway: Gateway) -> None:
    """Neither over UDP nor over TCP; addresses are reached, and nothing is said on standard error."""
    script = f"getent hosts {NAME} || echo none; dig +tcp +short {NAME}; curl -sS http://{SERVER4}:8080/"
    done = run(lab, "sh", "-c", script, options=("-q", "--dns", "off"), engine="namespace")
    assert (done.stdout, done.stderr) == ("none\nhello\n", "")


def test_the_other_engine_where_there_are_no_namespaces(lab: Lab, gateway: Gateway) -> None:
    """A user namespace that may have none of its own stands for such a system."""
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    words: list[str | Path] = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        limit,
        "sh",
        ALGATE,
        "exec",
        "--via",
        OURS,
        "--",
    ]
    done = lab.run("inside", [*words, "curl", "-sS", f"http://{NAME}:8080/"], timeout=60)
    assert done.stdout == "hello\n"
    assert "no namespace" in done.stderr
    assert "by seccomp" in done.stderr


def test_without_nft_it_says_what_to_do() -> None:
    """A PATH without nft stands for a system that has it not."""
    argv = [ALGATE, "exec", "--engine", "namespace", "--via", OURS, "--", "true"]
    code = (
        "import sys; from gateway.client.engine import namespace, program\n"
        "namespace.find_nft = lambda: None\n"
        "sys.exit(program.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv[2:])], capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.returncode == 2
    assert "nft is not installed" in done.stderr
    assert "user.max_user_namespaces" in done.stderr
