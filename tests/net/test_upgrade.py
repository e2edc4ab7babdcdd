"""A new version takes over from one that serves, and nobody outside notices."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_control import Control, fails, open_pinhole, port_command, split
from tests.net.socks_wire import ask5
from tests.net.steady_load import Greeter, SteadyLoad

SIZE = 60_000_000


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 1, "retire_timeout": 60}))
    yield gateway
    successor = pid_of(gateway)
    if successor not in (None, gateway.process.pid):
        os.kill(successor, signal.SIGTERM)
        lab.wait_for(lambda: not Path(f"/proc/{successor}").exists(), 20, "the new version to end")
    assert gateway.stop() == 0


def pid_of(gateway: Gateway) -> int | None:
    """The supervisor that is in charge, as its lock says."""
    run_dir = tomllib.loads(gateway.config.read_text())["process"]["run_dir"]
    lock = Path(run_dir) / "lock"
    return int(lock.read_text()) if lock.exists() else None


def upgrade(gateway: Gateway) -> int:
    """`algate reload --upgrade`; the pid of the new supervisor."""
    before = pid_of(gateway)
    (outcome,) = json.loads(gateway.algate("reload", "--upgrade", "--json").stdout)
    assert outcome["pid"] == pid_of(gateway) != before
    return int(outcome["pid"])


class Download:
    """A file that is fetched slowly, in a thread, through SOCKS."""

    def __init__(self, lab: Lab, content: bytes) -> None:
        self._listener = lab.listen("outside", SERVER4)
        self._content = content
        self._sock = lab.connect("inside", ROUTER_IN4, 1080, timeout=30)
        self.digest = hashlib.sha256()
        self.count = 0
        self.rest = threading.Event()
        assert ask5(self._sock, SERVER4, self._listener.getsockname()[1])[0] == 0
        threading.Thread(target=self._serve, daemon=True).start()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            sock.sendall(self._content)

    def _receive(self) -> None:
        while chunk := self._sock.recv(65536):
            self.digest.update(chunk)
            self.count += len(chunk)
            if not self.rest.is_set():
                self.rest.wait(0.1)

    def finish(self) -> tuple[int, bytes]:
        """The rest at full speed."""
        self.rest.set()
        self._thread.join(30)
        self._sock.close()
        self._listener.close()
        return self.count, self.digest.digest()


@pytest.mark.slow
def test_under_load_nobody_is_refused_and_what_is_under_way_goes_on(
    lab: Lab, gateway: Gateway, server: FtpServer, greeter: Greeter
) -> None:
    content = os.urandom(SIZE)
    download = Download(lab, content)
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    listener, pinhole = open_pinhole(lab, gateway, control)
    with SteadyLoad(lab, greeter) as load:
        load.more(50)
        for _ in range(2):  # also while the version before has not ended yet
            upgrade(gateway)
            load.more(100)
    assert (load.refused, load.errors) == (0, [])

    # The session's inspection and its pinhole have outlived two brokers.
    (row,) = gateway.admin("pinholes")
    assert row["id"] == pinhole["id"]
    assert fails(lab, "stranger", split(pinhole["public"]))
    lab.connect("outside", *split(pinhole["public"])).close()
    listener.accept()[0].close()
    listener.close()
    listener = lab.listen("inside", CLIENT4)
    assert control.command(port_command(CLIENT4, listener.getsockname()[1]).decode().strip()).startswith("200")
    listener.close()

    assert 0 < download.count < SIZE
    assert download.finish() == (SIZE, hashlib.sha256(content).digest())
    assert gateway.process.poll() is None  # for the session's sake
    control.command("QUIT")
    control.close()
    assert gateway.process.wait(10) == 0  # the oldest ends, and leaves everything to the newest
    lab.wait_for(lambda: len(list(lab.tmp.glob("run*/worker-*.sock"))) == 2, 10, "the old ones to end")
    with SteadyLoad(lab, greeter, clients=2) as load:
        load.more(10)
    assert (load.refused, load.errors) == (0, [])


def test_what_takes_new_processes_gets_them(lab: Lab, gateway: Gateway, greeter: Greeter) -> None:
    document = tomllib.loads(gateway.config.read_text())
    document["process"]["workers"] = 3
    document["socks"]["listen"].append(f"{ROUTER_IN4}:1082")
    gateway.config.write_text(tomli_w.dumps(document))
    with SteadyLoad(lab, greeter, clients=4) as load:
        load.more(20)
        lines = len(gateway.log_lines())
        gateway.process.send_signal(signal.SIGUSR2)
        gateway.wait_for_log(r"event=upgrade.complete", deadline=20, after=lines)
        load.more(20)
    assert (load.refused, load.errors) == (0, [])
    assert len([row for row in gateway.admin("status") if row["process"].startswith("worker")]) == 3
    with SteadyLoad(lab, greeter, clients=2, port=1082) as load:
        load.more(10)
    assert (load.refused, load.errors) == (0, [])
    document["process"]["workers"] = 1
    document["socks"]["listen"].pop()
    gateway.config.write_text(tomli_w.dumps(document))
    with SteadyLoad(lab, greeter, clients=4) as load, SteadyLoad(lab, greeter, clients=2, port=1082) as visitor:
        visitor.more(5)
        upgrade(gateway)
        load.more(50)
    assert (load.refused, load.errors) == (0, [])
    assert visitor.errors == []
    assert fails(lab, "inside", (ROUTER_IN4, 1082))


def test_if_the_new_version_cannot_begin_the_old_one_goes_on(
    lab: Lab, gateway: Gateway, server: FtpServer, greeter: Greeter
) -> None:
    original = gateway.config.read_text()
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    with SteadyLoad(lab, greeter, clients=4) as load, lab.listen("router", ROUTER_IN4, 1099):
        load.more(10)
        document = tomllib.loads(original)
        document["socks"]["listen"].append(f"{ROUTER_IN4}:1099")
        gateway.config.write_text(tomli_w.dumps(document))
        done = gateway.algate("reload", "--upgrade", check=False)
        assert done.returncode == 1
        assert "socks.listen[2]: cannot listen on" in done.stderr
        assert "Address already in use" in gateway.wait_for_log("event=upgrade.failed")
        load.more(10)
    assert (load.refused, load.errors) == (0, [])
    assert pid_of(gateway) == gateway.process.pid
    gateway.config.write_text(original)
    open_pinhole(lab, gateway, control)[0].close()
    control.close()


def test_if_the_new_version_dies_in_between_the_old_one_takes_everything_back(
    lab: Lab, gateway: Gateway, server: FtpServer, greeter: Greeter
) -> None:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    listener, pinhole = open_pinhole(lab, gateway, control)
    gateway.process.send_signal(signal.SIGUSR2)
    heir = int(gateway.wait_for_log("event=upgrade.start").rpartition("pid=")[2])
    gateway.wait_for_log("event=broker.orphaned", deadline=15)  # the old version has let go
    os.kill(heir, signal.SIGKILL)
    gateway.wait_for_log("event=upgrade.failed .*it has ended", deadline=15)
    run_dir = Path(tomllib.loads(gateway.config.read_text())["process"]["run_dir"])
    lab.wait_for(lambda: not (run_dir / f"code-{heir}").exists(), 5, "its links to be gone")
    status = ["broker", "packets", "supervisor", "worker-0", "worker-1"]
    lab.wait_for(lambda: processes(gateway) == status, 15, "all processes to be there")
    lab.connect("outside", *split(pinhole["public"])).close()
    listener.accept()[0].close()
    listener.close()
    open_pinhole(lab, gateway, control)[0].close()
    control.close()
    with SteadyLoad(lab, greeter, clients=2) as load:
        load.more(10)
        upgrade(gateway)  # and another time it works
        load.more(10)
    assert (load.refused, load.errors) == (0, [])


def processes(gateway: Gateway) -> list[str]:
    done = gateway.algate("status", "--json", check=False)
    return sorted(row["process"] for row in json.loads(done.stdout)) if done.returncode == 0 else []


def test_new_rules_hold_for_flows_of_the_old_version_too(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    for _ in range(2):
        upgrade(gateway)
    document = tomllib.loads(gateway.config.read_text())
    document["rule"] = [{"action": "deny", "from": [f"{CLIENT4}/32"]}, {"action": "permit"}]
    gateway.config.write_text(tomli_w.dumps(document))
    gateway.algate("reload")
    control.socket.settimeout(10)
    with pytest.raises(ConnectionResetError):
        control.socket.recv(1)
    control.close()


def test_without_its_successor_the_old_version_ends_soon(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    os.kill(upgrade(gateway), signal.SIGTERM)
    assert gateway.process.wait(15) == 0
    with pytest.raises((ConnectionError, socket.timeout)):
        control.command("NOOP")
    control.close()


def test_a_stop_waits_for_the_flows_of_the_old_version(lab: Lab, gateway: Gateway) -> None:
    """systemd kills whatever is left when the main process, the new version, has ended."""
    content = os.urandom(20_000_000)
    download = Download(lab, content)
    heir = upgrade(gateway)
    assert _parent(heir) != gateway.process.pid  # else systemd would not wait for the end of the new one either
    os.kill(heir, signal.SIGTERM)
    gateway.wait_for_log("event=drain ")
    assert gateway.process.poll() is None
    assert download.finish() == (len(content), hashlib.sha256(content).digest())
    lab.wait_for(lambda: not Path(f"/proc/{heir}").exists(), 20, "the new version to end")
    stopped = [line for line in gateway.log_lines() if "event=stopped" in line]
    assert len(stopped) == 2  # the old one had ended before
    assert gateway.process.wait(10) == 0


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_who_has_handed_over_does_so_no_second_time(lab: Lab, gateway: Gateway) -> None:
    before = pid_of(gateway)
    assert before is not None
    os.kill(before, signal.SIGUSR2)
    gateway.wait_for_log("event=upgrade.start")
    os.kill(before, signal.SIGUSR2)  # as from a second terminal, while the first is being done
    gateway.wait_for_log("event=retire ", 20)
    lab.wait_for(lambda: pid_of(gateway) not in (None, before), 10, "the new version to be in charge")
    assert sum("event=upgrade.start" in line for line in gateway.log_lines()) == 1


def test_a_stop_in_the_middle_ends_both_versions(lab: Lab, gateway: Gateway) -> None:
    before = pid_of(gateway)
    assert before is not None
    os.kill(before, signal.SIGUSR2)
    gateway.wait_for_log("event=upgrade.start")
    os.kill(before, signal.SIGTERM)
    lab.wait_for(lambda: pid_of(gateway) is None, 20, "both versions to end")
    gateway.wait_for_log("event=retire ")  # the old one had gone on to hand over


def test_sessions_of_the_version_before_count(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    """A limit of a rule is of both versions together, as long as the old one has flows."""
    document = tomllib.loads(gateway.config.read_text())
    document["rule"] = [{"action": "permit", "max_sessions": 3}]
    gateway.config.write_text(tomli_w.dumps(document))
    gateway.algate("reload")
    socks: list[socket.socket] = []

    def ask() -> int:
        socks.append(lab.connect("inside", ROUTER_IN4, 1080))
        return ask5(socks[-1], SERVER4, 21)[0]

    try:
        assert [ask() for _ in range(4)] == [0, 0, 0, 2]
        upgrade(gateway)
        assert ask() == 2
        socks[0].close()
        lab.wait_for(lambda: ask() == 0, 10, "a session of the old version to be over")
        assert ask() == 2
    finally:
        for sock in socks:
            sock.close()


def test_sessions_of_a_version_before_that_was_killed_are_free(lab: Lab) -> None:
    """Its workers end with their supervisor, and nobody else has set to zero what they had counted."""
    listener = lab.listen("outside", SERVER4)
    gateway = lab.start_gateway(lab.write_config(rule=[{"action": "permit", "max_sessions": 3}]))
    socks: list[socket.socket] = []

    def ask() -> int:
        socks.append(lab.connect("inside", ROUTER_IN4, 1080))
        return ask5(socks[-1], SERVER4, listener.getsockname()[1])[0]

    try:
        assert [ask() for _ in range(4)] == [0, 0, 0, 2]
        upgrade(gateway)
        gateway.process.kill()
        gateway.process.wait(5)
        gateway.wait_for_log("event=upgrade.complete")
        lab.wait_for(lambda: ask() == 0, 5, "the sessions of the version that was killed to be free")
        assert [ask() for _ in range(3)] == [0, 0, 2]
    finally:
        for sock in socks:
            sock.close()
        listener.close()
        successor = pid_of(gateway)
        assert successor is not None
        os.kill(successor, signal.SIGTERM)
        lab.wait_for(lambda: not Path(f"/proc/{successor}").exists(), 20, "the new version to end")
        assert gateway.stop() == -signal.SIGKILL
