"""What programs try to get past `algate exec`, or to break it: nothing but the proxy's connection leaves the host."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client.engine import messages
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, STRANGER4, Lab
from tests.net.exec_rig import ALGATE, ECHO, ENGINES, OURS, WEB, echo_server, gateway_before_servers, run, sniffer

SOURCE = Path(__file__).with_name("exec_attacks.c")
RELAY = (ROUTER_IN4, 17)  # where datagrams may go: the proxy's relay


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    yield from gateway_before_servers(lab)


@pytest.fixture(scope="module")
def echo(lab: Lab) -> Iterator[None]:
    yield from echo_server(lab)


@pytest.fixture(scope="module")
def program(lab: Lab) -> Path:
    made = lab.tmp / "attacks"
    subprocess.run(["gcc", "-std=gnu17", "-O1", "-pthread", "-o", made, SOURCE], check=True)
    return made


# By what is tried: what it says in the namespace, and by notification. A kernel may be without a protocol.
ATTACKS: dict[str, tuple[set[str], set[str]]] = {
    "plain": ({"hello"}, {"hello"}),
    "mptcp": ({"hello", "EPROTONOSUPPORT"}, {"hello", "EPROTONOSUPPORT"}),
    "sctp": ({"EPROTONOSUPPORT", "ECONNREFUSED", "EACCES"}, {"EPROTONOSUPPORT"}),
    "dccp": ({"ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "ECONNREFUSED"}, {"EPERM"}),
    "udplite": ({"ok", "EPROTONOSUPPORT"}, {"EPROTONOSUPPORT"}),
    "ping": ({"EACCES"}, {"EPROTONOSUPPORT"}),
    "raw": ({"EPERM"}, {"EPERM"}),
    "packet": ({"EPERM"}, {"EAFNOSUPPORT"}),
    "fastopen": ({"ok", "EINPROGRESS", "EOPNOTSUPP"}, {"EOPNOTSUPP"}),
    "many": ({"ok"}, {"ENETUNREACH"}),
    "most": ({"ok"}, {"ENETUNREACH"}),
    "uring": ({"hello", "ENOSYS", "EPERM"}, {"ENOSYS"}),
    "passed": ({"hello"}, {"hello"}),
    "shared": ({"hello"}, {"hello"}),
    "duplicate": ({"hello"}, {"hello"}),
    "waiting": ({"hello"}, {"hello"}),
    "again": ({"hello"}, {"hello"}),
    "mapped": ({"hello"}, {"hello"}),
    "local": ({"ok"}, {"ok"}),
    "pointers": ({"hello"}, {"hello"}),
    "race": ({"done"}, {"done"}),
    "old": ({"ok", "ENOSYS", ""}, {"ENOSYS"}),
    "vsock": ({"ok", "EAFNOSUPPORT"}, {"EAFNOSUPPORT"}),
}


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ATTACKS)
def test_what_a_program_tries(lab: Lab, gateway: Gateway, program: Path, what: str, engine: str, user: bool) -> None:
    expected = ATTACKS[what][ENGINES.index(engine)]
    with sniffer(lab) as beside:
        done = run(lab, program, what, SERVER4, STRANGER4, engine=engine, user=user, check=False)
    assert done.stdout.strip() in expected, done.stdout + done.stderr
    assert beside <= {RELAY}, "something went past the proxy"


def test_sockets_without_a_file_are_of_a_namespace(lab: Lab, gateway: Gateway, program: Path) -> None:
    """Abstract ones, as of X11 and D-Bus: those outside are out of reach in the namespace."""
    with lab.enter("inside"), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0algate-exec-outside")
        listener.listen()
        assert run(lab, program, "abstract", SERVER4, engine="namespace").stdout == "ECONNREFUSED\n"
        assert run(lab, program, "abstract", SERVER4, engine="seccomp").stdout == "ok\n", "as the page says"


NOT_DUMPABLE = """
import ctypes, errno, socket, sys
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
print(errno.errorcode.get(socket.socket().connect_ex((sys.argv[1], 8080)), "connected"))
"""


def test_a_process_that_lets_nobody_look_connects_nowhere(lab: Lab, gateway: Gateway) -> None:
    """ssh-agent and others that keep secrets: not by notification, as an ordinary user; and a line says why."""
    with sniffer(lab) as beside:
        done = run(lab, sys.executable, "-c", NOT_DUMPABLE, SERVER4, engine="seccomp", user=True)
        assert (
            run(lab, sys.executable, "-c", NOT_DUMPABLE, SERVER4, engine="namespace", user=True).stdout == "connected\n"
        )
    assert done.stdout == "EACCES\n"
    assert "PR_SET_DUMPABLE" in done.stderr
    assert not beside


# --- how much


HELD = """
import resource, socket, sys
count = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
socks = []
for _ in range(count):
    sock = socket.create_connection((sys.argv[1], 8080), 30)
    sock.sendall(b"GET / HTTP/1.0\\r\\n")
    socks.append(sock)
