"""`algate exec` where something is wrong: what the program sees, and when it is not started at all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client.sockets import reset
from gateway.policy.users import HASHER
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_OUT4, SERVER4, SERVER6, Lab
from tests.lab.servers import _listens
from tests.net.exec_rig import ALGATE, ECHO, ENGINES, NAME, OURS, echo_server, gateway_before_servers, run, sniffer

SECURED = 1081
OWN = "1017.25"  # seconds: a word by which processes of one test are found


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    yield from gateway_before_servers(lab)


@pytest.fixture(scope="module")
def echo(lab: Lab) -> Iterator[None]:
    yield from echo_server(lab)


@pytest.fixture(scope="module")
def secured(lab: Lab, gateway: Gateway) -> Iterator[Gateway]:
    """Another one, which wants to know who comes."""
    users = lab.tmp / "users"
    users.write_text(f"ann:{HASHER.hash('secret')}\n")
    socks = {"listen": [f"{ROUTER_IN4}:{SECURED}"], "auth": ["password"], "users": str(users)}
    pinhole = {"ports": "50000-50999"}
    config = lab.write_config(socks=socks, pinhole=pinhole, process={"workers": 1})
    secured = lab.start_gateway(config, 90, rules=False)
    yield secured
    assert secured.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def silent(lab: Lab) -> Iterator[dict[str, int]]:
    """What is no proxy, or none that ends: ports by what they do."""
    stop = threading.Event()
    listeners = {name: lab.listen("router", ROUTER_IN4) for name in ("dribbles", "junk", "closes", "says nothing")}

    def serve(name: str, listener: socket.socket) -> None:
        kept = []
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                break
            kept.append(sock)
            threading.Thread(target=talk, args=(name, sock), daemon=True).start()
        for sock in kept:
            sock.close()

    def talk(name: str, sock: socket.socket) -> None:
        try:
            if name == "junk":
                sock.sendall(os.urandom(4096))
            elif name == "closes":
                sock.close()
            elif name == "dribbles":
                for byte in b"\5\0\5\0\0\3\xff" + bytes(255):
                    sock.sendall(bytes([byte]))
                    if stop.wait(0.2):
                        return
        except OSError:
            pass

    threads = [threading.Thread(target=serve, args=item) for item in listeners.items()]
    for listener in listeners.values():
        listener.settimeout(None)
    for thread in threads:
        thread.start()
    yield {name: listener.getsockname()[1] for name, listener in listeners.items()}
    stop.set()
    for listener in listeners.values():
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for listener in listeners.values():
        listener.close()


# What a connection and a first byte say, for a socket that blocks and for one that does not; and how long that takes.
CONNECT = """
import errno, select, socket, sys, time
def code(number):
    return errno.errorcode.get(number, str(number))
def attempt(host, port, blocking):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(30)
    sock.setblocking(blocking)
    number = sock.connect_ex((host, port))
    if number == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(30000)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number == 0:  # the other engine tells it later
        sock.setblocking(True)
        try:
            return "EOF" if sock.recv(1) == b"" else "data"
        except OSError as error:
            return "then " + code(error.errno)
    return code(number)
for words in sys.argv[1:]:
    host, port = words.rsplit("/", 1)
    for blocking in (True, False):
        began = time.monotonic()
        try:
            host = socket.gethostbyname(host) if ":" not in host else host
            result = attempt(host, int(port), blocking)
        except socket.gaierror as error:
            result = "gai " + str(error.errno)
        print(words, result, "soon" if time.monotonic() - began < 8 else "late")
