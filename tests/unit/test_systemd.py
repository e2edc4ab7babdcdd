"""The files for systemd, as systemd's own programs see them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gateway.supervisor
from gateway.host.privilege import is_privileged
from gateway.process.confine import CALLS

FILES = Path(gateway.supervisor.__file__).parent / "install" / "systemd"
UNIT = FILES / "algate.service"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_its_exposure_is_at_most_two() -> None:
    said = run("systemd-analyze", "security", "--offline=true", "--threshold=20", UNIT)
    found = re.search(r"Overall exposure level for algate.service: ([0-9.]+)", said)
    assert found
    assert float(found[1]) <= 2.0


def test_the_unit_is_understood(tmp_path: Path) -> None:
    """All of it: systemd warns of what it does not know. Programs and pages are those of this host."""
    text = re.sub(r"(?m)^(Exec\w+=[-!]*)algate\b.*", r"\1/bin/true", UNIT.read_text())
    unit = tmp_path / "algate.service"
    unit.write_text(re.sub(r"(?m)^Documentation=.*\n", "", text))
    assert run("systemd-analyze", "verify", "--recursive-errors=no", unit) == ""


def calls_of(name: str) -> set[str]:
    """The system calls of a set of systemd's, or the one call that has this name."""
    if not name.startswith("@"):
        return {name}
    lines = run("systemd-analyze", "--no-pager", "syscall-filter", name).splitlines()[1:]
    return set().union(*(calls_of(line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")))


def test_the_unit_permits_the_calls_that_its_processes_keep() -> None:
    """What systemd counts among the usual calls differs by release: before 256 `seccomp` was none, and no process
    started."""
    allowed: set[str] = set()
    for names in re.findall(r"(?m)^SystemCallFilter=(.*)$", UNIT.read_text()):
        found = set().union(*(calls_of(name) for name in names.removeprefix("~").split()))
        allowed = allowed - found if names.startswith("~") else allowed | found
    assert {*CALLS, "seccomp"} - allowed <= {"mincore"}  # the C library's malloc_info alone; it may fail


def test_users_and_directories(tmp_path: Path) -> None:
    (tmp_path / "etc" / "algate").mkdir(parents=True)
    (tmp_path / "etc" / "algate" / "users").write_text("")
    sysusers, tmpfiles = tmp_path / "usr/lib/sysusers.d", tmp_path / "usr/lib/tmpfiles.d"
    for directory, name in ((sysusers, "algate.sysusers"), (tmpfiles, "algate.tmpfiles")):
        directory.mkdir(parents=True)
        shutil.copy(FILES / name, directory / "algate.conf")
    run("systemd-sysusers", f"--root={tmp_path}", "algate.conf")
    passwd = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    users = {line[0]: int(line[2]) for line in passwd}
    assert users.keys() == {"algate", "algate-broker", "algate-worker"}
    assert all(line[-1] == "/usr/sbin/nologin" for line in passwd)
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", "algate.conf")
    assert (tmp_path / "etc" / "algate" / "users").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "etc" / "algate" / "users").stat().st_gid == users["algate"]


def test_a_broken_configuration_is_tried_once() -> None:
    text = UNIT.read_text()
    assert "\nRestartPreventExitStatus=2\n" in text  # what `algate run` ends with then
    assert "ExecStartPre" not in text  # its exit code would not count


def test_what_counts_as_privileged() -> None:
    names = re.findall(r"CAP_\w+", re.findall(r"(?m)^AmbientCapabilities=(.*)$", UNIT.read_text())[0])
    bits = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_ADMIN": 12}
    given = sum(1 << bits[name] for name in names)
    assert is_privileged(f"Name:\tx\nCapPrm:\t0\nCapEff:\t{given:016x}\nCapBnd:\t0\n")
    assert is_privileged("CapEff:\t000001ffffffffff\n")
    assert not is_privileged(f"CapEff:\t{given & ~(1 << 12):016x}\n")
    assert not is_privileged("CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n")
