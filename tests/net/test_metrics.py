"""What Prometheus is told: numbers of real traffic, which go on when a process is replaced; health that is true."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.lab.peers import unpacked
from tests.lab.servers import FtpServer
from tests.net.console_http import LISTEN, PORT, fetch, samples, total
from tests.net.socks_wire import ask5

ECHO = 7007


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    rules = [
        {"action": "deny", "port": ["25"], "name": "no-mail"},
        {"action": "permit", "from": ["192.168.56.0/24"], "name": "inside"},
    ]
    gateway = lab.start_gateway(lab.write_config(console={"listen": LISTEN}, rule=rules))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module")
def ftp(lab: Lab) -> Iterator[FtpServer]:
    server = lab.vsftpd()
    server.put("pub/file", b"content" * 1000)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def listener(lab: Lab) -> Iterator[socket.socket]:
    with lab.listen("outside", SERVER4, ECHO) as listener:
        yield listener


@contextlib.contextmanager
def flow(lab: Lab, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A SOCKS flow: the client's end and the server's."""
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        assert ask5(client, SERVER4, ECHO)[0] == 0
        server, _ = listener.accept()
        with server:
            yield client, server


def pid_of(gateway: Gateway, name: str) -> int:
    status = next(row for row in gateway.admin("status") if row["process"] == "supervisor")
    pid: int = status["children"][name]["pid"]
    return pid


def test_promtool_finds_nothing_to_say(lab: Lab, gateway: Gateway) -> None:
    program = unpacked("prometheus", "usr/bin/promtool")
    text = fetch(lab, "/metrics")[1]
    done = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_an_ftp_session_and_its_data(lab: Lab, gateway: Gateway, ftp: FtpServer) -> None:
    before = samples(lab)
    lab.run(
        "inside", ["curl", "-sS", "--disable-epsv", "--ftp-port", "-", f"ftp://{SERVER4}/pub/file", "-o", "/dev/null"]
    )
    after = samples(lab)

    def more(name: str, *labels: str) -> float:
        return sum(
            value - before.get(series, 0)
            for series, value in after.items()
            if series[0] == name and all(label in series[1] for label in labels)
        )

    assert more("algate_edits_total", 'reason="ftp.', 'applied="yes"') >= 1
    assert more("algate_pinhole_events_total", 'backend="kernel"', 'protocol="tcp"', 'result="opened"') == 1
    assert more("algate_broker_seconds_count") >= 1
    assert more("algate_handshakes_total", 'front="transparent"', 'result="granted"') == 1
    assert more("algate_permits_total", 'rule="inside"') == 1
    assert more("algate_flow_bytes_total") > 100
    lab.wait_for(
        lambda: total(lab, "algate_flows_ended_total", 'front="transparent"') >= 1, 5, "the flow's end to count"
    )


def test_what_became_of_socks_requests(lab: Lab, gateway: Gateway, listener: socket.socket) -> None:
    before = samples(lab)
    for host, port in ((SERVER4, 25), (SERVER4, 9), ("127.0.0.1", PORT), (ROUTER_IN4, PORT)):
        with lab.connect("inside", ROUTER_IN4, 1080) as client:
            assert ask5(client, host, port)[0] == (5 if port == 9 else 2)
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        client.sendall(b"\5\1\0" + b"\5\1\0\7" + bytes(20))
        while client.recv(100):
            pass
    with flow(lab, listener) as (client, server):
        client.sendall(b"x" * 1000)
        assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
        lab.wait_for(lambda: total(lab, "algate_flow_bytes_total", 'direction="up"') >= 1000, 5, "the bytes to count")
        assert total(lab, "algate_flows", 'front="socks"') == 1
    after = samples(lab)

    def more(name: str, label: str) -> float:
        return sum(v - before.get(series, 0) for series, v in after.items() if series[0] == name and label in series[1])

    assert more("algate_handshakes_total", 'result="denied"') == 3
    assert more("algate_denials_total", 'front="socks"') == 3
    assert total(lab, "algate_denials_total", 'rule="no-mail"') == 1
    assert total(lab, "algate_handshakes_total", 'result="refused"') == 1
    assert total(lab, "algate_handshakes_total", 'result="malformed"') == 1


