"""Two phones of pjsip with its defaults (`;ob`, TCP for long requests) at a real proxy: each hears the other."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, STRANGER4, Lab, Role
from tests.lab.sip_peers import Kamailio

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pjsua2") is None, reason="pjsua2 (pjsip) is not installed")


@pytest.fixture(scope="module")
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


class Phone:
    """A running pjsip."""

    _numbers = itertools.count(1)

    def __init__(self, lab: Lab, role: Role, user: str, address: str, dial: str | None = None) -> None:
        self._lab = lab
        # A log of its own: what the phones of an earlier call said there is not this one's.
        self._log = lab.logs / f"pjsip-{user}-{next(self._numbers)}.log"
        argv = [
            sys.executable,
            "-m",
            "tests.lab.pjsip_phone",
            user,
            address,
            f"{SERVER4}:5060",
            *([dial] if dial else []),
        ]
        self._process = lab.popen(role, argv, log=self._log, stdin=subprocess.PIPE)

    def said(self, key: str) -> list[Any]:
        """What it has said of `key` so far."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith("{") and line.endswith("}") and key in (what := json.loads(line)):
                found.append(what[key])
        return found

    def wait_for(self, key: str, value: Any) -> None:
        self._lab.wait_for(lambda: value in self.said(key), 30, f"{key} {value}" + self._lab.tail_of_logs())

    def hears(self, packets: int) -> None:
        before = (self.said("received") or [0])[-1]
        self._lab.wait_for(
            lambda: (self.said("received") or [0])[-1] >= before + packets, 30, "sound" + self._lab.tail_of_logs()
        )

    def stop(self) -> None:
        self._process.communicate(b"\n", timeout=20)


@pytest.mark.parametrize("way", ["udp", "tcp for its length"])
@pytest.mark.parametrize("caller", ["inside", "outside"])
@pytest.mark.parametrize("ends", ["inside", "outside"])
def test_pjsip_with_its_defaults(
    lab: Lab, gateway: Gateway, kamailio: Kamailio, way: str, caller: str, ends: str
) -> None:
    mark = "+" if way != "udp" else ""
    roles: dict[str, tuple[Role, str, str, str]] = {
        "inside": ("inside", "ann", CLIENT4, "bob"),
        "outside": ("stranger", "bob", STRANGER4, "ann"),
    }
    callee = "outside" if caller == "inside" else "inside"
    phones: dict[str, Phone] = {}
    try:
        role, user, address, _ = roles[callee]
        phones[callee] = Phone(lab, role, user, address)
        phones[callee].wait_for("registered", 200)
        role, user, address, other = roles[caller]
        phones[caller] = Phone(lab, role, user, address, other + mark)
        for phone in phones.values():
            phone.wait_for("state", "CONFIRMED")
            phone.hears(15)
        phones.pop(ends).stop()
        for phone in phones.values():
            phone.wait_for("state", "DISCONNECTED")
    finally:
        for phone in phones.values():
            phone.stop()
