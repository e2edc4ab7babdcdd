"""What a router goes through in the middle of a call, a session of FTP, one of RTSP, and with a mapping: they go on.

Connection tracking emptied, rules flushed, interfaces down and up, addresses that come and go, a reload with other
ports, processes killed, a packets process that does not answer while its queue runs over.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import tomli_w

from tests.lab import firewall
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab, LabError
from tests.lab.servers import FtpServer
from tests.lab.udp import Udp
from tests.net.ftp_control import open_pinhole, split
from tests.net.ftp_control import session as ftp_session
from tests.net.pcp_client import TCP, UDP, PcpClient
from tests.net.test_rtsp import Session
from tests.net.test_sip import Media, pinholes
from tests.net.test_sip_broker_killed import passes
from tests.net.test_sip_seen import OFFER, Wire, confirmed

MORE_OUT4 = "203.0.113.3"


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4])
    config = lab.write_config(
        portmap={"protocols": ["pcp"]}, process={"workers": 1}, alg={"rtsp": {"streams": 4}, "sip": {"rate": 2000}}
    )
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []
    lab.run("router", ["ip", "route", "del", "default"])


class Subject(Protocol):
    """Something that goes on. `works` raises AssertionError if it does not any more; `end` ends it in order."""

    def works(self) -> None: ...

    def end(self) -> None: ...

    def close(self) -> None: ...


class CallSubject:
    def __init__(self, lab: Lab, gateway: Gateway, transport: str) -> None:
        self.lab, self.gateway = lab, gateway
        self.wire = Wire(lab, transport)
        self.near, self.far = Media(lab, "inside", CLIENT4, 4000), Media(lab, "outside", SERVER4, 9100)
        self.numbers = itertools.count(1)
        self.wire.ask("INVITE", next(self.numbers), OFFER)
        lab.wait_for(lambda: confirmed(gateway), 5, "the call")

    def works(self) -> None:
        passes(self.lab, self.gateway, self.near, self.far)
        self.wire.ask("OPTIONS", next(self.numbers))

    def end(self) -> None:
        self.wire.ask("BYE", next(self.numbers))
        self.lab.wait_for(lambda: not confirmed(self.gateway), 5, "the end of the call")
        self.lab.wait_for(lambda: not pinholes(self.gateway, "sip.rtp"), 5, "its media's end")

    def close(self) -> None:
        for each in (self.wire, self.near, self.far):
            each.close()


class FtpSubject:
    def __init__(self, lab: Lab, gateway: Gateway, server: FtpServer) -> None:
        self.lab, self.gateway = lab, gateway
        self.control = ftp_session(lab, server)

    def works(self) -> None:
        assert self.control.command("NOOP").startswith("200")
        listener, pinhole = open_pinhole(self.lab, self.gateway, self.control)
        with listener:
            self.lab.connect("outside", *split(pinhole["public"])).close()
            listener.accept()[0].close()
        found = re.search(r"\|(\d+)\|", self.control.command("EPSV"))
        assert found
        self.lab.connect("inside", SERVER4, int(found[1])).close()

    def end(self) -> None:
        assert self.control.command("QUIT").startswith("221")

    def close(self) -> None:
        self.control.close()


class RtspSubject:
    def __init__(self, lab: Lab) -> None:
        with lab.listen("outside", SERVER4, 554) as listener:
            client = lab.connect("inside", SERVER4, 554)
            server, _ = listener.accept()
        for end in (client, server):
            end.settimeout(15)
        self.session = Session(lab, client, server, SERVER4)
        self.public = self.session.set_up(5000)
        self.rtp, self.sender = Udp(lab, "inside", CLIENT4, 5000), Udp(lab, "outside", SERVER4, 6970)
        self.numbers = itertools.count(10)

    def works(self) -> None:
        self.rtp.sock.settimeout(0.3)
        end = time.monotonic() + 5
        while True:
            self.sender.send(b"picture", (ROUTER_OUT4, self.public))
            with contextlib.suppress(TimeoutError):
                assert self.rtp.receive() == (b"picture", (SERVER4, 6970))
                break
            assert time.monotonic() < end, "no picture"
        self.rtp.send(b"punch", (SERVER4, 6970))
        self.sender.sock.settimeout(5)
        assert self.sender.receive() == (b"punch", (ROUTER_OUT4, self.public))
        number = next(self.numbers)
        said = f"GET_PARAMETER rtsp://a RTSP/1.0\r\nCSeq: {number}\r\nSession: 7\r\n\r\n"
        assert self.session.asks(said) == said
        assert self.session.answers(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n\r\n")

    def end(self) -> None:
        assert self.session.asks("TEARDOWN rtsp://a RTSP/1.0\r\nCSeq: 99\r\nSession: 7\r\n\r\n")

    def close(self) -> None:
        for each in (self.session, self.rtp.sock, self.sender.sock):
            each.close()


class MappingSubject:
    """A mapping, with a connection of a stranger through it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = PcpClient(lab, "inside", CLIENT4, ROUTER_IN4)
        for port, protocol in ((5200, UDP), (5201, TCP)):
            answer = self.client.map(port, suggested=port, lifetime=3600, protocol=protocol)
            assert (answer.result, answer.port) == (0, port)
        self.near, self.far = Udp(lab, "inside", CLIENT4, 5200), Udp(lab, "stranger", STRANGER4)
        self.listener = lab.listen("inside", CLIENT4, 5201)
        self.there = lab.connect("stranger", ROUTER_OUT4, 5201)
        self.here, _ = self.listener.accept()
        for end in (self.here, self.there):
            end.settimeout(15)

    def works(self) -> None:
        self.near.sock.settimeout(0.3)
        end = time.monotonic() + 5
        while True:
            self.far.send(b"in", (ROUTER_OUT4, 5200))
            with contextlib.suppress(TimeoutError):
                _, source = self.near.receive()
                break
            assert time.monotonic() < end, "nothing comes through the mapping"
        self.near.send(b"out", source)
        assert self.far.receive() == (b"out", (ROUTER_OUT4, 5200))
        self.there.sendall(b"from outside")
        assert self.here.recv(100) == b"from outside"
        self.here.sendall(b"from inside")
        assert self.there.recv(100) == b"from inside"
        with self.lab.connect("stranger", ROUTER_OUT4, 5201):
            self.listener.accept()[0].close()

    def end(self) -> None:
        for port, protocol in ((5200, UDP), (5201, TCP)):
            assert self.client.map(port, lifetime=0, protocol=protocol).result == 0

    def close(self) -> None:
        for each in (self.client, self.near.sock, self.far.sock, self.listener, self.here, self.there):
            each.close()


