"""A router above that lies, floods, dribbles or says nothing (portmap.upstream): clients inside are served all the
same, within bounded time and memory; an honest router is heard beside a forger; and what asks may be killed."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab import upper
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, Lab
from tests.lab.udp import Udp
from tests.lab.upper import ROUTER, UPPER_IN, UPPER_OUT
from tests.net import pcp_client
from tests.net.pcp_client import Answer, PcpClient
from tests.net.test_portmap_restart import pid_of
from tests.net.test_portmap_upstream import above, start, works

PROGRAM = Path(upper.__file__).with_name("hostile_router.py")
LONGEST = 12.0
"""Seconds within which whoever asks for a mapping has an answer, whatever the router above does."""

MOST_MEMORY = 80.0  # megabytes of the process at its largest

# What is tried always; the others are for `make test-long`.
USUAL = [
    "pcp flood", "pcp flood-at-maps", "pcp nonces", "pcp addresses", "pcp refusals", "pcp silent-to-maps",
    "natpmp addresses", "upnp dribble", "upnp then-quick-dribble", "upnp then-endless-body", "upnp giant", "upnp bomb",
    "upnp redirect-inside", "upnp control-of-no-ascii", "upnp then-slow-taken", "upnp many-places",
]  # fmt: skip
LONG = [
    "pcp epochs", "pcp ports", "pcp unknown-results", "pcp nothing-given", "pcp loopback", "pcp reserved", "pcp ipv6",
    "pcp a-second", "pcp for-ever", "pcp cut", "pcp other-versions", "pcp a-thousand-each",
    "natpmp flood", "natpmp epochs", "natpmp ports", "natpmp unknown-results", "natpmp loopback", "natpmp cut",
    "upnp quick-dribble", "upnp endless-head", "upnp endless-chunks", "upnp a-long-length", "upnp deep", "upnp wide",
    "upnp silent", "upnp closing", "upnp redirect", "upnp control-elsewhere", "upnp control-with-lines",
    "upnp no-address", "upnp addresses", "upnp no-status", "upnp places-elsewhere", "upnp answer-flood",
    "upnp then-dribble", "upnp then-endless-head", "upnp then-endless-chunks", "upnp then-giant", "upnp then-bomb",
    "upnp then-silent", "upnp then-closing", "upnp then-redirect", "upnp then-taken", "upnp then-no-leases",
    "upnp then-no-codes", "upnp then-no-status",
]  # fmt: skip


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(logs=tmp_path_factory.mktemp("hostile")) as lab:
        upper.build(lab)
        yield lab


@contextlib.contextmanager
def hostile(lab: Lab, how: str) -> Iterator[Path]:
    """A hostile router above; its log, in which it says at its end what it was asked."""
    log = lab.logs / f"{how.replace(' ', '-')}.log"
    process = lab.popen("upper", [sys.executable, PROGRAM, how, UPPER_IN], log=log)
    lab.wait_for(lambda: "ready" in log.read_text(), 10, f"{how} to be there")
    try:
        yield log
    finally:
        lab.stop(process)


class Asking:
    """A client that asks once for a mapping, and waits for the answer in a thread of its own."""

    def __init__(self, client: PcpClient, port: int) -> None:
        self.answer: Answer | None = None
        self._client = client
        client.sock.settimeout(LONGEST)
        client.sock.sendto(client.request(port, suggested=port), client.server)
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.answer = pcp_client.read(self._client.sock.recv(2000))

    def has_ended(self, within: float) -> bool:
        self._thread.join(within)
        return not self._thread.is_alive()

    def result(self) -> Answer:
        self._thread.join()
        assert self.answer is not None, f"no answer within {LONGEST} s"
        return self.answer


def is_answered(witness: PcpClient) -> None:
    """Another client, which asks for the epoch, is answered within two seconds, at the first question."""
    witness.sock.settimeout(2.0)
    witness.sock.sendto(b"\2\0" + bytes(6) + pcp_client.packed(witness.own), witness.server)
    assert pcp_client.read(witness.sock.recv(2000)).result == 0


def largest(pid: int) -> float:
    """Megabytes that a process has had at its largest."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def comes_here(lab: Lab, port: int) -> bool:
    """Whether a datagram of the router above comes through this router's mapping, whatever that one does itself."""
    with Udp(lab, "inside", CLIENT4, port) as near, Udp(lab, "upper", UPPER_IN) as far:
        near.sock.settimeout(2)
        far.send(b"in", (ROUTER, port))
        try:
            return near.receive()[0] == b"in"
        except TimeoutError:
            return False


def is_shut(lab: Lab, port: int) -> bool:
    return not comes_here(lab, port)


