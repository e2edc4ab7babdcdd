"""Two real phones (baresip), one inside and one outside, at a real proxy (Kamailio): each hears the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.lab.sip_peers import Baresip, Kamailio, loudness
from tests.net.test_sip import confirmed, pinholes

PROXY = f"{SERVER4}:5060"
ANNS, BOBS = 500, 800  # Hz
ENOUGH = 16000  # samples: two seconds


@pytest.fixture(scope="module")
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


@pytest.mark.parametrize("caller", ["inside", "outside"])
def test_each_hears_the_other(lab: Lab, gateway: Gateway, kamailio: Kamailio, caller: str) -> None:
    def ann(dial: str | None = None) -> Baresip:
        return Baresip(lab, "inside", "ann", local=f"{CLIENT4}:5060", proxy=PROXY, tone=ANNS, dial=dial)

    def bob(dial: str | None = None) -> Baresip:
        return Baresip(lab, "outside", "bob", local=f"{SERVER4}:5070", proxy=PROXY, tone=BOBS, dial=dial)

    first = bob() if caller == "inside" else ann()
    first.wait_for("200 OK")
    second = ann("bob") if caller == "inside" else bob("ann")
    near, far = (second, first) if caller == "inside" else (first, second)
    try:
        lab.wait_for(
            lambda: min(len(near.heard()), len(far.heard())) >= ENOUGH, 20, "two seconds of sound" + lab.tail_of_logs()
        )
        for phone, tone in ((near, BOBS), (far, ANNS)):
            assert loudness(phone.heard()[-8000:], tone) > 0.9, tone
        (call,) = confirmed(gateway)
        (stream,) = call["media"]
        assert stream["kind"] == "audio"
        # A packet holds 20 ms, 160 samples; every one of them passed in the kernel.
        assert stream["packets_in"] >= ENOUGH // 160
        assert stream["packets_out"] >= ENOUGH // 160
        assert stream["packets_in"] == pytest.approx(len(near.heard()) / 160, abs=50)
    finally:
        second.stop()
        lab.wait_for(lambda: not pinholes(gateway, "sip.rtp"), 10, "the BYE")
        first.stop()
