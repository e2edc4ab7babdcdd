"""The gateway under load: nothing is left after many flows, and a dead worker takes down only its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import measures
from tests.bench.measures import Load
from tests.bench.peers import PORT, Peer
from tests.lab.gateway import Gateway
from tests.lab.lab import SERVER4, Lab

SHORT = int(os.environ.get("SOAK_FLOWS", "50000"))
LONG = 2000
BACK = 0.6  # of the rate before: other work on this machine changes it too
BOTH = [
    Peer("socks", "socks", lambda _lab: lambda: None),
    Peer("transparent", "transparent", lambda _lab: lambda: None),
]


@pytest.fixture(scope="module")
def load(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    program = tmp_path_factory.mktemp("load") / "load"
    source = Path(measures.__file__).with_name("load.c")
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, source], check=True)
    measures.prepare(lab)
    server = lab.popen("outside", [program, "serve", str(PORT)])
    yield Load(lab, program, 2)
    lab.stop(server)


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(transparent={"ports": [PORT]}, process={"drain_timeout": 1}))
    yield gateway
    assert gateway.stop() == 0


def workers(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {row["process"]: row for row in gateway.admin("status") if row["process"].startswith("worker-")}


def quiet(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """What each worker holds when no flow is live: descriptors, watchers, greenlets of connections, KiB of memory."""
    gateway.lab.wait_for(lambda: not gateway.admin("flows"), 20, "the flows to end")
    gateway.lab.wait_for(
        lambda: all(row["handling"] == 0 for row in workers(gateway).values()), 10, "the handshakes to end"
    )
    found = {}
    for name, row in workers(gateway).items():
        status = Path(f"/proc/{row['pid']}/status").read_text()
        rss = int(status.split("VmRSS:")[1].split()[0])
        fds = len(os.listdir(f"/proc/{row['pid']}/fd"))
        found[name] = {"fds": fds, "watchers": row["watchers"], "rss": rss, "pid": row["pid"]}
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_leaves_nothing(load: Load, gateway: Gateway) -> None:
    for peer in BOTH:  # caches, pools and pipes are filled
        assert load.client("rate", peer, 100, 1)["done"] > 0
        with load.held(peer, LONG // 2) as opened:
            assert opened == LONG // 2
    before = quiet(gateway)
    done, began = 0, time.monotonic()
    with load.held(BOTH[0], LONG // 2) as first, load.held(BOTH[1], LONG // 2) as second:
        assert first == second == LONG // 2
        while done < SHORT:
            for peer in BOTH:
                done += load.client("rate", peer, 100, 4)["done"]
        assert sum(row["flows"] for row in workers(gateway).values()) >= LONG
    took = time.monotonic() - began
    after = quiet(gateway)
    print(f"{done} short flows beside {LONG} long ones in {took:.0f} s; before {before}, after {after}")
    for name, row in after.items():
        assert row["pid"] == before[name]["pid"]
        assert row["watchers"] == before[name]["watchers"]
        assert row["fds"] <= before[name]["fds"] + 16  # the pool keeps up to eight pipes
        assert row["rss"] <= before[name]["rss"] * 1.1 + 4096
    assert gateway.admin("pinholes") == []
    assert not [line for line in gateway.log_lines() if "Traceback" in line or "level=error" in line]


@pytest.mark.slow
def test_a_worker_killed_under_load(lab: Lab, load: Load, gateway: Gateway) -> None:
    """The other one's flows go on, and the rate is back within a second."""
    flows = []
    for _ in range(40):
        sock = lab.connect("inside", SERVER4, PORT)
        sock.sendall(b"E")
        flows.append(sock)
    lab.wait_for(lambda: len(gateway.admin("flows")) == len(flows), 5, "the flows to be there")
    worker_of = {row["client"].rpartition(":")[2]: row["id"][:2] for row in gateway.admin("flows")}
    victim = workers(gateway)["worker-0"]["pid"]
    # Where others want the processors too, a start takes what it takes: then the limit is a multiple of one.
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import gateway.process.worker"], check=True)
    alone = time.monotonic() - began
    said: list[dict[str, Any]] = []
    driver = threading.Thread(target=lambda: said.append(load.client("rate", BOTH[0], 50, 6)))
    driver.start()
    time.sleep(2.5)  # of load, so that there is a rate to compare with
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    driver.join()
    made, failed = said[0]["tenths"], said[0]["failures"]
    dead = int((killed - said[0]["begin"]) * 10)  # the tenth of a second in which it died
    usual = statistics.median(made[5:dead])
    back = next((n for n in range(dead + 1, len(made)) if made[n] >= usual * BACK), len(made))
    after = statistics.median(made[back:] or [0])
    print(
        f"{usual * 10:.0f} connections/s before; back after {back - dead - 1} to {back - dead} tenths of a second"
        f" (an import takes {alone:.2f} s); {after * 10:.0f}/s after; {sum(failed)} failed;"
        f" in tenths: {made[dead - 2 : back + 3]}"
    )
    assert back - dead <= 10 * max(1, 3 * alone), json.dumps(made)
    assert after >= usual * BACK, json.dumps(made)
    assert sum(failed) <= 50, json.dumps(failed)  # those that the dead one had in its hands
    assert workers(gateway)["worker-0"]["pid"] != victim
    survivors = 0
    for sock in flows:
        sock.settimeout(5)
        if worker_of[str(sock.getsockname()[1])] == "w1":
            survivors += 1
            sock.sendall(b"still there")
            assert sock.recv(64) == b"still there"
        else:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(64) == b""
        sock.close()
    assert 0 < survivors < len(flows)
