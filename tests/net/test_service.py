"""As the systemd unit has it: a supervisor that is not root and has the unit's capabilities."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import gateway.supervisor
from gateway.observe.admin import ask
from tests.lab import firewall
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, Lab

UNIT = Path(gateway.supervisor.__file__).parent / "install" / "systemd" / "algate.service"
SUPERVISOR = 54321  # a user that nobody is


class Service(NamedTuple):
    """A gateway as the unit starts it."""

    gateway: Gateway
    process: subprocess.Popen[bytes]
    log: Path
    run_dir: Path


@pytest.fixture
def service(lab: Lab) -> Iterator[Service]:
    run_dir = lab.tmp / "service-run"
    run_dir.mkdir()
    os.chown(run_dir, SUPERVISOR, SUPERVISOR)
    config = lab.write_config(process={"run_dir": str(run_dir), "workers": 1})
    capabilities = [
        "+" + name.removeprefix("CAP_").lower()
        for name in re.findall(r"CAP_\w+", re.findall(r"(?m)^AmbientCapabilities=(.*)$", UNIT.read_text())[0])
    ]
    given = ",".join(["-all", *capabilities])
    user = [f"--reuid={SUPERVISOR}", f"--regid={SUPERVISOR}", "--clear-groups", "--no-new-privs"]
    gateway = Gateway(lab, config)
    gateway.algate("rules", "apply")
    log = lab.logs / f"service-{time.monotonic_ns()}.log"
    argv: list[str | Path] = ["setpriv", *user]
    argv += [f"--inh-caps={given}", f"--ambient-caps={given}", f"--bounding-set={given}"]
    # The checkout at a place that everybody may look at, as an installed program is: it may be below a private home.
    root, public = Path(__file__).parents[2], lab.tmp / "checkout"
    public.mkdir(exist_ok=True)
    python = Path(sys.executable)
    if python.is_relative_to(root):
        python = public / python.relative_to(root)
    argv += [python, "-P", "-c", "from gateway.cli.main import main; main()", "run", "-c", config]
    bind: list[str | Path] = ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', root, public]
    process = lab.popen("router", [*bind, *argv], log=log, env={"PYTHONPATH": str(public)})
    try:
        lab.wait_for(lambda: "event=ready" in log.read_text() or process.poll() is not None, 15, "it to be ready")
        assert "event=ready" in log.read_text(), log.read_text()
        yield Service(gateway, process, log, run_dir)
        assert lab.stop(process, 20) == 0
    finally:
        lab.stop(process, 20)
        gateway.algate("rules", "remove")
        shutil.rmtree(run_dir)


def test_the_units_user_and_capabilities_are_enough(lab: Lab, service: Service) -> None:
    server = lab.vsftpd()
    rows = {row["process"]: row for row in service.gateway.admin("status")}
    users = {name: _user(row["pid"]) for name, row in rows.items()}
    assert users["supervisor"] == SUPERVISOR
    assert len({SUPERVISOR, 0, users["broker"], users["worker-0"]}) == 4
    # Its pinholes are those of the kernel, and active FTP goes through one.
    curl = ["curl", "-sS", "--disable-epsv", "--disable-eprt", "--ftp-port", "-", server.url()]
    assert "upload" in lab.run("inside", curl).stdout
    assert re.search(r"process=broker event=pinhole.open .*reason=ftp.port", service.log.read_text())
    assert "upload" in lab.run("inside", ["curl", "-sS", "--socks5", f"{ROUTER_IN4}:1080", server.url()]).stdout
    server.stop()


def test_it_sees_the_rules_and_the_queue_and_puts_back_what_others_remove(lab: Lab, service: Service) -> None:
    def samples() -> dict[str, float]:
        (row,) = ask(str(service.run_dir / "supervisor.sock"), "metrics", 5.0)
        return {"/".join(name): value for *name, value in row["samples"]}

    lab.wait_for(lambda: samples().get("algate_rules_applied") == 1.0, 5, "the rules to be seen")
    found = samples()
    assert found["algate_queue_waiting"] == 0
    assert found["algate_queue_dropped_total/queue"] == found["algate_queue_dropped_total/user"] == 0
    assert _user(service.process.pid) == SUPERVISOR
    assert _groups(service.process.pid) == {SUPERVISOR}  # it was of root's group for a moment
    lab.run("router", ["nft", "flush", "ruleset"])
    lab.wait_for(lambda: "event=rules.restored" in service.log.read_text(), 3, "the rules to be put back")
    lab.wait_for(lambda: "event=broker.table_gone" in service.log.read_text(), 3, "the table to be put back")
    lab.wait_for(lambda: samples().get("algate_rules_applied") == 1.0, 3, "the rules to be seen again")
    firewall.load(lab)


def _groups(pid: int) -> set[int]:
    found = re.search(r"^Gid:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return set(map(int, found[1].split()))


def _user(pid: int) -> int:
    found = re.search(r"^Uid:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])