good = 0
for sock in socks:
    sock.settimeout(30)
    try:
        sock.sendall(b"\\r\\n")
        data = b""
        while part := sock.recv(65536):
            data += part
        good += data.endswith(b"hello\\n")
    except OSError as error:
        print(error, file=sys.stderr)
print(good)
"""


def limited(descriptors: str) -> list[str | Path]:
    """A run in the namespace with a soft and a hard limit."""
    return ["prlimit", f"--nofile={descriptors}", ALGATE, "exec", "--engine", "namespace", "--via", OURS, "--"]


def test_many_connections_under_the_usual_limit(lab: Lab, gateway: Gateway) -> None:
    """The run takes what the hard limit leaves, since each connection has two descriptors, or six while much goes
    through it. (Beyond 256 the gateway may refuse a client.)"""
    words = limited("300:8192")
    done = lab.run("inside", [*words, sys.executable, "-c", HELD, SERVER4, "250"], timeout=110)
    assert done.stdout == "250\n", done.stderr


def test_more_connections_than_there_are_descriptors(lab: Lab, gateway: Gateway) -> None:
    """Those beyond fail at once; the run and later connections do not."""
    words = limited("128:128")
    script = '"$0" -c "$1" "$2" 100; exec curl -sS -m 30 "http://$2:8080/"'
    done = lab.run("inside", [*words, "sh", "-c", script, sys.executable, HELD, SERVER4], timeout=100)
    count, page = done.stdout.splitlines()
    assert 10 < int(count) < 100, done.stderr
    assert page == "hello"


@contextlib.contextmanager
def nobody_answers(lab: Lab) -> Iterator[int]:
    """A proxy's port that accepts and says nothing."""
    listener = lab.listen("router", ROUTER_IN4)
    listener.settimeout(None)
    kept: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                kept.append(listener.accept()[0])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        for sock in kept:
            sock.close()


FLOOD = """
import errno, socket, sys, threading
results = {}
lock = threading.Lock()
threading.stack_size(128 * 1024)
def attempt():
    with socket.socket() as sock:
        code = sock.connect_ex((sys.argv[1], 8080))
    with lock:
        name = errno.errorcode.get(code, "none")
        results[name] = results.get(name, 0) + 1
threads = [threading.Thread(target=attempt) for _ in range(1500)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(results.items()))
"""


def test_more_connections_at_once_than_are_made(lab: Lab, gateway: Gateway) -> None:
    """By notification each takes a thread: beyond 1,024 that wait there is an error at once, and all end."""
    with nobody_answers(lab) as port:
        words = [sys.executable, "-c", FLOOD, SERVER4]
        done = run(
            lab, *words, via=f"socks5://{ROUTER_IN4}:{port}", options=("--timeout", "8"), engine="seccomp", timeout=100
        )
    assert "('EADDRNOTAVAIL'," in done.stdout
    assert "('ETIMEDOUT'," in done.stdout
    assert done.stdout.count("(") == 2, done.stdout


MANY_HOSTS = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(20)
for number in range(6000):
    sock.sendto(b"x", (f"203.0.113.{number % 250 + 1}", 2000 + number // 250))
server = (sys.argv[1], int(sys.argv[2]))
for attempt in range(20):
    sock.sendto(b"still", server)
    sock.settimeout(2)
    try:
        while sock.recvfrom(100) != (b"still", server):
            pass
        print("answered")
        break
    except TimeoutError:
        pass
"""


def test_a_socket_that_writes_to_thousands_of_hosts(lab: Lab, gateway: Gateway, echo: None) -> None:
    """It is remembered whom it has written to last, and the rest forgotten."""
    assert run(lab, sys.executable, "-c", MANY_HOSTS, SERVER4, str(ECHO), engine="namespace").stdout == "answered\n"


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs one fails as for want of something that comes back."""

    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(BlockingIOError) as caught:
        messages.thread(print)
    assert caught.value.errno == errno.EAGAIN


BOMB = """
import os, sys, time
for _ in range(400):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
print("forked", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_with_hundreds_of_children_is_killed_in_time(lab: Lab, gateway: Gateway, engine: str) -> None:
    """Children are the system's to limit, as without a proxy; the run itself takes nothing for one that is silent."""
    argv = [str(ALGATE), "exec", "-q", "--engine", engine, "--via", OURS, "--", sys.executable, "-c", BOMB]
    with subprocess.Popen(["ip", "netns", "exec", lab.ns("inside"), *argv], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 20
        began = time.monotonic()
        process.terminate()
        assert process.wait(20) == 143
        assert time.monotonic() - began < 5


def test_the_web_server_is_there(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("outside", SERVER4, WEB):
        pass
