"""A listener's port that a connection of the host's own has when the gateway starts."""

from __future__ import annotations

import json
import socket
import struct

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_OUT4, SERVER4, Lab

RESET = struct.pack("ii", 1, 0)


def doctor(gateway: Gateway) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(gateway.algate("doctor", "--json", check=False).stdout)
    return found


def test_the_start_waits_for_a_port_that_only_a_connection_has(lab: Lab) -> None:
    listener = lab.listen("outside", SERVER4, 7)
    with lab.enter("router"):
        own = socket.create_connection((SERVER4, 7), 5, (ROUTER_OUT4, 10800))
    gateway = Gateway(lab, lab.write_config(process={"workers": 1}))
    gateway.algate("rules", "apply")
    process = lab.popen("router", [gateway.command, "run", "-c", gateway.config], log=gateway.log)
    try:
        line = gateway.wait_for_log("event=listen.waits", 10)
        assert "10800" in line
        assert "ip_local_reserved_ports=10800" in line
        assert process.poll() is None
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        own.close()
        gateway.wait_for_log(r"event=ready\b", 15)
    finally:
        own.close()
        lab.stop(process, 20)
        gateway.algate("rules", "remove")
        listener.close()


def test_a_port_at_which_somebody_listens_is_an_error_at_once(lab: Lab) -> None:
    with lab.listen("router", "0.0.0.0", 10800):
        gateway = Gateway(lab, lab.write_config(process={"workers": 1}))
        done = gateway.algate("run", check=False)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


def test_doctor_finds_such_ports(lab: Lab) -> None:
    config = lab.write_config()
    gateway = Gateway(lab, config)
    before = lab.run("router", ["sysctl", "-n", "net.ipv4.ip_local_port_range"]).stdout.split()
    lab.run("router", ["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 60999"])
    try:
        found = {finding["check"]: finding for finding in doctor(gateway)}
        assert found["listening ports"]["status"] == "warning"
        assert found["listening ports"]["detail"].startswith("1080, 10800 in ip_local_port_range (1024-60999)")
        lab.run("router", found["listening ports"]["remedy"].split())
        found = {finding["check"]: finding for finding in doctor(gateway)}
        assert found["listening ports"]["status"] == "ok"
        assert found["pinhole ports"]["status"] == "ok"
    finally:
        lab.run("router", ["sysctl", "-qw", f"net.ipv4.ip_local_port_range={' '.join(before)}"])
        lab.run("router", ["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports="])
