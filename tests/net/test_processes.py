"""Processes that die, are replaced, and end: what lives on, and what is left."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, Lab
from tests.lab.servers import FtpServer
from tests.net.console_http import LISTEN, fetch
from tests.net.ftp_control import Control, fails, open_pinhole, port_command, session, split

SIZE = 60_000_000


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 1}))
    yield gateway
    if gateway.running:
        assert gateway.stop() == 0


def process(gateway: Gateway, name: str) -> dict[str, Any]:
    (row,) = [row for row in gateway.admin("status") if row["process"] == name]
    return row


def kill(gateway: Gateway, name: str) -> None:
    """SIGKILL, and wait until another one serves in its place."""
    pid = process(gateway, name)["pid"]
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        status = gateway.algate("status", "--json", check=False)
        return status.returncode == 0 and process(gateway, name)["pid"] != pid

    gateway.lab.wait_for(replaced, 10, f"{name} to be replaced")


def spread(lab: Lab, gateway: Gateway, server: FtpServer) -> dict[str, Control]:
    """One session by each of the two workers."""
    sessions: dict[str, Control] = {}
    for _ in range(50):
        before = {flow["id"] for flow in gateway.admin("flows")}
        control = session(lab, server)
        (flow,) = [flow["id"] for flow in gateway.admin("flows") if flow["id"] not in before]
        worker = "worker-" + flow[1]
        if worker in sessions:
            control.close()
        sessions.setdefault(worker, control)
        if len(sessions) == 2:
            return sessions
    raise AssertionError("the kernel gives all connections to one worker")


def test_a_killed_worker_is_replaced_and_the_flows_of_the_other_live_on(
    lab: Lab, gateway: Gateway, server: FtpServer
) -> None:
    sessions = spread(lab, gateway, server)
    kill(gateway, "worker-0")
    assert sessions["worker-1"].command("NOOP").startswith("200")
    with pytest.raises(ConnectionError):
        sessions["worker-0"].command("NOOP")
    for _ in range(10):  # both serve new ones
        session(lab, server).close()
    assert process(gateway, "supervisor")["children"]["worker-0"]["restarts"] == 1
    for control in sessions.values():
        control.close()


def test_a_killed_broker_is_replaced_and_knows_its_leases(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = session(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, control)
    kill(gateway, "broker")
    assert gateway.admin("pinholes") == [{**pinhole, "expires": pytest.approx(pinhole["expires"], abs=2)}]
    assert fails(lab, "stranger", split(pinhole["public"]))
    lab.connect("outside", *split(pinhole["public"])).close()
    listener.accept()[0].close()
    listener.close()
    listener, _ = open_pinhole(lab, gateway, control)  # and it opens new ones
    listener.close()
    control.close()


@pytest.mark.parametrize("victims", [("worker-0", "worker-1"), ("broker",), ("broker", "worker-0", "worker-1")])
def test_a_transfer_through_the_kernel_survives_the_death_of(
    lab: Lab, gateway: Gateway, server: FtpServer, victims: tuple[str, ...]
) -> None:
    data = os.urandom(SIZE)
    server.put("pub/file", data)
    control = session(lab, server)
    listener = lab.listen("inside", CLIENT4)
    control.send(port_command(CLIENT4, listener.getsockname()[1]) + b"RETR pub/file\r\n")
    transfer, _ = listener.accept()
    transfer.settimeout(20)
    received = hashlib.sha256(first := transfer.recv(65536))
    count = len(first)
    for victim in victims:
        kill(gateway, victim)
    while chunk := transfer.recv(1 << 20):
        received.update(chunk)
        count += len(chunk)
    assert count == SIZE
    assert received.digest() == hashlib.sha256(data).digest()
    for sock in (transfer, listener, control.socket):
        sock.close()


def test_sigterm_drains_within_its_deadline_and_leaves_nothing(lab: Lab, server: FtpServer) -> None:
    config = lab.write_config(process={"drain_timeout": 2})
    gateway = lab.start_gateway(config)
    idle = session(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, idle)
    pids = [*gateway.pids(), gateway.process.pid]
    assert len(pids) == 5
    began = time.monotonic()
    assert gateway.stop() == 0
    assert 1 < time.monotonic() - began < 5  # it waited for the idle session, and then no longer
    with pytest.raises(ConnectionResetError):
        idle.command("NOOP")
    assert fails(lab, "outside", split(pinhole["public"]))
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert lab.leftovers() == []
    assert not list(lab.tmp.glob("run*"))
    listener.close()


def test_a_flow_that_ends_in_time_ends_the_draining(lab: Lab, server: FtpServer) -> None:
    gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 30}))
    control = session(lab, server)
    lines = len(gateway.log_lines())
    gateway.process.terminate()
    gateway.wait_for_log(r"event=drain ", after=lines)
    lab.wait_for(lambda: fails(lab, "inside", (ROUTER_IN4, 1080)), 5, "new connections to be refused")
    assert control.command("NOOP").startswith("200")  # what was open goes on
    began = time.monotonic()
    assert control.command("QUIT").startswith("221")
    control.close()
    assert gateway.stop() == 0
    assert time.monotonic() - began < 5


def test_children_end_when_the_supervisor_is_killed(lab: Lab, server: FtpServer) -> None:
    gateway = lab.start_gateway()
    children = gateway.pids()
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait(5)
    lab.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 5, "the children to end")
    gateway.lab.gateways.remove(gateway)
    gateway.start(rules=False)  # its lock and its sockets are no obstacle
    assert gateway.stop() == 0
    gateway.algate("rules", "remove")


def test_a_second_instance_in_the_same_run_dir_is_refused(lab: Lab, gateway: Gateway) -> None:
    done = gateway.algate("run", check=False)
    assert done.returncode == 1
    assert f"another algate (pid {gateway.process.pid}) already runs in" in done.stderr
    assert process(gateway, "supervisor")["state"] == "running"


def test_a_second_instance_is_refused_though_the_run_dir_was_taken_away(lab: Lab, gateway: Gateway) -> None:
    """It would take the first one's table for its own, and delete it when it ends."""
    run_dir = Path(tomllib.loads(gateway.config.read_text())["process"]["run_dir"])
    table = lab.run("router", ["nft", "list", "tables"]).stdout
    shutil.rmtree(run_dir)
    second = lab.run("router", [gateway.command, "run", "-c", gateway.config], check=False)
    assert second.returncode == 1
    assert f"another algate (pid {gateway.process.pid}) already runs as algate-" in second.stderr, second.stderr
    assert not run_dir.exists()
    assert lab.run("router", ["nft", "list", "tables"]).stdout == table
    with lab.connect("inside", ROUTER_IN4, 1080) as client:  # the first one goes on
        client.sendall(b"\5\1\0")
        assert client.recv(2) == b"\5\0"


