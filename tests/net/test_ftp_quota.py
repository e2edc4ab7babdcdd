"""Quotas and rates of pinholes, of clients of a published server and without a broker."""

from __future__ import annotations

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
    pinhole = {"rate": 2, "backend": "userspace"}
    gateway = lab.start_gateway(lab.write_config(pinhole=pinhole, process={"workers": 1}))
    server = lab.vsftpd()
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    control.send(b"".join(port_command(CLIENT4, port) for port in range(51000, 51020)))
    gateway.wait_for_log("pinhole.refused .*rule=rate")
    assert len([line for line in gateway.log_lines() if "pinhole.open" in line]) >= 4  # twice the rate at once
    control.close()
    server.stop()
    assert gateway.stop() == 0
