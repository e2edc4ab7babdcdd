"""nft that takes long, or fails, on a router that is busy: the broker lives, what is open stays known, and all of it is
served again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tomllib
from collections.abc import Iterator

import pytest
import tomli_w

from tests.lab import firewall
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_control import Control, open_pinhole, split
from tests.net.ftp_control import session as ftp_session

LONG = 13  # seconds: more than the ten for which a process may say nothing


class Nft:
    """What the gateway's processes find as nft: the real one, but for what `says` says. Everybody else's is as ever."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._takes, self._fails = lab.tmp / "nft-takes", lab.tmp / "nft-fails"
        real, own = lab.tmp / "real-nft", lab.tmp / "own-nft"
        shutil.copy(shutil.which("nft") or "/usr/sbin/nft", real)
        own.write_text(
            f"""#!/bin/sh
if [ "$(id -u)" != 0 ]; then  # the broker's
    [ -e {self._takes} ] && sleep "$(cat {self._takes})"
    [ -e {self._fails} ] && exit 1
fi
exec {real} "$@"
"""
        )
        self.own = own
        self.run = lab.tmp / "algate-with-own-nft"
        self.run.write_text(
            f"""#!/bin/sh
[ "$1" = run ] && mount --bind {own} "$(command -v nft)"  # in the mount namespace that `ip netns exec` makes
exec {Gateway(lab, lab.write_config()).command} "$@"
"""
        )
        for program in (own, self.run):
            program.chmod(0o755)

    def takes(self, seconds: int) -> None:
        self._takes.unlink(missing_ok=True)
        if seconds:
            self._takes.write_text(str(seconds))

    def fails(self, does: bool) -> None:
        self._fails.unlink(missing_ok=True)
        if does:
            self._fails.touch()


@pytest.fixture(scope="module")
def nft(lab: Lab) -> Nft:
    return Nft(lab)


@pytest.fixture
def gateway(lab: Lab, nft: Nft) -> Iterator[Gateway]:
    gateway = Gateway(lab, lab.write_config(process={"workers": 1}))
    gateway.command = nft.run
    gateway.start()
    try:
        yield gateway
    finally:
        nft.takes(0)
        nft.fails(False)
        assert gateway.stop() == 0, lab.tail_of_logs()
        assert lab.leftovers() == []


@pytest.fixture
def control(lab: Lab, gateway: Gateway, server: FtpServer) -> Iterator[Control]:
    control = ftp_session(lab, server)
    yield control
    control.close()


def broker(gateway: Gateway) -> int:
    (row,) = [row for row in gateway.admin("status") if row["process"] == "supervisor"]
    return int(row["children"]["broker"]["pid"])


def flush(lab: Lab) -> None:
    lab.run("router", ["nft", "flush", "ruleset"])
    firewall.load(lab)


def has_table(lab: Lab) -> bool:
    return "chain before {" in lab.run("router", ["nft", "list", "ruleset"]).stdout


def comes_in(lab: Lab, public: str, listener: socket.socket) -> None:
    """The server comes through a pinhole to the client that listens."""
    with lab.connect("outside", *split(public)):
        listener.accept()[0].close()


def serves(lab: Lab, gateway: Gateway, control: Control) -> None:
    listener, pinhole = open_pinhole(lab, gateway, control)
    with listener:
        comes_in(lab, pinhole["public"], listener)


def pinhole_survives(lab: Lab, gateway: Gateway, control: Control, seconds: int) -> None:
    """The table is removed, with nft as it is: what was open before is open again, by the same broker."""
    before, seen = broker(gateway), len(gateway.log_lines())
    listener, pinhole = open_pinhole(lab, gateway, control)
    with listener:
        flush(lab)
        gateway.wait_for_log("event=broker.table_restored", seconds + 10, after=seen)
        gateway.rules("apply")
        assert has_table(lab)
        comes_in(lab, pinhole["public"], listener)
    assert broker(gateway) == before
    serves(lab, gateway, control)


@pytest.mark.long
def test_a_table_that_takes_longer_to_load_than_a_process_may_be_silent(
    lab: Lab, gateway: Gateway, nft: Nft, control: Control
) -> None:
    nft.takes(LONG)
    pinhole_survives(lab, gateway, control, LONG)
    assert not [line for line in gateway.log_lines() if "process.hung" in line or "process.slow" in line]


@pytest.mark.long
def test_a_broker_that_is_killed_where_nft_is_slow(lab: Lab, gateway: Gateway, nft: Nft, control: Control) -> None:
    """Its successor finds the table as it must be, and only sets the rates anew: it is not given up meanwhile."""
    listener, pinhole = open_pinhole(lab, gateway, control)
    with listener:
        before, seen = broker(gateway), len(gateway.log_lines())
        nft.takes(LONG)
        os.kill(before, signal.SIGKILL)
        gateway.wait_for_log("event=broker.table .*pinholes=1", LONG + 10, after=seen)
        comes_in(lab, pinhole["public"], listener)
    serves(lab, gateway, control)
    assert not [line for line in gateway.log_lines() if "broker.failed" in line or "process.hung" in line]


@pytest.mark.long
def test_a_reload_where_nft_is_slow(lab: Lab, gateway: Gateway, nft: Nft, control: Control) -> None:
    """With other rates: the broker has to ask nft. It is waited for, and what is open stays open."""
    listener, pinhole = open_pinhole(lab, gateway, control)
    with listener:
        before = broker(gateway)
        config = tomllib.loads(gateway.config.read_text())
        config["transparent"] = {"datagram_rate": 777.0}
        gateway.config.write_text(tomli_w.dumps(config))
        nft.takes(LONG)
        gateway.algate("reload")
        assert "777/second" in lab.run("router", ["nft", "list", "ruleset"]).stdout  # the real one
        assert broker(gateway) == before
        comes_in(lab, pinhole["public"], listener)
    nft.takes(0)
    serves(lab, gateway, control)


def test_nft_that_fails_for_a_while(lab: Lab, gateway: Gateway, nft: Nft, control: Control) -> None:
    """As where memory is short for a moment: the broker, which alone knows what was open, tries again."""
    before, seen = broker(gateway), len(gateway.log_lines())
    listener, pinhole = open_pinhole(lab, gateway, control)
    with listener:
        nft.fails(True)
        flush(lab)
        gateway.wait_for_log("event=broker.table_failed", 5, after=seen)
        assert broker(gateway) == before
        assert not has_table(lab)
        nft.fails(False)
        gateway.wait_for_log("event=broker.table_restored", 10, after=seen)
        gateway.rules("apply")
        comes_in(lab, pinhole["public"], listener)
    assert broker(gateway) == before
    serves(lab, gateway, control)