SUBJECTS: dict[str, Callable[[Lab, Gateway, FtpServer], Subject]] = {
    "call over UDP": lambda lab, gateway, _: CallSubject(lab, gateway, "udp"),
    "call over TCP": lambda lab, gateway, _: CallSubject(lab, gateway, "tcp"),
    "FTP": FtpSubject,
    "RTSP": lambda lab, _gateway, _server: RtspSubject(lab),
    "mapping": lambda lab, _gateway, _server: MappingSubject(lab),
}


def _ip(lab: Lab, *words: str) -> None:
    lab.run("router", ["ip", *words])


def conntrack_emptied(lab: Lab, gateway: Gateway) -> None:
    lab.run("router", ["conntrack", "-F"])


def outside_down_and_up(lab: Lab, gateway: Gateway) -> None:
    _ip(lab, "link", "set", "eth0", "down")
    _ip(lab, "link", "set", "eth0", "up")
    _ip(lab, "-6", "address", "replace", "2001:db8:113::2/64", "dev", "eth0", "nodad")
    _ip(lab, "route", "replace", "default", "via", SERVER4)


def inside_down_and_up(lab: Lab, gateway: Gateway) -> None:
    _ip(lab, "link", "set", "eth1", "down")
    _ip(lab, "link", "set", "eth1", "up")
    _ip(lab, "-6", "address", "replace", "fd00:56::2/64", "dev", "eth1", "nodad")


