"""A phone of pjsip inside, with its defaults (`;ob` in its Contact, large requests by TCP), and one outside, at a real
proxy: media both ways."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.lab.sip_peers import Kamailio
from tests.net.test_sip import confirmed, pinholes

PROXY = f"{SERVER4}:5060"
SCRIPT = Path(__file__).parents[1] / "lab" / "pjsua_phone.py"
ENOUGH = 50  # packets, a second of sound
LARGE = "1500"  # bytes of a header: pjsip sends what is above 1,300 by TCP (RFC 3261, 18.1.1)

pytestmark = pytest.mark.skipif(
    find_spec("pjsua2") is None, reason="pjsua2 is not installed: pip install pjsua2-python"
)


@pytest.fixture(scope="module")
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


class Phone:
    """A running phone."""

    def __init__(self, lab: Lab, role: str, user: str, local: str, port: int, transport: str, *dial: str) -> None:
        self.lab = lab
        lab._counter += 1
        self.log = lab.logs / f"pjsua-{lab._counter:02}-{user}.log"
        argv = [sys.executable, SCRIPT, user, local, str(port), PROXY, transport, *dial]
        self.process = lab.popen(role, argv, log=self.log, stdin=subprocess.PIPE)  # type: ignore[arg-type]

    def says(self, pattern: str, deadline: float = 15) -> None:
        self.lab.wait_for(
            lambda: re.search(pattern, self.log.read_text(errors="replace"), re.MULTILINE), deadline,
            f"{pattern!r}{self.lab.tail_of_logs(8)}",
        )  # fmt: skip

    def received(self) -> int:
        found = re.findall(r"^media (\d+) ", self.log.read_text(errors="replace"), re.MULTILINE)
        return int(found[-1]) if found else 0

    def hang_up(self) -> None:
        """End the call, the registration, and the phone."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"hang up\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(8)
        self.lab.stop(self.process)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("caller", ["inside", "outside"])
def test_each_hears_the_other(lab: Lab, gateway: Gateway, kamailio: Kamailio, caller: str, transport: str) -> None:
    call(lab, gateway, caller, transport)


def test_a_large_invite_over_tcp_of_a_phone_that_registered_over_udp(
    lab: Lab, gateway: Gateway, kamailio: Kamailio
) -> None:
    call(lab, gateway, "inside", "udp", LARGE)


def call(lab: Lab, gateway: Gateway, caller: str, transport: str, pad: str = "") -> None:
    def ann(*dial: str) -> Phone:
        return Phone(lab, "inside", "ann", CLIENT4, 5060, transport, *dial)

    def bob(*dial: str) -> Phone:
        return Phone(lab, "outside", "bob", SERVER4, 5070, transport, *dial)

    first = bob() if caller == "inside" else ann()
    first.says("^registered 200")
    second = ann("bob", pad) if caller == "inside" else bob("ann", pad)
    phones = (first, second)
    try:
        for phone in phones:
            phone.says("^confirmed")
        lab.wait_for(lambda: min(phone.received() for phone in phones) >= ENOUGH, 15, "sound" + lab.tail_of_logs(6))
        (call,) = confirmed(gateway)
        assert call["media"][0]["packets_in"] >= ENOUGH
        second.hang_up()
        first.says("^ended 200")
        lab.wait_for(lambda: not pinholes(gateway, "sip.rtp"), 10, "the BYE")
    finally:
        for phone in phones:
            phone.stop()
