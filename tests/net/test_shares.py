"""Rates and quotas that flows share, on the wire: two clients and two users, both fronts, data connections too."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab, Role
from tests.net.socks_wire import receive, reply5, request5

RATED, QUOTED, SHORT, USERS, ALL, REDIRECTED = 7101, 7102, 7103, 7104, 7105, 7106
PORTS = (RATED, QUOTED, SHORT, USERS, ALL, REDIRECTED)
RATE = 500_000
QUOTA = 1_000_000
RULES = [
    {"name": "rated", "action": "permit", "port": [RATED], "bandwidth_per_client": RATE},
    {"name": "quoted", "action": "permit", "port": [QUOTED], "quota_per_client": QUOTA},
    {"name": "short", "action": "permit", "port": [SHORT], "quota_per_client": 50_000, "quota_period": 3},
    {"name": "users", "action": "permit", "port": [USERS], "quota_per_user": QUOTA},
    {"name": "all", "action": "permit", "port": [ALL], "quota_per_rule": QUOTA},
    {"name": "redirected", "action": "permit", "port": [REDIRECTED], "quota_per_client": QUOTA},
    {"name": "ftp", "action": "permit", "port": [21], "quota_per_client": QUOTA},
]
DENIED = 2


@pytest.fixture(scope="module", autouse=True)
def server(lab: Lab) -> Iterator[None]:
    """Whoever connects names a number of bytes, in a line, and gets them; without a line nothing."""
    listeners = [lab.listen("outside", SERVER4, port) for port in PORTS]

    def serve(sock: socket.socket) -> None:
        try:
            with sock, sock.makefile("rb") as lines:
                for line in lines:
                    sock.sendall(bytes(int(line)))
        except OSError:
            pass

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threads = [threading.Thread(target=accept, args=(listener,)) for listener in listeners]
    for listener, thread in zip(listeners, threads, strict=True):
        listener.settimeout(None)
        thread.start()
    yield
    for listener, thread in zip(listeners, threads, strict=True):
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """One worker: each has its part of a limit."""
    users = lab.tmp / "users"
    config = lab.write_config(
        process={"workers": 1, "drain_timeout": 1},
        socks={"auth": ["password", "none"], "users": str(users)},
        transparent={"ports": [REDIRECTED]},
        rule=RULES,
    )
    for user in ("ann", "bob"):
        lab.run("router", [Gateway(lab, config).command, "passwd", users, user], stdin="word\n")
    users.chmod(0o600)
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0


def ask(lab: Lab, port: int, role: Role = "inside", user: str | None = None) -> tuple[socket.socket, int]:
    """A connection by SOCKS, and the code of the reply."""
    sock = lab.connect(role, ROUTER_IN4, 1080, timeout=20)
    if user is None:
        sock.sendall(b"\5\1\0")
        assert receive(sock, 2) == b"\5\0"
    else:
        sock.sendall(b"\5\1\2" + b"\1" + bytes([len(user)]) + user.encode() + b"\4word")
        assert receive(sock, 4) == b"\5\2\1\0"
    sock.sendall(request5(SERVER4, port))
    return sock, reply5(sock)[0]


def opened(lab: Lab, port: int, role: Role = "inside", user: str | None = None) -> socket.socket:
    sock, code = ask(lab, port, role, user)
    assert code == 0
    return sock


def refused(lab: Lab, port: int, role: Role = "inside", user: str | None = None) -> bool:
    sock, code = ask(lab, port, role, user)
    sock.close()
    return code == DENIED


def get(sock: socket.socket, count: int) -> int:
    """Ask for so many bytes; how many came."""
    return get_to_the_end(sock, count)[0]


def get_to_the_end(sock: socket.socket, count: int) -> tuple[int, bool]:
    """The same, and whether a reset was the end."""
    got = 0
    try:
        sock.sendall(b"%d\n" % count)
        while got < count and (data := sock.recv(65536)):
            got += len(data)
    except ConnectionResetError:
        return got, True
    return got, False


def test_flows_of_a_client_share_its_rate(lab: Lab, gateway: Gateway) -> None:
    took: dict[int, float] = {}
    socks = [opened(lab, RATED), opened(lab, RATED), opened(lab, RATED, "client2")]
    began = time.monotonic()

    def fetch(number: int) -> None:
        with socks[number] as sock:
            assert get(sock, RATE) == RATE
        took[number] = time.monotonic() - began

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    burst = 0.5  # seconds of the rate
    assert 2 - burst - 0.05 <= max(took[0], took[1]) < 4  # a megabyte together
    assert 1 - burst - 0.05 <= took[2] < 1.5  # the other client has the same rate, for himself


def test_a_quota_ends_flows_by_a_reset_and_lets_no_new_one_in(lab: Lab, gateway: Gateway) -> None:
    seen = len(gateway.log_lines())
    idle, busy = opened(lab, QUOTED), opened(lab, QUOTED)
    assert get(idle, 1000) == 1000
    with busy:
        got, was_reset = get_to_the_end(busy, 2 * QUOTA)
    assert was_reset
    assert got <= QUOTA - 1000
    line = gateway.wait_for_log("event=quota.used_up", after=seen)
    assert f"rule=quoted quota=quota_per_client bytes={QUOTA}" in line
    end = gateway.wait_for_log("event=flow.end.* reason=quota", after=seen)
    counts = [int(word.partition("=")[2]) for word in end.split() if word.startswith(("up=", "down="))]
    assert got <= counts[1]  # what the reset overtook was moved, too
    assert sum(counts) + 1000 + len("1000\n") == QUOTA
    assert refused(lab, QUOTED)
    denied = gateway.wait_for_log("event=socks.denied", after=seen)
    assert "rule=quoted" in denied
    assert f"quota_per_client of {QUOTA} bytes is used up for" in denied
    with idle:  # it is there until it wants to move something
        assert get_to_the_end(idle, 1) == (0, True)
    with opened(lab, QUOTED, "client2") as second:
        assert get(second, 5000) == 5000


def test_in_the_next_period_there_is_a_new_quota(lab: Lab, gateway: Gateway) -> None:
    lab.wait_for(lambda: time.time() % 3 < 1, 4, "the beginning of a period")
    with opened(lab, SHORT) as sock:
        assert get(sock, 100_000) < 50_000
    assert refused(lab, SHORT)
    lab.wait_for(lambda: not refused(lab, SHORT), 5, "the next period")
    with opened(lab, SHORT) as sock:
        assert get(sock, 20_000) == 20_000


def test_each_user_has_a_quota(lab: Lab, gateway: Gateway) -> None:
    """At the same address; and who uses it from another one has no other."""
    with opened(lab, USERS, user="ann") as sock:
        assert get(sock, 2 * QUOTA) <= QUOTA
    assert refused(lab, USERS, user="ann")
    assert refused(lab, USERS, "client2", user="ann")
    with opened(lab, USERS, user="bob") as sock:
        assert get(sock, QUOTA // 2) == QUOTA // 2


def test_all_of_a_rule_have_a_quota(lab: Lab, gateway: Gateway) -> None:
    with opened(lab, ALL) as first, opened(lab, ALL, "client2") as second:
        assert get(first, QUOTA // 2) == QUOTA // 2
        assert get(second, QUOTA) < QUOTA // 2
    assert refused(lab, ALL)
    assert refused(lab, ALL, "client2")


def test_a_redirected_connection_too(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", SERVER4, REDIRECTED) as sock:
        assert get(sock, 2 * QUOTA) <= QUOTA
    try:
        with lab.connect("inside", SERVER4, REDIRECTED) as sock:
            assert get_to_the_end(sock, 1) == (0, True)
    except ConnectionResetError:
        pass  # before `connect` had returned


def test_data_of_ftp_counts(lab: Lab, gateway: Gateway) -> None:
    """What a SOCKS client transfers through a pinhole is of the rule that permits its control connection."""
    server = lab.vsftpd()
    (server.root / "pub/big").write_bytes(bytes(2 * QUOTA))
    seen = len(gateway.log_lines())
    url = f"ftp://{SERVER4}/pub/big"
    argv = ["curl", "-sS", "--max-time", "20", "--socks5", f"{ROUTER_IN4}:1080", "--disable-eprt", "--ftp-port", "-"]
    done = lab.run("inside", [*argv, "-o", "/dev/null", url], check=False)
    server.stop()
    assert done.returncode != 0
    assert "front=pinhole" in gateway.wait_for_log("event=quota.used_up", after=seen)
    lab.wait_for(lambda: not gateway.admin("flows"), 10, "the flows to end")