"""
WRONG = f"socks5://ann:wrong@{ROUTER_IN4}:{SECURED}"
DOWN = f"socks5://{ROUTER_IN4}:9"
CASES = [
    ("the server refuses", OURS, f"{SERVER4}/8099", "ECONNREFUSED"),
    ("the server refuses, IPv6", OURS, f"{SERVER6}/8099", "ECONNREFUSED"),
    ("no way to the server", OURS, "203.0.113.250/80", "EHOSTUNREACH"),
    ("a rule denies", OURS, f"{ROUTER_OUT4}/80", "EACCES"),
    ("a wrong password", WRONG, f"{SERVER4}/8080", "EACCES"),
    ("the gateway is down", DOWN, f"{SERVER4}/8080", "ECONNABORTED"),
]


@pytest.mark.parametrize(("via", "where", "errno"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_program_sees(
    lab: Lab, gateway: Gateway, secured: Gateway, via: str, where: str, errno: str, engine: str
) -> None:
    """The very error of a connection without a proxy by notification; a reset connection in the namespace. Soon, and
    nothing goes past the proxy."""
    with sniffer(lab) as beside:
        done = run(lab, sys.executable, "-c", CONNECT, where, via=via, engine=engine)
    expected = {errno} if engine == "seccomp" else {"then ECONNRESET", "ECONNRESET"}
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for _, said in lines:
        result, _, speed = said.rpartition(" ")
        assert result in expected, done.stdout + done.stderr
        assert speed == "soon"
    assert not beside


@pytest.mark.parametrize("dns", ["resolve", "fake"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_name_that_is_not_there(lab: Lab, gateway: Gateway, engine: str, dns: str) -> None:
    """EAI_NONAME where the proxy is asked; the connection fails where an address stands for the name."""
    words = [sys.executable, "-c", CONNECT, "missing.example/80"]
    done = run(lab, *words, options=("--dns", dns), engine=engine)
    failed = {"EHOSTUNREACH"} if engine == "seccomp" else {"then ECONNRESET", "ECONNRESET"}
    expected = {f"gai {socket.EAI_NONAME}"} if dns == "resolve" else failed
    for line in done.stdout.splitlines():
        result, _, speed = line.removeprefix("missing.example/80 ").rpartition(" ")
        assert result in expected, done.stdout
        assert speed == "soon"


@pytest.mark.parametrize("what", ["dribbles", "junk", "closes", "says nothing"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_proxy_that_is_none(lab: Lab, gateway: Gateway, silent: dict[str, int], what: str, engine: str) -> None:
    """It has the time of --timeout and no more, however it goes about it; the socket does not lead to it afterwards."""
    via = f"socks5://{ROUTER_IN4}:{silent[what]}"
    options = ("--timeout", "2", "--dns", "fake")
    done = run(lab, sys.executable, "-c", CONNECT, f"{SERVER4}/8080", via=via, options=options, engine=engine)
    late = what in ("dribbles", "says nothing")
    expected = {"ETIMEDOUT" if late else "ECONNABORTED"} if engine == "seccomp" else {"then ECONNRESET", "ECONNRESET"}
    for line in done.stdout.splitlines():
        assert line.split(" ", 1)[1].rpartition(" ")[0] in expected, done.stdout + done.stderr
        assert line.endswith("soon")


BROKEN = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as sock:
    size = 0
    try:
        while part := sock.recv(65536):
            size += len(part)
        print(size, "and the end")
    except ConnectionResetError:
        print(size, "and a reset")
"""


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_connection_that_breaks_is_not_one_that_ends(lab: Lab, gateway: Gateway, engine: str, size: int) -> None:
    """What the server had sent comes, and then an error: a program would take the half of a file for the whole."""
    listener = lab.listen("outside", SERVER4)

    def serve() -> None:
        sock, _ = listener.accept()
        sock.settimeout(None)
        sock.sendall(bytes(size))
        reset(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    port = str(listener.getsockname()[1])
    done = run(lab, sys.executable, "-c", BROKEN, SERVER4, port, engine=engine)
    thread.join()
    listener.close()
    assert done.stdout == f"{size} and a reset\n"


# --- what this system does not allow


def without_namespaces(*words: str | Path) -> list[str | Path]:
    """A command in a user namespace that may have none of its own: it stands for a system that forbids them."""
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh", *words]


def without_nft(lab: Lab, *words: str | Path) -> list[str | Path]:
    """A command in a mount namespace in which nobody finds nft: it stands for a container."""
    found = shutil.which("nft", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert found is not None
    hide = f'mount --bind /dev/null "$(readlink -f {found})" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", hide, "sh", *words]


@pytest.mark.parametrize("where", ["no namespaces", "no nft"])
def test_the_other_engine_where_there_is_no_namespace(lab: Lab, gateway: Gateway, where: str) -> None:
    words: list[str | Path] = [ALGATE, "exec", "--via", OURS, "--", "curl", "-sS", f"http://{NAME}:8080/"]
    command = without_namespaces(*words) if where == "no namespaces" else without_nft(lab, *words)
    with sniffer(lab) as beside:
        done = lab.run("inside", command, timeout=60)
    assert done.stdout == "hello\n"
    assert "no namespace (" in done.stderr
    assert "by seccomp. Not covered:" in done.stderr
    assert not beside


@pytest.mark.parametrize("option", ["--strict", "--engine=namespace"])
def test_less_is_not_taken_where_all_is_wanted(lab: Lab, gateway: Gateway, option: str) -> None:
    words: list[str | Path] = [ALGATE, "exec", option, "--via", OURS, "--", "echo", "started"]
    done = lab.run("inside", without_namespaces(*words), timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "user.max_user_namespaces" in done.stderr


def test_neither_engine_is_said_and_nothing_started(lab: Lab, gateway: Gateway) -> None:
    """One run by notification inside another one cannot notify again; with no namespaces there nothing is left."""
    inner: list[str | Path] = [ALGATE, "exec", "--via", OURS, "--", "echo", "started"]
    words = [ALGATE, "exec", "-q", "--engine", "seccomp", "--via", OURS, "--", *inner]
    done = lab.run("inside", without_namespaces(*words), timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "user.max_user_namespaces" in done.stderr
    assert "no supervision" in done.stderr


@pytest.mark.parametrize("inner", ENGINES)
def test_one_in_another_ones_namespace(lab: Lab, gateway: Gateway, inner: str) -> None:
    """The inner one reaches its proxy through the outer one's, so they are a chain."""
    proxy = lab.popen("outside", [sys.executable, "-c", SMALL_PROXY, SERVER4, "1085"])
    lab.wait_for(lambda: _listens(proxy, 1085), 20, "the second proxy")
    command = [str(ALGATE), "exec", "-q", "--engine", inner, "--via", f"socks5://{SERVER4}:1085", "--"]
    with sniffer(lab) as beside:
        done = run(lab, *command, "curl", "-sS", "-m", "30", f"http://{SERVER4}:8080/", engine="namespace")
    lab.stop(proxy)
    assert done.stdout == "hello\n", done.stderr
    assert not beside


SMALL_PROXY = """
import socket, sys, threading
def carry(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def serve(sock):
    sock.recv(3)
    sock.sendall(b"\\5\\0")
    head = sock.recv(4)
    host = socket.inet_ntoa(sock.recv(4)) if head[3] == 1 else sock.recv(sock.recv(1)[0]).decode()
    server = socket.create_connection((host, int.from_bytes(sock.recv(2), "big")))
    sock.sendall(b"\\5\\0\\0\\1" + bytes(6))
    threading.Thread(target=carry, args=(server, sock)).start()
    carry(sock, server)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
"""


def test_root_is_root_of_nothing_inside(lab: Lab, gateway: Gateway) -> None:
    """Rights over the host's and the program's own network are gone: no interface, no rule, no other namespace."""
    script = "id -u; ip link add dummy0 type dummy; nft list ruleset; nsenter --net=/proc/1/ns/net true; echo end"
    done = run(lab, "sh", "-c", script, engine="namespace")
    assert done.stdout == "0\nend\n"
    assert done.stderr.lower().count("not permitted") >= 3, done.stderr


def test_roots_program_may_become_another_user(lab: Lab, gateway: Gateway) -> None:
    """As apt does before it fetches, and a shell by su: with that user's files, and the proxy for a network."""
    script = "id -u; touch $1 && stat -c %u $1; exec curl -sS http://$2:8080/"
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script, "sh"]
    (lab.tmp / "theirs").mkdir()
    os.chown(lab.tmp / "theirs", 65534, 65534)
    done = run(lab, *words, lab.tmp / "theirs/file", NAME, engine="namespace")
    assert done.stdout == "65534\n65534\nhello\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAME", str(lab.tmp / "theirs/file"))
        assert run(lab, "sh", "-c", "rm $NAME && echo gone", engine="namespace").stdout == "gone\n", "root's own rights"


# --- what is left


def traces() -> tuple[set[str], set[str]]:
    """The mounts and files that a run could leave on this machine. A namespace lasts as long as its processes."""
    mounts = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/run/netns" not in line}
    kept = {line for line in mounts if any(word in line for word in ("resolv.conf", "nscd", "avahi", " /tmp "))}
    return kept, {path.name for path in Path("/tmp").glob("algate-*") if path.is_file()}  # noqa: S108


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_that_are_killed_leave_nothing(lab: Lab, gateway: Gateway, engine: str) -> None:
    _kill_many(lab, engine, 10)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_thousand_runs_that_are_killed_leave_nothing(lab: Lab, gateway: Gateway, engine: str) -> None:
    _kill_many(lab, engine, 1000)


def _kill_many(lab: Lab, engine: str, count: int) -> None:
    """Kill the run or its program, at all moments of its life, the very first ones too."""
    before = traces()
    argv = ["ip", "netns", "exec", lab.ns("inside"), str(ALGATE), "exec", "-q", "--engine", engine, "--via", OURS]
    for number in range(count):
        command = [*argv, "--timeout", OWN, "--", "sh", "-c", f"echo $$; exec sleep {OWN}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if number % 2:
                victim = int(process.stdout.readline())  # the program
            else:
                victim = process.pid
                time.sleep(0.4 * (number % 20) / 20)  # no condition: somewhere between its first step and its last
            os.kill(victim, signal.SIGKILL)
            process.wait(20)
            process.stdout.close()
    lab.wait_for(lambda: _strays() == [], 20, "all of them to end")
    lab.wait_for(lambda: traces() == before, 20, "mounts and files to be as before")


def _strays() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if OWN.encode() in words:
            found.append(str(words))
    return found


HUNDRED = """
import socket, sys
socks = []
for number in range(100):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(b"%d" % number)
    assert sock.recv(10) == b"%d" % number
    socks.append(sock)
print("open", flush=True)
sys.stdin.readline()
for sock in socks[:50]:
    sock.close()
print("half", flush=True)
sys.stdin.readline()
for sock in socks:
    sock.close()
print("closed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hundred_associations_end_with_their_sockets(lab: Lab, gateway: Gateway, echo: None, engine: str) -> None:
    """While the program runs on."""
    program = [sys.executable, "-c", HUNDRED, SERVER4, str(ECHO)]
    argv = [str(ALGATE), "exec", "--engine", engine, "--via", OURS, "--", *program]
    command = ["ip", "netns", "exec", lab.ns("inside"), *argv]

    def count() -> int:
        return len(gateway.admin("flows"))

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for says, expected in ((b"open\n", 100), (b"half\n", 50), (b"closed\n", 0)):
            assert process.stdout.readline() == says
            lab.wait_for(lambda expected=expected: count() == expected, 20, f"{expected} associations")  # type: ignore[misc]
            if expected:
                process.stdin.write(b"\n")
                process.stdin.flush()
        process.stdin.close()
        assert process.wait(20) == 0