def is_past(moment: float) -> bool:
    return time.monotonic() >= moment


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [*USUAL, *(pytest.param(how, marks=pytest.mark.long) for how in LONG)])
def test_clients_are_served_whatever_it_does(double: Lab, how: str) -> None:
    inside = double.listen("inside", CLIENT4, 8080)  # where it would send whoever believes it
    inside.setblocking(False)
    with inside, hostile(double, how):
        began = time.monotonic()
        gateway = start(double, lifetime="120-7200")
        portmap = pid_of(gateway, "portmap")
        try:
            with (
                PcpClient(double, "inside", CLIENT4, ROUTER_IN4) as client,
                PcpClient(double, "client2", CLIENT2_4, ROUTER_IN4) as witness,
            ):
                for port in (5000, 5001):
                    asking = Asking(client, port)
                    while not asking.has_ended(0.2):
                        is_answered(witness)
                    answer = asking.result()
                    assert answer.result in (0, 2, 7, 8, 11), answer
                    assert answer.lifetime <= (7200 if answer.result == 0 else 1800)
                    if answer.result == 0:
                        assert socket.inet_aton(answer.address)[0] in (1, 100)  # what it may be, or this router's own
                        assert comes_here(double, port)
                    else:
                        double.wait_for(partial(is_shut, double, port), 6, "what is refused to be shut")
                is_answered(witness)
                assert client.map(5001, lifetime=0).result == 0
                assert not comes_here(double, 5001)
                double.wait_for(partial(is_past, began + 6), 10, "it to have some time for its lies")
                is_answered(witness)
                client.map(0, protocol=0, lifetime=0)
            assert pid_of(gateway, "portmap") == portmap, "the process was replaced"
            assert largest(portmap) < MOST_MEMORY
            said = gateway.log_lines()
            assert not [line for line in said if "Traceback" in line or "Error" in line], said
            assert len(said) < 80, said  # it does not fill the log, either
            with pytest.raises(BlockingIOError):
                inside.accept()
        finally:
            assert gateway.stop() == 0, double.tail_of_logs()


def asked(log: Path) -> dict[str, int]:
    """What a hostile router was asked, as it says at its end."""
    said: dict[str, int] = ast.literal_eval(log.read_text().splitlines()[-1])
    return said


@pytest.mark.parametrize("how", ["pcp addresses", "natpmp addresses"])
def test_another_address_each_time_is_not_followed_for_ever(double: Lab, how: str) -> None:
    with hostile(double, how) as log:
        gateway = start(double, lifetime="120-7200")
        try:
            with PcpClient(double, "inside", CLIENT4, ROUTER_IN4) as client:
                for port in range(5000, 5004):
                    assert asked_again(client, port).result == 0
                until = time.monotonic() + 6
                double.wait_for(partial(is_past, until), 10, "it to be followed")
                seen = len(gateway.log_lines())
                assert client.map(5000, lifetime=0).result == 0
                gateway.wait_for_log(r"pinhole\.close .*:5000", 5, seen)
                until = time.monotonic() + 3
                double.wait_for(partial(is_past, until), 10, "the end to be told above")
                moved = [line for line in gateway.log_lines() if "upstream_moved" in line]
                assert len(moved) <= 1, moved
        finally:
            assert gateway.stop() == 0, double.tail_of_logs()
    # Four to begin with, as many again, one that ends, and one or two that were looked at.
    assert 4 <= asked(log)["pcp 1" if how.startswith("pcp") else "natpmp 1"] <= 16


def test_what_was_answered_too_late_is_ended_above(double: Lab) -> None:
    """The client was refused, and the router above may have opened the port all the same."""
    with hostile(double, "pcp late") as log:
        gateway = start(double, lifetime="120-7200")
        try:
            with PcpClient(double, "inside", CLIENT4, ROUTER_IN4) as client:
                seen = len(gateway.log_lines())
                assert Asking(client, 5000).result().result == 7
                assert Asking(client, 5000).result().result == 7  # at once, and without a question
                gateway.wait_for_log("pinhole.close .*:5000", 5, seen)
                until = time.monotonic() + 3
                double.wait_for(partial(is_past, until), 10, "the end to be told above")
        finally:
            assert gateway.stop() == 0, double.tail_of_logs()
    assert asked(log)["pcp 1"] == 6  # three times for its address, three times for the client
    assert asked(log)["pcp end"] >= 1


