"""Quotas and rates of pinholes, of clients of a published server and without a broker."""

from __future__ import annotations

import time

from tests.lab import servers
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.net.ftp_control import Control, port_command

PORT = 2122


def test_a_client_outside_uses_up_its_own_quota_and_no_others(strict_lab: Lab) -> None:
    publish = [{"outside": f"{ROUTER_OUT4}:{PORT}", "inside": f"{CLIENT4}:21"}]
    gateway = strict_lab.start_gateway(strict_lab.write_config(publish=publish, pinhole={"per_client": 3}))
    server = servers.vsftpd(strict_lab, {}, "inside")
    server.put("pub/here", b"x")
    controls = [Control(strict_lab, ROUTER_OUT4, PORT, role="stranger") for _ in range(8)]
    for control in controls:
        control.login("anonymous", "guest")
        assert control.command("PASV").startswith("227")
    gateway.wait_for_log(f"pinhole.refused .*rule=quota .*{STRANGER4}")
    assert {row["peer"] for row in gateway.admin("pinholes")} == {STRANGER4}
    argv = ["curl", "-sS", "-m", "10", server.url("pub/here", host=f"{ROUTER_OUT4}:{PORT}")]
    assert strict_lab.run("outside", argv).stdout == "x"
    for control in controls:
        control.close()
    server.stop()
    assert gateway.stop() == 0


def test_the_rate_holds_without_a_broker_too(lab: Lab) -> None:
    """A client that opens faster than it may is paced: none of its commands is refused, and the rate holds."""
    pinhole = {"rate": 4, "backend": "userspace"}
    gateway = lab.start_gateway(lab.write_config(pinhole=pinhole, process={"workers": 1}))
    server = lab.vsftpd()
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    began = time.monotonic()
    control.send(b"".join(port_command(CLIENT4, port) for port in range(51000, 51020)))
    for _ in range(20):
        assert control.reply().startswith("200")
    assert time.monotonic() - began > 2.5  # twice the rate at once, the other twelve in three seconds
    assert not [line for line in gateway.log_lines() if "pinhole.refused" in line]
    control.close()
    server.stop()
    assert gateway.stop() == 0


def test_beyond_a_second_or_two_it_is_refused(lab: Lab) -> None:
    """Twelve sessions at once, one pinhole a second: those that would have to wait longer are told so."""
    gateway = lab.start_gateway(lab.write_config(pinhole={"rate": 1}))
    server = lab.vsftpd()
    controls = [Control(lab, SERVER4) for _ in range(12)]
    for control in controls:
        control.login(server.user, server.password)
    began = time.monotonic()
    for port, control in enumerate(controls, 51000):
        control.send(port_command(CLIENT4, port))
    replies = [control.reply()[:3] for control in controls]
    assert time.monotonic() - began < 4.5
    assert replies.count("200") >= 3
    gateway.wait_for_log("pinhole.refused .*rule=rate")
    for control in controls:
        control.close()
    server.stop()
    assert gateway.stop() == 0
