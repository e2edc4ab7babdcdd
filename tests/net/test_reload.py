"""Another configuration for a gateway that runs: who lives on, who does not, and what the operator is told."""

from __future__ import annotations

import json
import re
import signal
import socket
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tomli_w

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab, algate
from tests.lab.servers import FtpServer
from tests.net.console_http import LISTEN, PORT, fetch
from tests.net.ftp_control import Control, fails, open_pinhole, split
from tests.net.socks_wire import ask5, receive, reply5
from tests.net.steady_load import Greeter, SteadyLoad

PERMIT = {"action": "permit"}


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[tuple[Gateway, str]]:
    """One gateway for all tests, and the configuration that it has before each of them."""
    config = lab.write_config(process={"drain_timeout": 1})
    gateway = lab.start_gateway(config)
    yield gateway, config.read_text()
    assert gateway.stop() == 0


@pytest.fixture
def gateway(running: tuple[Gateway, str]) -> Iterator[Gateway]:
    gateway, original = running
    yield gateway
    if gateway.config.read_text() != original:
        gateway.config.write_text(original)
        gateway.algate("reload")


def edit(gateway: Gateway, change: Callable[[dict[str, Any]], object]) -> None:
    document = tomllib.loads(gateway.config.read_text())
    change(document)
    gateway.config.write_text(tomli_w.dumps(document))


