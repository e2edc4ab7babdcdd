"""A disk that is full, where the log is written: lines are lost, and nothing else."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import Lab
from tests.lab.servers import FtpServer
from tests.net.steady_load import Greeter, SteadyLoad
from tests.net.test_joints import CallSubject, FtpSubject
from tests.net.test_quick import cpu


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """A disk of 128 KiB."""
    path = lab.tmp / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk(lab: Lab, server: FtpServer, greeter: Greeter, small_disk: Path) -> None:
    """Lines of the log are lost, and nothing else; when there is room, it goes on."""
    config = lab.write_config(
        process={"workers": 1, "drain_timeout": 1},
        log={"level": "debug"},
    )
    gateway = Gateway(lab, config)
    gateway.log = small_disk / "log"
    gateway.start()
    try:
        call, ftp = CallSubject(lab, gateway, "udp"), FtpSubject(lab, gateway, server)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with contextlib.suppress(OSError), gateway.log.open("ab", buffering=0) as file:
            while True:
                file.write(b".")
        before = gateway.log.stat().st_size
        pids = gateway.pids()
        used = [cpu(pid) for pid in pids]
        with SteadyLoad(lab, greeter, clients=2) as load:
            load.more(50)
            call.works()
            ftp.works()
        assert load.errors == []
        assert gateway.log.stat().st_size == before
        gateway.algate("reload")
        assert gateway.pids() == pids
        assert max(cpu(pid) - then for pid, then in zip(pids, used, strict=True)) < 5
        filler.unlink()
        seen = len(gateway.log_lines())
        call.works()
        for one in (call, ftp):
            one.end()
            one.close()
        gateway.wait_for_log("event=", after=seen)
        assert gateway.pids() == pids
    finally:
        assert gateway.stop() == 0