def another_address_comes_and_goes(lab: Lab, gateway: Gateway) -> None:
    _ip(lab, "address", "add", f"{MORE_OUT4}/24", "dev", "eth0")
    time.sleep(2.5)  # as long as it takes until all have looked
    _ip(lab, "address", "delete", f"{MORE_OUT4}/24", "dev", "eth0")


def the_address_goes_and_comes_back(lab: Lab, gateway: Gateway) -> None:
    """As a lease of DHCP that is lost for a moment."""
    _ip(lab, "address", "delete", f"{ROUTER_OUT4}/24", "dev", "eth0")
    _ip(lab, "address", "add", f"{ROUTER_OUT4}/24", "dev", "eth0")
    _ip(lab, "route", "replace", "default", "via", SERVER4)


def reload_with_other_ports(lab: Lab, gateway: Gateway) -> None:
    text = gateway.config.read_text()
    config: dict[str, Any] = tomllib.loads(text)
    for name in ("sip", "rtsp", "ftp"):
        section = config.setdefault("alg", {}).setdefault(name, {})
        own = {"sip": 5060, "rtsp": 554, "ftp": 21}[name]
        section["ports"] = [own, own + 20]
    gateway.config.write_text(tomli_w.dumps(config))
    try:
        assert "rror" not in gateway.algate("reload").stderr
    finally:
        gateway.config.write_text(text)


def reload_with_other_pinhole_ports(lab: Lab, gateway: Gateway) -> None:
    text = gateway.config.read_text()
    config: dict[str, Any] = tomllib.loads(text)
    config.setdefault("pinhole", {})["ports"] = "50000-51999"
    gateway.config.write_text(tomli_w.dumps(config))
    try:
        gateway.algate("reload")
    finally:
        gateway.config.write_text(text)


def all_rules_flushed(lab: Lab, gateway: Gateway) -> None:
    """As by a firewall that starts anew: every table of every program. Once for each subject: the broker's table is
    made again five times at once, and then once a minute."""
    lab.run("router", ["nft", "flush", "ruleset"])
    firewall.load(lab)
    lab.wait_for(lambda: _has_rules(lab), 10, "the rules to be back")


