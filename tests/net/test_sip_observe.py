"""Mode "observe": a registration passes as it is, nothing is opened, and the trace shows what would be changed."""

from __future__ import annotations

from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.sip_peers import Kamailio, sipp, succeeds

PHONE, PROXY = f"{CLIENT4}:5060", f"{SERVER4}:5060"


def test_observing(lab: Lab) -> None:
    gateway = lab.start_gateway(lab.write_config(alg={"sip": {"mode": "observe"}}))
    kamailio = Kamailio(lab, "outside", SERVER4)
    try:
        phone = succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=["-s", "ann"]))
        # The registrar has read, and so repeats, what the phone said.
        assert f"Contact: <sip:ann@{PHONE}>" in phone.received("SIP/2.0 200")[0]
        assert gateway.admin("pinholes") == []
        first = gateway.admin("trace")[0]
        assert first["data"].startswith("REGISTER ")
        assert f"Contact: <sip:ann@{ROUTER_OUT4}:0>" in first["after"]
        (status,) = [row for row in gateway.admin("status") if row["process"] == "packets"]
        assert status["mode_sip"] == "observe"
        assert status["packets"] >= 2
        assert status.get("edited", 0) == 0
    finally:
        kamailio.stop()
        assert gateway.stop() == 0