def test_counters_go_on_when_a_worker_and_the_console_are_killed(
    lab: Lab, gateway: Gateway, listener: socket.socket
) -> None:
    for _ in range(6):
        with flow(lab, listener):
            pass
    before = total(lab, "algate_flows_opened_total")
    assert before >= 6
    for victim in ("worker-0", "worker-1", "console"):
        pid = pid_of(gateway, victim)
        os.kill(pid, signal.SIGKILL)

        def replaced(victim: str = victim, pid: int = pid) -> bool:
            try:
                return fetch(lab, "/readyz")[0] == 200 and pid_of(gateway, victim) not in (pid, None)
            except OSError:
                return False

        lab.wait_for(replaced, 20, f"another {victim}")
        assert total(lab, "algate_flows_opened_total") == before
    assert total(lab, "algate_process_restarts_total") == 3
    with flow(lab, listener):
        assert total(lab, "algate_flows_opened_total") == before + 1


@pytest.mark.parametrize("name", ["worker-0", "broker", "packets"])
def test_health_sees_a_process_that_hangs(lab: Lab, gateway: Gateway, name: str) -> None:
    assert fetch(lab, "/healthz") == (200, "ok\n")
    pid = pid_of(gateway, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        for path in ("/healthz", "/readyz"):
            assert fetch(lab, path) == (503, f"{name}: no answer within 1 s\n")
        assert total(lab, "algate_process_up", f'process="{name}"') == 0
        assert total(lab, "algate_ready") == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    lab.wait_for(lambda: fetch(lab, "/readyz") == (200, "ok\n"), 5, "it to go on")
    assert pid_of(gateway, name) == pid


def test_ready_means_that_the_table_is_there(lab: Lab) -> None:
    config = lab.write_config(
        console={"listen": "127.0.0.1:9183"},
        rules={"restore": False},
        process={"workers": 1},
        transparent={"port": 10801},
        socks={"listen": [f"{ROUTER_IN4}:1083"]},
    )
    gateway = lab.start_gateway(config, rules=False)
    table = next(row["table"] for row in gateway.admin("status") if row["process"] == "broker")

    def answer(path: str) -> str:
        return lab.run("router", ["curl", "-s", f"http://127.0.0.1:9183{path}"]).stdout

    assert answer("/readyz") == "ok\n"
    lab.run("router", ["nft", "delete", "table", "inet", table])
    assert answer("/readyz") == "broker: its nft table is gone (restart algate if it does not come back)\n"
    assert answer("/healthz") == "ok\n"
    assert gateway.stop() == 0


@pytest.mark.slow
def test_a_client_that_dribbles_or_says_nothing_is_left(lab: Lab, gateway: Gateway) -> None:
    began = time.monotonic()
    slow = lab.connect("router", "127.0.0.1", PORT, timeout=0.5)
    slow.sendall(b"GET /healthz HTTP/1.1\r\n")
    with contextlib.suppress(OSError):
        while time.monotonic() < began + 14:
            slow.sendall(b"X-A: b\r\n")
            with contextlib.suppress(TimeoutError):
                if not slow.recv(1000):
                    break
    assert 8 < time.monotonic() - began < 13
    slow.close()
    assert fetch(lab, "/healthz")[0] == 200


REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_client_that_resets_its_connection_is_no_news(lab: Lab, gateway: Gateway) -> None:
    """At any moment: before a request, within its line, within its head, while it is answered, between two."""
    seen = len(gateway.log_lines())
    for said in (b"", REQUEST[:9], REQUEST[:30], REQUEST, REQUEST + REQUEST[:9], REQUEST * 20):
        for waits in (False, True):
            client = lab.connect("router", "127.0.0.1", PORT)
            client.sendall(said)
            if waits and REQUEST in said:
                assert client.recv(1) == b"H"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
    assert fetch(lab, "/healthz")[0] == 200
    assert [line for line in gateway.log_lines()[seen:] if not line.startswith("timestamp=")] == []
    assert not any("console.error" in line for line in gateway.log_lines()[seen:])


def test_many_who_say_nothing_do_not_stop_the_gateway(lab: Lab, gateway: Gateway, listener: socket.socket) -> None:
    idle = [lab.connect("router", "127.0.0.1", PORT) for _ in range(100)]
    try:
        with flow(lab, listener) as (client, server):
            client.sendall(b"works")
            assert server.recv(5) == b"works"
    finally:
        for sock in idle:
            sock.close()
    lab.wait_for(lambda: fetch(lab, "/healthz")[0] == 200, 5, "the console to have room again")


def test_nobody_inside_reaches_the_console(lab: Lab, gateway: Gateway) -> None:
    for role in ("inside", "outside"):
        with pytest.raises(OSError, match=r"refused|timed out"):
            lab.connect(role, ROUTER_IN4 if role == "inside" else "203.0.113.2", PORT, timeout=1)


def test_draining_is_not_ready(lab: Lab, listener: socket.socket) -> None:
    config = lab.write_config(
        console={"listen": "127.0.0.1:9181"},
        socks={"listen": [f"{ROUTER_IN4}:1081"]},
        network={"inside_interfaces": []},
        process={"drain_timeout": 8, "workers": 1},
    )
    gateway = lab.start_gateway(config, rules=False)
    with lab.connect("inside", ROUTER_IN4, 1081) as client:
        assert ask5(client, SERVER4, ECHO)[0] == 0
        gateway.process.terminate()

        def seen() -> str:
            return lab.run("router", ["curl", "-s", "http://127.0.0.1:9181/readyz"], check=False).stdout

        lab.wait_for(lambda: seen() == "supervisor: draining\n", 5, "the draining to be seen")
        assert lab.run("router", ["curl", "-s", "http://127.0.0.1:9181/healthz"]).stdout == "ok\n"
    listener.accept()[0].close()
    assert gateway.stop() == 0


def test_whether_the_rules_are_applied(lab: Lab, gateway: Gateway) -> None:
    assert total(lab, "algate_rules_applied") == 1
    gateway.algate("rules", "remove")
    try:
        lab.wait_for(lambda: total(lab, "algate_rules_applied") == 0, 20, "it to be seen")
    finally:
        gateway.algate("rules", "apply")


def test_counters_go_on_with_a_new_version(lab: Lab, listener: socket.socket) -> None:
    config = lab.write_config(
        console={"listen": "127.0.0.1:9182"},
        socks={"listen": [f"{ROUTER_IN4}:1082"]},
        network={"inside_interfaces": []},
        process={"workers": 1, "retire_timeout": 3},
    )
    gateway = lab.start_gateway(config, rules=False)
    lock = next(path for path in lab.tmp.glob("run*/lock") if path.read_text().strip() == str(gateway.process.pid))
    token = lock.with_name("console.token").read_text()

    def counted() -> float:
        text = lab.run("router", ["curl", "-s", "--max-time", "5", "http://127.0.0.1:9182/metrics"], check=False).stdout
        found = re.findall(r"^algate_flows_opened_total{.*} (.*)$", text, re.MULTILINE)
        return sum(map(float, found))

    for _ in range(3):
        with lab.connect("inside", ROUTER_IN4, 1082) as client:
            assert ask5(client, SERVER4, ECHO)[0] == 0
            listener.accept()[0].close()
    assert counted() == 3
    gateway.algate("reload", "--upgrade")
    successor = int(lock.read_text())
    try:
        assert successor != gateway.process.pid
        lab.wait_for(lambda: counted() == 3, 10, "the new version's console to count on")
        with lab.connect("inside", ROUTER_IN4, 1082) as client:
            assert ask5(client, SERVER4, ECHO)[0] == 0
            listener.accept()[0].close()
        lab.wait_for(lambda: counted() == 4, 5, "one more")
        assert lock.with_name("console.token").read_text() == token
    finally:
        os.kill(successor, signal.SIGTERM)
        lab.wait_for(lambda: not Path(f"/proc/{successor}").exists(), 20, "the new version to end")
        assert gateway.stop() == 0


def test_a_port_in_use_is_said_by_its_key(lab: Lab, gateway: Gateway) -> None:
    config = lab.write_config(
        console={"listen": LISTEN}, socks={"listen": [f"{ROUTER_IN4}:1085"]}, network={"inside_interfaces": []}
    )
    done = lab.run("router", [gateway.command, "run", "-c", config], check=False)
    assert done.returncode == 1
    assert f"console.listen: cannot listen on {LISTEN}: Address already in use" in done.stderr