def test_whoever_is_no_gateway_does_not_keep_one_out(lab: Lab) -> None:
    """Anybody may take a name in the abstract namespace."""
    config = lab.write_config()
    name = lab.run("router", [sys.executable, "-c", NAME_OF, str(config)]).stdout.strip()
    as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/python3", "-c"]
    squatter = lab.popen("router", [*as_nobody, SQUAT, name])
    try:
        lab.wait_for(lambda: f"@{name}" in lab.run("router", ["cat", "/proc/net/unix"]).stdout, 10, "it to be taken")
        gateway = lab.start_gateway(config)
        assert any("event=instance.name_taken" in line for line in gateway.log_lines())
        assert gateway.stop() == 0
    finally:
        lab.stop(squatter)


NAME_OF = (
    "import sys; from pathlib import Path; from gateway.config.load import load_config;"
    " print('algate/' + load_config(Path(sys.argv[1])).instance)"
)
SQUAT = (
    "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(chr(0) + sys.argv[1]); s.listen();"
    " time.sleep(60)"
)


def test_a_broken_configuration_exits_with_2(lab: Lab) -> None:
    config = lab.write_config(pinhole={"per_clients": 1})
    for command in ("run", "check"):
        done = lab.run("router", [Path(sys.executable).parent / "algate", command, "-c", config], check=False)
        assert done.returncode == 2
        line = next(at for at, text in enumerate(config.read_text().splitlines(), 1) if text.startswith("per_clients"))
        assert done.stderr == f"algate: {config}:{line}: pinhole.per_clients: unknown key (did you mean per_client?)\n"


