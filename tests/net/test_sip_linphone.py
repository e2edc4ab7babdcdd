"""A real linphone inside and baresip outside, at a real proxy (Kamailio): each hears the other, whoever calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import SERVER4, Lab
from tests.lab.sip_peers import DOMAIN, Baresip, Kamailio, Linphone, loudness
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
    near = Linphone(lab, "inside", "ann", proxy=PROXY, tone=ANNS)
    near.wait_until_registered()
    dial = "ann" if caller == "outside" else None
    far = Baresip(lab, "outside", "bob", local=f"{SERVER4}:5070", proxy=PROXY, tone=BOBS, dial=dial)
    try:
        if caller == "inside":
            far.wait_for("200 OK")
            near.do(f"call sip:bob@{DOMAIN}")
        lab.wait_for(
            lambda: min(len(near.heard()), len(far.heard())) >= ENOUGH, 20, "two seconds of sound" + lab.tail_of_logs()
        )
        for heard, tone in ((near.heard(), BOBS), (far.heard(), ANNS)):
            assert loudness(heard[-8000:], tone) > 0.9, tone
        (call,) = confirmed(gateway)
        (stream,) = call["media"]
        assert stream["packets_in"] > 50
        assert stream["packets_out"] > 50
        near.do("terminate all")
        lab.wait_for(lambda: not pinholes(gateway, "sip.rtp"), 10, "the BYE")
    finally:
        near.stop()
        far.stop()
