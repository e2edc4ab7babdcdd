"""What an operator ends: flows, pinholes, the gateway itself; and processes that hang."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.lab import ROUTER_IN4, SERVER4, Lab, algate
from tests.lab.servers import FtpServer
from tests.net.ftp_control import Control, fails, open_pinhole, session, split
from tests.net.socks_wire import ask5
from tests.net.steady_load import Greeter, SteadyLoad


def is_reset(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return False


def test_kick(lab: Lab, server: FtpServer) -> None:
    gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 1}))
    first, second = session(lab, server), session(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, first)
    bind = lab.connect("inside", ROUTER_IN4, 1080)
    assert ask5(bind, SERVER4, 21)[0] == 0
    flows = {flow["client"]: flow["id"] for flow in gateway.admin("flows")}

    # What was said is traced, without the password.
    traced = json.loads(gateway.algate("trace", "--json", "--client", first.socket.getsockname()[0]).stdout)
    said = [row["data"] for row in traced if row["transport"] == "tcp"]
    assert f"USER {server.user}\r\n" in said
    assert f"PASS {'*' * len(server.password)}\r\n" in said
    assert not any(server.password in line for line in said if line.startswith("PASS"))

    # A pinhole in the kernel; the session goes on.
    done = gateway.algate("kick", pinhole["id"])
    assert done.stdout.startswith(f"{pinhole['id']}: pinhole of ")
    assert fails(lab, "outside", split(pinhole["public"]))
    assert gateway.admin("pinholes") == []
    assert first.command("NOOP").startswith("200")
    listener.close()

    # Flows: one that a module reads and one that is relayed, in one command, with one that there is not.
    mine = ["{}:{}".format(*sock.getsockname()) for sock in (first.socket, bind)]
    victims = [flows[client] for client in mine]
    done = gateway.algate("kick", "--json", *victims, "w9-9-9", check=False)
    assert done.returncode == 1
    assert done.stderr == "algate: there is no flow, pinhole or call w9-9-9\n"
    assert [(row["id"], row["kind"]) for row in json.loads(done.stdout)] == [(victim, "flow") for victim in victims]
    for sock in (first.socket, bind):
        sock.settimeout(5)
        assert is_reset(sock)
        sock.close()
    gateway.wait_for_log(rf"event=flow.kick flow={victims[0]}")
    assert second.command("NOOP").startswith("200")
    second.close()
    assert gateway.stop() == 0


def test_drain_waits_for_the_last_flow(lab: Lab, server: FtpServer) -> None:
    gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 1}))
    control = session(lab, server)
    command: list[str | Path] = [algate(), "drain", "-c", gateway.config]
    output = lab.tmp / "drain.out"
    draining = lab.popen("router", command, log=output)
    lab.wait_for(lambda: "1 flows are left" in output.read_text(), 15, "the drain to begin")
    lab.wait_for(lambda: fails(lab, "inside", (ROUTER_IN4, 1080)), 5, "SOCKS to be refused")
    straight = Control(lab, SERVER4)  # through the NAT: no gateway in between, and nobody refused
    assert straight.reply().startswith("220")
    straight.close()
    (flow,) = gateway.admin("flows")
    assert flow["client"] == "{}:{}".format(*control.socket.getsockname())
    with pytest.raises(subprocess.TimeoutExpired):
        gateway.process.wait(1.5)  # longer than any timeout
    assert control.command("NOOP").startswith("200")
    assert control.command("QUIT").startswith("221")
    control.close()
    assert draining.wait(10) == 0
    assert output.read_text().splitlines()[-1] == "drained"
    assert gateway.stop() == 0


def test_an_address_that_comes_later(lab: Lab) -> None:
    """As at boot: the interface has its address after the gateway was started."""
    late = "192.168.56.200"
    greeter = Greeter(lab)
    config = lab.write_config(socks={"listen": [f"{late}:1080", "[fd00:56::200]:1080"]}, process={"drain_timeout": 1})
    gateway = lab.start_gateway(config)
    gateway.wait_for_log(rf"event=listen.absent address={late}:1080")
    lab.run("router", ["ip", "addr", "add", f"{late}/24", "dev", "eth1"])
    lab.run("router", ["ip", "addr", "add", "fd00:56::200/64", "dev", "eth1", "nodad"])
    try:
        gateway.wait_for_log(rf"event=listen.present address={late}:1080")
        for host in (late, "fd00:56::200"):
            with lab.connect("inside", host, 1080) as sock:
                assert ask5(sock, SERVER4, greeter.port)[0] == 0
    finally:
        lab.run("router", ["ip", "addr", "del", f"{late}/24", "dev", "eth1"])
        lab.run("router", ["ip", "addr", "del", "fd00:56::200/64", "dev", "eth1"])
        greeter.close()
    assert gateway.stop() == 0


@pytest.mark.slow
def test_systemd_is_told_and_who_hangs_is_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    path = lab.tmp / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "4000000")  # nobody reads while it starts, and ten messages fill the socket

        def heard(pattern: str) -> bool:
            try:
                while True:
                    printed.append(systemd.recv(4096).decode())
            except BlockingIOError:
                return any(re.fullmatch(pattern, message) for message in printed)

        gateway = lab.start_gateway(lab.write_config(process={"drain_timeout": 1}))
        lab.wait_for(lambda: heard("READY=1") and heard("WATCHDOG=1"), 5, "systemd to hear of it")
        printed.clear()
        gateway.process.send_signal(signal.SIGHUP)
        lab.wait_for(lambda: heard("READY=1"), 10, "systemd to hear of the reload")
        reloading = next(message for message in printed if message.startswith("RELOADING=1\nMONOTONIC_USEC="))
        assert printed.index(reloading) < printed.index("READY=1")

        greeter = Greeter(lab)
        pids = {row["process"]: row["pid"] for row in gateway.admin("status")}
        hung = {pids["worker-0"], pids["broker"]}
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        for name in ("worker-0", "broker"):
            gateway.wait_for_log(rf"event=process.hung child={name}", deadline=25)
        assert time.monotonic() - began > 5  # a moment's pause is no reason

        def replaced() -> bool:
            status = gateway.algate("status", "--json", check=False)
            return status.returncode == 0 and not hung & {row["pid"] for row in json.loads(status.stdout)}

        lab.wait_for(replaced, 15, "them to be replaced")
        with SteadyLoad(lab, greeter, clients=4) as load:
            load.more(20)
        assert (load.refused, load.errors) == (0, [])
        greeter.close()
        printed.clear()
        lab.wait_for(lambda: heard("WATCHDOG=1"), 5, "systemd to hear that all is well")
        assert gateway.stop() == 0
        assert heard("STOPPING=1")