def test_children_have_no_privileges(gateway: Gateway) -> None:
    net_admin = 1 << 12
    for name in ("broker", "worker-0", "worker-1"):
        status = Path(f"/proc/{process(gateway, name)['pid']}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        expected = net_admin if name == "broker" else 0
        assert "0" not in fields["Uid"].split()
        assert "0" not in fields["Gid"].split()
        assert fields["Groups"].strip() == ""
        assert fields["NoNewPrivs"] == "1"
        for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"):
            assert int(fields[capabilities], 16) == expected


def test_code_in_a_private_directory_can_be_run(lab: Lab, server: FtpServer) -> None:
    """A checkout below /root or a mktemp directory: whom the children run as may not enter it."""
    private = Path(tempfile.mkdtemp(dir=lab.tmp))
    assert private.stat().st_mode & 0o777 == 0o700
    root = Path(__file__).parents[2]
    for part in ("alg", "gateway", "iptables"):
        shutil.copytree(root / part, private / part, ignore=shutil.ignore_patterns("__pycache__"))
    config = lab.write_config(console={"listen": LISTEN})
    main = "import sys; from gateway.cli.main import main; main()"
    argv: list[str | Path] = [sys.executable, "-P", "-c", main, "run", "-c", config]
    log = lab.tmp / "private.log"
    started = lab.popen("router", argv, log=log, env={"PYTHONPATH": str(private)})
    lab.wait_for(lambda: "event=ready" in log.read_text() or started.poll() is not None, 15, "it to be ready")
    assert "event=ready" in log.read_text(), log.read_text()
    curl = ["curl", "-sS", "--socks5", f"{ROUTER_IN4}:1080", server.url()]
    assert "upload" in lab.run("inside", curl).stdout
    assert "<title>algate</title>" in fetch(lab, "/")[1]
    assert lab.stop(started, 20) == 0


@pytest.mark.long
@pytest.mark.timeout(150)
def test_a_pinhole_is_gone_after_a_minute_even_if_we_are_dead(lab: Lab, strict_lab: Lab, server: FtpServer) -> None:
    """In one router the gateway lives on, in the other every process of it is killed."""
    other = strict_lab.vsftpd()
    alive, dead = strict_lab.start_gateway(), lab.start_gateway()
    controls = [session(strict_lab, other), session(lab, server), session(lab, server)]
    (heard, unused), (deaf, lost), (listener, kept) = [
        open_pinhole(control_lab, gateway, control)
        for control_lab, gateway, control in zip((strict_lab, lab, lab), (alive, dead, dead), controls, strict=True)
    ]
    opened = time.monotonic()
    dead.kill()

    # The kernel needs none of us: a pinhole of the dead gateway admits its peer, once.
    lab.connect("outside", *split(kept["public"])).close()
    listener.accept()[0].close()
    assert fails(lab, "outside", split(kept["public"]))

    for there, pinhole in ((lab, lost), (strict_lab, unused)):
        there.wait_for(lambda there=there: _elements(there) == 0, 75, "the pinholes to expire")  # type: ignore[misc]
        assert time.monotonic() - opened > 55
        assert fails(there, "outside", split(pinhole["public"]))
    assert alive.admin("pinholes") == []

    for sock in (heard, deaf, listener, *(control.socket for control in controls)):
        sock.close()
    assert alive.stop() == 0
    other.stop()
    dead.start(rules=False)
    assert dead.stop() == 0


def _elements(lab: Lab) -> int:
    """How many elements with a timeout the router's nft tables hold."""
    return lab.run("router", ["nft", "list", "ruleset"]).stdout.count("expires")