def another_firewall_restored(lab: Lab, gateway: Gateway) -> None:
    """iptables-restore replaces whole tables."""
    for program in ("iptables-restore", "ip6tables-restore"):
        lab.run("router", [program], stdin="".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle")))
    firewall.load(lab)
    lab.wait_for(lambda: _has_rules(lab), 10, "the rules to be back")


def _has_rules(lab: Lab) -> bool:
    """Whether the broker's table and all of iptables' chains are there, of both families."""
    found = lab.run("router", ["nft", "list", "ruleset"]).stdout
    return "chain before {" in found and len(re.findall(r"jump \S+-(?:PREROUTING|FORWARD|INPUT)\b", found)) >= 2 * 5


def pid_of(gateway: Gateway, name: str) -> int:
    (row,) = [row for row in gateway.admin("status") if row["process"] == name]
    return int(row["pid"])


def _killed(name: str) -> Callable[[Lab, Gateway], None]:
    def kill(lab: Lab, gateway: Gateway) -> None:
        before = pid_of(gateway, name)
        os.kill(before, signal.SIGKILL)
        lab.wait_for(lambda: _pid_now(gateway, name) not in (None, before), 20, f"another {name}")

    return kill


def _pid_now(gateway: Gateway, name: str) -> int | None:
    try:
        return pid_of(gateway, name)
    except (LabError, ValueError):  # it has not begun yet
        return None


EVENTS: dict[str, Callable[[Lab, Gateway], None]] = {
    "conntrack -F": conntrack_emptied,
    "outside down and up": outside_down_and_up,
    "inside down and up": inside_down_and_up,
    "another address comes and goes": another_address_comes_and_goes,
    "the address goes and comes back": the_address_goes_and_comes_back,
    "reload with other ports": reload_with_other_ports,
    "reload with other pinhole ports": reload_with_other_pinhole_ports,
    "all rules flushed": all_rules_flushed,
    "another firewall restored": another_firewall_restored,
    "broker killed": _killed("broker"),
    "packets killed": _killed("packets"),
    "portmap killed": _killed("portmap"),
}
IN_THE_SUITE = (conntrack_emptied, all_rules_flushed)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(event, id=name, marks=[] if event in IN_THE_SUITE else [pytest.mark.long])
        for name, event in EVENTS.items()
    ],
)
@pytest.mark.parametrize("begin", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_it_goes_on(
    lab: Lab,
    gateway: Gateway,
    server: FtpServer,
    begin: Callable[[Lab, Gateway, FtpServer], Subject],
    event: Callable[[Lab, Gateway], None],
) -> None:
    subject = begin(lab, gateway, server)
    try:
        subject.works()
        event(lab, gateway)
        subject.works()
        subject.end()
    finally:
        subject.close()
        gateway.rules("apply")  # and the next ones are put back as often as the first ones
        gateway.algate("reload")
        lab.wait_for(lambda: _has_no_flows(gateway), 30, "no flow")


def _has_no_flows(gateway: Gateway) -> bool:
    try:
        return gateway.admin("flows") == []
    except LabError:  # a process that was replaced has not begun yet
        return False


def test_a_packets_process_that_stands_while_its_queue_runs_over(lab: Lab, gateway: Gateway) -> None:
    """Media of the call go on meanwhile, and so does all that no module reads; afterwards SIP is served again."""
    call = CallSubject(lab, gateway, "udp")
    pid = pid_of(gateway, "packets")
    try:
        call.works()
        (media,) = pinholes(gateway, "sip.rtp")
        public = split(media["public"])
        with (
            Udp(lab, "inside", CLIENT4) as noise,
            Udp(lab, "inside", CLIENT4) as asks,
            Udp(lab, "outside", SERVER4, 53) as dns,
        ):
            os.kill(pid, signal.SIGSTOP)
            try:
                end, turn = time.monotonic() + 5, 0
                while time.monotonic() < end:
                    for _ in range(100):
                        noise.send(b"OPTIONS sip:a@b SIP/2.0\r\n\r\n", (SERVER4, 5060))
                    call.near.send((SERVER4, 9100), b"out%d" % turn)
                    assert call.far.hears(1) == b"out%d" % turn
                    call.far.send(public, b"in%d" % turn)
                    assert call.near.hears(1) == b"in%d" % turn
                    asks.send(b"question%d" % turn, (SERVER4, 53))
                    data, source = dns.receive()
                    assert data == b"question%d" % turn
                    dns.send(b"answer", source)
                    assert asks.receive()[0] == b"answer"
                    turn += 1
                    time.sleep(0.02)
            finally:
                os.kill(pid, signal.SIGCONT)
        assert pid_of(gateway, "packets") == pid  # nobody has lost patience

        def answered() -> bool:
            with contextlib.suppress(TimeoutError):
                call.wire.ask("OPTIONS", next(call.numbers))
                return True
            return False

        # What waited is read first, by the server too.
        call.wire.far.settimeout(0.2)
        call.wire.near.settimeout(0.5)
        _drain(call.wire.far)
        lab.wait_for(answered, 10, "SIP to be served again")
        _drain(call.wire.far)
        call.wire.far.settimeout(5)
        call.wire.near.settimeout(5)
        call.works()
        call.end()
    finally:
        call.close()


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(TimeoutError):
        while True:
            sock.recv(65535)
