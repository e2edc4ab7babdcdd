"""As the systemd unit has it: a supervisor that is not root and has the unit's capabilities."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import gateway.supervisor
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, Lab

UNIT = Path(gateway.supervisor.__file__).parent / "install" / "systemd" / "algate.service"
SUPERVISOR = 54321  # a user that nobody is


def test_the_units_user_and_capabilities_are_enough(lab: Lab) -> None:
    server = lab.vsftpd()
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
    service = Gateway(lab, config)
    service.algate("rules", "apply")
    log = lab.logs / "service.log"
    argv: list[str | Path] = ["setpriv", *user]
    argv += [f"--inh-caps={given}", f"--ambient-caps={given}", f"--bounding-set={given}"]
    argv += [sys.executable, "-P", "-c", "from gateway.cli.main import main; main()", "run", "-c", config]
    root = str(Path(__file__).parents[2])
    process = lab.popen("router", argv, log=log, env={"PYTHONPATH": root})
    try:
        lab.wait_for(lambda: "event=ready" in log.read_text() or process.poll() is not None, 15, "it to be ready")
        assert "event=ready" in log.read_text(), log.read_text()
        rows = {row["process"]: row for row in service.admin("status")}
        users = {name: _user(row["pid"]) for name, row in rows.items()}
        assert users["supervisor"] == SUPERVISOR
        assert len({SUPERVISOR, 0, users["broker"], users["worker-0"]}) == 4
        # Its pinholes are those of the kernel, and active FTP goes through one.
        curl = ["curl", "-sS", "--disable-epsv", "--disable-eprt", "--ftp-port", "-", server.url()]
        assert "upload" in lab.run("inside", curl).stdout
        assert re.search(r"process=broker event=pinhole.open .*reason=ftp.port", log.read_text())
        assert "upload" in lab.run("inside", ["curl", "-sS", "--socks5", f"{ROUTER_IN4}:1080", server.url()]).stdout
        assert lab.stop(process, 20) == 0
    finally:
        lab.stop(process, 5)
        service.algate("rules", "remove")
    server.stop()


def _user(pid: int) -> int:
    found = re.search(r"^Uid:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])
