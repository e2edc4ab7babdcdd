"""Random handshakes: each ends in a clean close, and nothing is left of any.

Many through the front without a network (a million by `make test-long`), and some over the wire to a running gateway
(FUZZ_HANDSHAKES; more take long). FUZZ_SEED sets another seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.lab import ROUTER_IN4, Lab

ROOT = Path(__file__).parent.parent.parent
COUNT = int(os.environ.get("FUZZ_HANDSHAKES", "2000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


@pytest.mark.parametrize(
    "count", [100_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_many_through_the_front(count: int) -> None:
    argv = [sys.executable, "-m", "tests.fuzz.million", str(SEED), str(count)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"{count} handshakes" in done.stdout
    assert not done.stderr


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_over_the_wire() -> None:
    with Lab() as lab:
        lab.run("inside", ["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=2048 65000"])
        gateway = lab.start_gateway(lab.write_config(process={"workers": 1}, dns={"servers": []}))
        pids = sorted(gateway.pids())
        argv = [sys.executable, "-m", "tests.fuzz.random_handshakes", ROUTER_IN4, "1080", str(SEED), str(COUNT)]
        done = lab.run("inside", argv, timeout=3500, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]

        def gone() -> bool:
            rows = [row for row in gateway.admin("status") if str(row["process"]).startswith("worker")]
            return all(row["flows"] == 0 and row["handling"] == 0 for row in rows) and gateway.admin("pinholes") == []

        lab.wait_for(gone, 30, "everything to be gone")
        assert sorted(gateway.pids()) == pids, "a process has died"
        log = gateway.log.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 200 :][:3000]
        assert gateway.stop() == 0