# --- forgers on its link ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["algate", "miniupnpd"])
def test_an_honest_router_is_heard_beside_a_forger(tmp_path: Path, who: str) -> None:
    """Somebody on the link sees each question and sends wrong answers in the router's name, as many as it can."""
    with Lab(logs=tmp_path) as lab:
        upper.build(lab, forward="DROP" if who == "algate" else "ACCEPT")
        with contextlib.ExitStack() as stack:
            if who == "algate":
                upper_one = upper.start_algate(lab)
                stack.callback(upper_one.stop)
            else:
                stack.enter_context(upper.miniupnpd(lab, pcp=True))
            log = lab.logs / "forger.log"
            forger = lab.popen("upper", [sys.executable, PROGRAM, "forger", UPPER_IN], log=log)
            stack.callback(lab.stop, forger)
            lab.wait_for(lambda: "ready" in log.read_text(), 10, "the forger to be there")
            gateway = start(lab)
            try:
                with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
                    answer = Asking(client, 5000).result()
                    assert (answer.result, answer.address, answer.port) == (0, UPPER_OUT, 5000)
                    assert works(lab, 5000, 5000)
                    lab.stop(forger)
                    assert int(log.read_text().split()[-1]) > 1000  # it has done what it could
                assert not [line for line in gateway.log_lines() if "Traceback" in line]
            finally:
                assert gateway.stop() == 0, lab.tail_of_logs()


# --- killed while it asks ---------------------------------------------------------------------------------------------


def kill(gateway: Gateway, pid: int) -> None:
    """Kill the process, and wait for the next one to go on."""
    seen = len(gateway.log_lines())
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log(r"portmap\.recovered", 15, seen)
    gateway.wait_for_log(r"portmap\.upstream ", 15, seen)


def asked_again(client: PcpClient, port: int) -> Answer:
    """The answer to a request; those to others before it may still come."""
    client.sock.settimeout(LONGEST)
    client.sock.sendto(client.request(port, suggested=port), client.server)
    while (answer := pcp_client.read(client.sock.recv(2000))).inside != port:
        pass
    return answer


def mappings(gateway: Gateway) -> list[str]:
    """The targets of all that clients have asked for."""
    return sorted(hole["target"] for hole in gateway.admin("pinholes") if hole["reason"].startswith("map."))


def test_a_mapping_that_the_killed_process_was_asking_for_can_be_ended(double: Lab) -> None:
    with hostile(double, "pcp slow"):
        gateway = start(double)
        pid = pid_of(gateway, "portmap")
        try:
            with PcpClient(double, "inside", CLIENT4, ROUTER_IN4) as client:
                client.sock.sendto(client.request(5000, suggested=5000), client.server)
                double.wait_for(lambda: mappings(gateway), 5, "the mapping to be open here")
                kill(gateway, pid)
                ended = client.map(5000, lifetime=0)
                assert ended.result == 0
                assert mappings(gateway) == []
                assert not comes_here(double, 5000)
        finally:
            assert gateway.stop() == 0, double.tail_of_logs()


def test_the_next_process_asks_for_the_same_port_above(double: Lab) -> None:
    """The port that was wanted is another host's, and the process is killed before it could note which one it got."""
    with hostile(double, "upnp taken-then-slow") as log:
        gateway = start(double)
        pid = pid_of(gateway, "portmap")
        try:
            with PcpClient(double, "inside", CLIENT4, ROUTER_IN4) as client:
                client.sock.sendto(client.request(5000, suggested=5000), client.server)
                double.wait_for(
                    lambda: log.read_text().count("AddPortMapping") == 2, 10, "another port to be asked for"
                )
                kill(gateway, pid)
                answer = Asking(client, 5000).result()
                assert (answer.result, answer.address) == (0, UPPER_OUT)
                assert answer.port != 5000
                asked = set(re.findall(r"AddPortMapping (\d+)", log.read_text()))
                assert asked == {"5000", str(answer.port)}
        finally:
            assert gateway.stop() == 0, double.tail_of_logs()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", ["pcp", "natpmp", "upnp"])
def test_kills_in_the_middle_leave_each_mapping_once(double: Lab, protocol: str) -> None:
    above_it = upper.start_algate(double, portmap={"protocols": [protocol]})
    gateway = start(double)
    ports = range(5200, 5208)
    try:
        with PcpClient(double, "inside", CLIENT4, ROUTER_IN4) as client:
            for moment in (0.0, 0.01, 0.05, 0.2):
                pid = pid_of(gateway, "portmap")
                for port in ports:
                    client.sock.sendto(client.request(port, suggested=port), client.server)
                began = time.monotonic()
                double.wait_for(partial(is_past, began + moment), 5, "the moment")
                kill(gateway, pid)
                for port in ports:
                    answer = asked_again(client, port)
                    assert (answer.result, answer.address, answer.port) == (0, UPPER_OUT, port)
                assert mappings(gateway) == [f"{CLIENT4}:{port}" for port in ports]
                holes = [hole for hole in above_it.admin("pinholes") if hole["kind"] == "mapping"]
                assert sorted(hole["target"] for hole in holes) == [f"{ROUTER}:{port}" for port in ports]
                assert works(double, ports[0], ports[0])
                client.map(0, protocol=0, lifetime=0)
                double.wait_for(lambda: above(above_it) == set(), 10, "the ends to be told above")
                assert mappings(gateway) == []
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0
