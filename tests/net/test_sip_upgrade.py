"""SIP over UDP while the gateway is reloaded and upgraded, and a call that an operator cuts."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.lab.sip_peers import Kamailio, sipp, succeeds
from tests.net.test_sip import FAR, PHONE, PROXY, Media, confirmed, pinholes, split


@pytest.mark.slow
def test_a_call_outlives_its_processes_until_it_is_kicked(lab: Lab) -> None:
    gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 1}))
    kamailio = Kamailio(lab, "outside", SERVER4)
    succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=["-s", "ann"]))
    succeeds(lab, sipp(lab, "outside", "register", local=FAR, remote=PROXY, options=["-s", "bob"]))
    callee = sipp(lab, "outside", "uas", local=FAR, audio=9100)
    caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=["-s", "bob", "-d", "12000"])
    lab.wait_for(lambda: confirmed(gateway), 10, "the call" + lab.tail_of_logs())
    (media,) = pinholes(gateway, "sip.rtp")
    public = split(media["public"])
    phone = Media(lab, "inside", CLIENT4, split(media["target"])[1])
    peer = Media(lab, "outside", SERVER4, 9100)

    def packets() -> int:
        return next(int(row["pid"]) for row in gateway.admin("status") if row["process"] == "packets")

    def talk() -> None:
        """Both hear each other, through the very pinhole of the beginning."""
        peer.send(public, b"from outside")
        assert phone.hears() == b"from outside"
        phone.send((SERVER4, 9100), b"from inside")
        assert peer.hears() == b"from inside"
        assert [row["id"] for row in pinholes(gateway, "sip.rtp")] == [media["id"]]

    talk()
    first = packets()
    document = tomllib.loads(gateway.config.read_text())
    document["alg"] = {"sip": {"media_source": "any"}}
    gateway.config.write_text(tomli_w.dumps(document))
    gateway.algate("reload")
    lab.wait_for(lambda: packets() != first, 10, "a packets process with the new keys")
    talk()
    second = packets()
    (outcome,) = json.loads(gateway.algate("reload", "--upgrade", "--json").stdout)
    assert packets() != second
    talk()
    (call,) = confirmed(gateway)
    done = gateway.algate("kick", call["call_id"])
    assert done.stdout.startswith(f"{call['call_id']}: call of {CLIENT4} with ")
    lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 5, "the media to be cut")
    peer.send(public, b"after the kick")
    assert phone.hears() is None
    for peer_process in (caller, callee):
        lab.stop(peer_process.process)
    for end in (phone, peer):
        end.close()
    kamailio.stop()
    os.kill(outcome["pid"], signal.SIGTERM)
    lab.wait_for(lambda: not Path(f"/proc/{outcome['pid']}").exists(), 20, "the new version to end")
    assert gateway.stop() == 0