def reload(gateway: Gateway, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Change the configuration and have it used; what `algate reload --json` says."""
    edit(gateway, change)
    (outcome,) = json.loads(gateway.algate("reload", "--json").stdout)
    assert isinstance(outcome, dict)
    return outcome


def deny(**selectors: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(rule=[{"action": "deny", "name": "new", **selectors}, PERMIT])


def is_reset(sock: socket.socket) -> bool:
    sock.settimeout(5)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_flows_that_the_new_rules_deny_are_reset_and_others_live_on(
    lab: Lab, gateway: Gateway, server: FtpServer
) -> None:
    redirected = Control(lab, SERVER4)
    redirected.login(server.user, server.password)
    configured = Control(lab, ROUTER_IN4, 1080)
    assert ask5(configured.socket, SERVER4, 21)[0] == 0
    configured.login(server.user, server.password)
    listener, pinhole = open_pinhole(lab, gateway, redirected)

    outcome = reload(gateway, deny(command=["connect"], port=[21]))
    assert outcome["ended"] == 1
    assert outcome["changed"] == ["rule: [] -> 2 of them"]
    assert is_reset(configured.socket)
    assert "denied_by=new" in gateway.wait_for_log(r"event=flow.denied .*front=socks")

    # The other's inspection and pinholes are what they were.
    lab.connect("outside", *split(pinhole["public"])).close()
    listener.accept()[0].close()
    listener.close()
    listener, _ = open_pinhole(lab, gateway, redirected)
    listener.close()
    (flow,) = gateway.admin("flows")
    assert flow["rule"] == "rule[1]"
    with lab.connect("inside", ROUTER_IN4, 1080) as again:
        assert ask5(again, SERVER4, 21)[0] == 2

    outcome = reload(gateway, deny(command=["transparent"]))
    assert outcome["ended"] == 1
    assert is_reset(redirected.socket)
    redirected.close()
    configured.close()


def test_sighup_does_the_same(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    lines = len(gateway.log_lines())
    edit(gateway, deny(command=["transparent"]))
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait_for_log(r"event=reload .*ended=1", after=lines)
    assert is_reset(control.socket)
    control.close()


def test_a_mistake_leaves_everything_as_it_was(lab: Lab, gateway: Gateway, greeter: Greeter) -> None:
    edit(gateway, lambda document: document.update(rule=[{"action": "permit", "port": [70000]}]))
    done = gateway.algate("reload", check=False)
    assert done.returncode == 2
    assert re.search(rf"{re.escape(str(gateway.config))}:\d+: rule\[0\].port", done.stderr)
    lines = len(gateway.log_lines())
    gateway.process.send_signal(signal.SIGHUP)
    assert "rule[0].port" in gateway.wait_for_log(r"event=reload.failed", after=lines)
    with SteadyLoad(lab, greeter, clients=2) as load:
        load.more(10)
    assert (load.refused, load.errors) == (0, [])


def test_what_only_a_process_can_say_is_a_mistake_too(lab: Lab, gateway: Gateway, greeter: Greeter) -> None:
    """A listener that cannot be had, and rules that do not load: nothing of the new configuration is used."""
    with lab.listen("router", ROUTER_IN4, 1099):
        edit(gateway, lambda document: document["socks"]["listen"].extend([f"{ROUTER_IN4}:1098", f"{ROUTER_IN4}:1099"]))
        done = gateway.algate("reload", check=False)
    assert done.returncode == 1
    assert f"socks.listen[3]: cannot listen on {ROUTER_IN4}:1099: Address already in use" in done.stderr
    assert fails(lab, "inside", (ROUTER_IN4, 1098))


def test_listeners_come_and_go_and_nobody_loses_a_connection(lab: Lab, gateway: Gateway, greeter: Greeter) -> None:
    listen = f"{ROUTER_IN4}:1081"
    with SteadyLoad(lab, greeter, clients=4) as steady, SteadyLoad(lab, greeter, clients=4, port=1081) as visitor:
        for _ in range(3):
            outcome = reload(gateway, lambda document: document["socks"]["listen"].append(listen))
            assert outcome["listeners_added"] == [listen]
            visitor.more(20)
            outcome = reload(gateway, lambda document: document["socks"]["listen"].remove(listen))
            assert outcome["listeners_removed"] == [listen]
            assert fails(lab, "inside", (ROUTER_IN4, 1081))
            steady.more(20)
    assert (steady.refused, steady.errors) == (0, [])
    assert visitor.errors == []  # refused while there was no listener, but never after the kernel had said yes
    assert visitor.refused > 0


def test_a_waiting_bind_and_an_association_end_with_their_permission(lab: Lab, gateway: Gateway) -> None:
    bind, udp = (lab.connect("inside", ROUTER_IN4, 1080) for _ in range(2))
    assert ask5(bind, SERVER4, 0, command=2)[0] == 0
    assert ask5(udp, "0.0.0.0", 0, command=3)[0] == 0
    assert len(gateway.admin("pinholes")) == 1
    reload(gateway, deny(command=["bind", "udp"]))
    assert reply5(bind)[0] == 2
    assert receive_end(bind)
    assert receive_end(udp)
    gateway.wait_for_log(r"event=bind.denied .*denied_by=new")
    gateway.lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinhole to be closed")
    bind.close()
    udp.close()


def receive_end(sock: socket.socket) -> bool:
    try:
        receive(sock, 1)
    except ConnectionError:
        return True
    return False


def test_who_is_not_inside_any_more_has_no_flow_and_no_pinhole(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    listener, pinhole = open_pinhole(lab, gateway, control)
    reload(gateway, lambda document: document["network"].update(inside=[f"{CLIENT2_4}/32"]))
    assert is_reset(control.socket)
    assert fails(lab, "outside", split(pinhole["public"]))
    gateway.lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinhole to be closed")
    rules = lab.run("router", ["iptables-save"]).stdout
    assert f"-s {CLIENT2_4}/32" in rules  # and they follow
    assert "-s 192.168.56.0/24 -i eth1" not in rules
    control.close()
    listener.close()


def test_rules_and_modules_follow(lab: Lab, gateway: Gateway, server: FtpServer, greeter: Greeter) -> None:
    def change(document: dict[str, Any]) -> None:
        document["transparent"] = {"port": 10999, "ports": [greeter.port]}
        document["alg"] = {name: {"mode": "off"} for name in ("ftp", "sip", "tftp")}

    outcome = reload(gateway, change)
    assert outcome["rules"] == "changed"
    assert sorted(outcome["listeners_added"]) == ["0.0.0.0:10999", "[::]:10999"]
    with lab.connect("inside", SERVER4, greeter.port) as sock:
        assert receive(sock, 5) == b"hello"
    gateway.wait_for_log(rf"event=flow.open .*front=transparent .*server={SERVER4}:{greeter.port}")
    assert "packets" not in {row["process"] for row in gateway.admin("status")}
    lab.connect("inside", SERVER4, 21).close()  # straight through the NAT
    assert not [flow for flow in gateway.admin("flows") if flow["server"].endswith(":21")]
    gateway.config.write_text(gateway.config.read_text().replace('mode = "off"', 'mode = "rewrite"'))
    gateway.algate("reload")
    lab.wait_for(lambda: "packets" in {row["process"] for row in gateway.admin("status")}, 10, "packets to be back")
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    open_pinhole(lab, gateway, control)[0].close()
    control.close()


def test_users_ports_and_published_servers_follow(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    old, before = open_pinhole(lab, gateway, control)
    users = lab.tmp / "users"
    lab.run("router", [gateway.command, "passwd", users, "ann"], stdin="secret\n")
    inside = lab.listen("inside", CLIENT4)

    def change(document: dict[str, Any]) -> None:
        document["socks"] |= {"auth": ["password"], "users": str(users)}
        document["pinhole"] = {"ports": "50000-50999"}
        document["publish"] = [
            {"outside": f"{ROUTER_OUT4}:2100", "inside": "{}:{}".format(*inside.getsockname())},
        ]

    reload(gateway, change)
    with lab.connect("inside", ROUTER_IN4, 1080) as sock:
        sock.sendall(b"\5\1\0")
        assert receive(sock, 2) == b"\5\xff"
    for user in ("ann", "bob"):  # bob comes later, into the file
        with lab.connect("inside", ROUTER_IN4, 1080) as sock:
            sock.sendall(b"\5\1\2")
            assert receive(sock, 2) == b"\5\2"
            sock.sendall(b"\1\3" + user.encode() + b"\6secret")
            assert receive(sock, 2) == b"\1\0"
        lines = len(gateway.log_lines())
        lab.run("router", [gateway.command, "passwd", users, "bob"], stdin="secret\n")
        gateway.wait_for_log("event=file.loaded", after=lines)
    with lab.connect("outside", ROUTER_OUT4, 2100):
        inside.accept()[0].close()
    inside.close()
    lab.connect("outside", *split(before["public"])).close()  # what was open stays open
    old.accept()[0].close()
    new, after = open_pinhole(lab, gateway, control)
    assert 50000 <= split(after["public"])[1] <= 50999
    for sock in (old, new, control.socket):
        sock.close()


def test_keys_that_need_new_processes_are_named(gateway: Gateway) -> None:
    edit(gateway, lambda document: document["process"].update(workers=1, user="daemon"))
    done = gateway.algate("reload")
    assert "not in use before `algate reload --upgrade` or a restart: process.user, process.workers" in done.stdout
    assert "process.workers" in gateway.wait_for_log(r"event=reload .*restart=.*process.user")
    assert len([row for row in gateway.admin("status") if row["process"].startswith("worker")]) == 2


def test_the_log_takes_another_form(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    def restyle(document: dict[str, Any]) -> None:
        document["log"] = {"format": "json"}

    Control(lab, SERVER4).close()  # a logger in use, as those that are to change
    lines = len(gateway.log_lines())
    reload(gateway, restyle)
    gateway.process.send_signal(signal.SIGUSR1)
    for process in ("supervisor", "broker", "packets", "worker-0", "worker-1"):
        line = gateway.wait_for_log(rf'"process": "{process}".*"event": "status"', after=lines)
        assert json.loads(line)["pid"] > 0
    Control(lab, SERVER4).close()
    gateway.wait_for_log(r'"event": "flow.end"', after=lines)


def test_the_console_comes_moves_and_goes(lab: Lab, gateway: Gateway) -> None:
    def listen(where: str) -> Callable[[dict[str, Any]], object]:
        return lambda document: document.update(console={"listen": where})

    def serves() -> bool:
        try:
            return fetch(lab, "/readyz") == (200, "ok\n")
        except OSError:
            return False

    reload(gateway, listen(LISTEN))
    lab.wait_for(serves, 10, "the console")
    reload(gateway, listen(f"0.0.0.0:{PORT}"))  # which contains the place before
    gateway.wait_for_log(r"event=process.end child=console")
    lab.wait_for(serves, 10, "the console at its other place")
    with lab.listen("router", "127.0.0.1") as taken:
        edit(gateway, listen(f"127.0.0.1:{taken.getsockname()[1]}"))
        done = gateway.algate("reload", check=False)
    assert (done.returncode, "console.listen: cannot listen on" in done.stderr) == (1, True)
    assert serves()
    reload(gateway, listen(""))
    with pytest.raises(ConnectionRefusedError):
        lab.connect("router", "127.0.0.1", PORT)


def test_the_status_is_logged_at_sigusr1(gateway: Gateway) -> None:
    lines = len(gateway.log_lines())
    gateway.process.send_signal(signal.SIGUSR1)
    for process in ("supervisor", "broker", "packets", "worker-0", "worker-1"):
        gateway.wait_for_log(rf"process={process} event=status .*pid=", after=lines)


def test_without_a_gateway(lab: Lab) -> None:
    config = lab.write_config()
    for command in (["reload"], ["drain"], ["kick", "w0-1"]):
        done = lab.run("router", [algate(), *command, "-c", config], check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("algate: no gateway is running (")
