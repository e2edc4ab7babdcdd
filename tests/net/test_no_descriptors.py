"""A process that has no descriptor left: it neither dies nor turns in circles, what is open goes on, it is said, and
all is served again when some are free."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.first_media import message, sdp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, SERVER4, Lab, LabError
from tests.lab.servers import FtpServer
from tests.lab.udp import Udp
from tests.net.ftp_control import open_pinhole, split
from tests.net.ftp_control import session as ftp_session
from tests.net.pcp_client import UDP, PcpClient
from tests.net.test_joints import CallSubject
from tests.net.test_quick import cpu
from tests.net.test_sip import pinholes

SPARE = 8  # descriptors that a process has besides those of its start


def start(lab: Lab, name: str, limit: int) -> Gateway:
    """A gateway one process of which has this limit: what gives up its privileges for it sets it."""
    own, real = lab.tmp / "setpriv", shutil.which("setpriv")
    own.write_text(f'#!/bin/sh\ncase "$*" in *gateway.process.{name}*) ulimit -n {limit};; esac\nexec {real} "$@"\n')
    own.chmod(0o755)
    gateway = Gateway(lab, lab.write_config(portmap={"protocols": ["pcp"]}, process={"workers": 1, "drain_timeout": 1}))
    run = lab.tmp / "algate-with-own-setpriv"
    run.write_text(f'#!/bin/sh\nexport PATH="{lab.tmp}:$PATH"\nexec {gateway.command} "$@"\n')
    run.chmod(0o755)
    gateway.command = run
    gateway.start()
    return gateway


def pid_of(gateway: Gateway, name: str) -> int:
    (row,) = [row for row in gateway.admin("status") if row["process"] == "supervisor"]
    return int(row["children"][name]["pid"])


def free(pid: int, limit: int) -> int:
    """How many more descriptors the process may open."""
    return len(set(range(limit)) - {int(number) for number in os.listdir(f"/proc/{pid}/fd")})


def invite(lab: Lab) -> None:
    """The first message of another phone."""
    lines = [f"Via: SIP/2.0/UDP {CLIENT2_4}:5060;branch=z9hG4bKy", "From: <sip:c@x>;tag=1", "To: <sip:b@x>"]
    lines += ["Call-ID: another", "CSeq: 1 INVITE", f"Contact: <sip:c@{CLIENT2_4}>", "Max-Forwards: 70"]
    with Udp(lab, "client2", CLIENT2_4, 5060) as phone:
        phone.send(message(f"INVITE sip:b@{SERVER4} SIP/2.0", lines, sdp(CLIENT2_4, 4000)), (SERVER4, 5060))


def answers(gateway: Gateway) -> bool:
    """Whether all processes do."""
    try:
        return bool(gateway.admin("pinholes"))
    except LabError:
        return False


class Hold:
    """Connections to a process's socket of the command line that say nothing, again and again: each holds a descriptor
    for two seconds. They are gone at the end of a `with` block."""

    def __init__(self, gateway: Gateway, name: str, pid: int, limit: int) -> None:
        config = tomllib.loads(gateway.config.read_text())
        self._path = str(Path(config["process"]["run_dir"]) / f"{name}.sock")
        self._gateway, self._pid, self._limit = gateway, pid, limit
        self._held: list[socket.socket] = []

    def __enter__(self) -> Hold:
        self.again()
        return self

    def again(self) -> None:
        """Until none is free."""

        def none() -> bool:
            for _ in range(4):
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)
                self._held.append(sock)
                with contextlib.suppress(OSError):  # its backlog is full
                    sock.connect(self._path)
            return free(self._pid, self._limit) == 0

        Lab.wait_for(none, 10, "no descriptor to be left")

    def __exit__(self, *_: object) -> None:
        for sock in self._held:
            sock.close()


@pytest.fixture(scope="module", autouse=True)
def default_route(lab: Lab) -> Iterator[None]:
    lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4])
    yield
    lab.run("router", ["ip", "route", "del", "default"])


@pytest.fixture(params=["broker", *(pytest.param(name, marks=pytest.mark.long) for name in ("packets", "portmap"))])
def short(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[Gateway, str, int, int]]:
    """A gateway one process of which is short of descriptors: its name, its pid and its limit."""
    name: str = request.param
    gateway = start(lab, name, 1024)
    used = {int(number) for number in os.listdir(f"/proc/{pid_of(gateway, name)}/fd")}
    assert gateway.stop() == 0
    limit = [number for number in range(1024) if number not in used][SPARE]
    gateway = start(lab, name, limit)
    try:
        yield gateway, name, pid_of(gateway, name), limit
    finally:
        assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


def test_what_is_open_goes_on(lab: Lab, short: tuple[Gateway, str, int, int], server: FtpServer) -> None:
    gateway, name, pid, limit = short
    call = CallSubject(lab, gateway, "udp")
    client = PcpClient(lab, "inside", CLIENT4, ROUTER_IN4)
    control = ftp_session(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, control)
    try:
        assert client.map(5200, suggested=5200, lifetime=3600, protocol=UDP).result == 0
        call.works()
        (media,) = pinholes(gateway, "sip.rtp")
        public = split(media["public"])
        with Hold(gateway, name, pid, limit) as hold:
            for _ in range(3):
                hold.again()
                call.near.send((SERVER4, 9100), b"out")
                assert call.far.hears(5) == b"out"
                call.far.send(public, b"in")
                assert call.near.hears(5) == b"in"
                call.wire.ask("OPTIONS", next(call.numbers))  # messages pass
                assert control.command("NOOP").startswith("200")
            hold.again()
            assert call.wire.far.getsockname()[1] == 5060
            invite(lab)  # a phone that has said nothing yet: it is served, or passes as it is
            assert call.wire.far.recvfrom(65535)[0].startswith(b"INVITE")
            used = cpu(pid)
            for _ in range(5):
                hold.again()
                lab.connect("inside", SERVER4, 21).close()
            assert cpu(pid) - used < 1
            with lab.connect("outside", *split(pinhole["public"])):  # the kernel needs nobody for that
                listener.accept()[0].close()
        gateway.wait_for_log(f"process={name} event=accept.failed")
        lab.wait_for(lambda: answers(gateway), 20, "descriptors to be free")
        call.works()
        call.end()
        assert client.map(5200, suggested=5200, lifetime=0, protocol=UDP).result == 0
        more, pinhole = open_pinhole(lab, gateway, control)
        with more, lab.connect("outside", *split(pinhole["public"])):
            more.accept()[0].close()
        assert pid_of(gateway, name) == pid
        wrong = ("Traceback", "process.died", "alg.broken")  # it is no module's fault either
        assert not [line for line in gateway.log_lines() if any(word in line for word in wrong)]
    finally:
        listener.close()
        for each in (control, client, call):
            each.close()


def test_too_few_to_start_are_told(lab: Lab) -> None:
    """The least number that is named suffices, with all processes there are; with one less nothing is begun."""
    config = lab.write_config(portmap={"protocols": ["pcp", "upnp"]}, process={"workers": 3, "drain_timeout": 1})
    gateway = Gateway(lab, config)
    algate, run = gateway.command, lab.tmp / "algate-with-few"

    def limit(number: int) -> None:
        run.write_text(f'#!/bin/sh\nulimit -n {number}\nexec {algate} "$@"\n')
        run.chmod(0o755)

    gateway.command = run
    limit(40)
    done = lab.run("router", [run, "run", "-c", config], check=False)
    found = re.fullmatch(
        r"algate: 40 descriptors for each process are too few to start: (\d+) at the least, .*", done.stderr.strip()
    )
    assert found is not None, done.stderr
    assert done.returncode == 1
    least = int(found[1])
    limit(least - 1)
    assert lab.run("router", [run, "run", "-c", config], check=False).returncode == 1
    limit(least)
    gateway.start()
    try:
        lab.wait_for(lambda: len(gateway.admin("status")) >= 6, 10, "all processes to answer")
    finally:
        gateway.stop()
