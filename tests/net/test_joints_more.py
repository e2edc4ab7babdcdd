"""More of what a router goes through in the middle of calls: processes that stand for three seconds, and reloads
without end. `test_joints.py` has the others."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import SERVER4, Lab
from tests.lab.servers import FtpServer
from tests.net.steady_load import Greeter, SteadyLoad
from tests.net.test_joints import SUBJECTS, CallSubject, FtpSubject, pid_of


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4])
    config = lab.write_config(
        portmap={"protocols": ["pcp"]}, process={"workers": 1}, alg={"rtsp": {"streams": 4}, "sip": {"rate": 2000}}
    )
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []
    lab.run("router", ["ip", "route", "del", "default"])


@pytest.mark.parametrize("name", ["broker", "packets", "portmap", "worker-0", "supervisor"])
@pytest.mark.parametrize("subject", ["call over UDP", pytest.param("FTP", marks=pytest.mark.long), "mapping"])
@pytest.mark.long
def test_a_process_that_stands_for_three_seconds(
    lab: Lab, gateway: Gateway, server: FtpServer, name: str, subject: str
) -> None:
    """Nobody is replaced, and everything goes on."""
    pid = pid_of(gateway, name)
    one = SUBJECTS[subject](lab, gateway, server)
    try:
        one.works()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(3)
        finally:
            os.kill(pid, signal.SIGCONT)
        lab.wait_for(lambda: pid_of(gateway, name) == pid, 5, "it to answer")
        one.works()
        one.end()
    finally:
        one.close()
    assert pid_of(gateway, name) == pid


def reloads(gateway: Gateway, after: int) -> int:
    return sum(bool(re.search(r" event=reload ", line)) for line in gateway.log_lines()[after:])


def test_reloads_without_end(lab: Lab, gateway: Gateway, server: FtpServer, greeter: Greeter) -> None:
    """SIGHUP a hundred times a second, as of a script that has gone wild: what goes on goes on, clients are served, and
    when it ends no long line of reloads is left."""
    call, ftp = CallSubject(lab, gateway, "udp"), FtpSubject(lab, gateway, server)
    pids, seen = gateway.pids(), len(gateway.log_lines())
    try:
        with SteadyLoad(lab, greeter, clients=2) as load:
            for turn in range(300):
                os.kill(gateway.process.pid, signal.SIGHUP)
                if turn % 50 == 0:
                    call.works()
                time.sleep(0.01)
            done = reloads(gateway, seen)
            load.more(20)
            gateway.algate("reload")  # which does not wait for hundreds of others
            assert reloads(gateway, seen) - done < 10
        assert load.errors == []
        call.works()
        ftp.works()
        for one in (call, ftp):
            one.end()
        assert sorted(gateway.pids()) == sorted(pids)
    finally:
        for one in (call, ftp):
            one.close()
