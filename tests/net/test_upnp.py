"""Public ports that clients ask for by UPnP: upnpc, libtorrent, a browser that may not, and a client that does what a
test says. The router forwards nothing from outside (FORWARD policy DROP)."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT2_4,
    CLIENT4,
    CLIENT6,
    INSIDE_NETWORKS,
    ROUTER_IN4,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    Lab,
    Role,
)
from tests.lab.peers import MULTIARCH, installed, unpacked
from tests.lab.udp import Udp, goes_both_ways
from tests.net.upnp_client import (
    FIREWALL,
    IGD,
    Igd,
    envelope,
    exchange,
    mapping_arguments,
    request,
    search,
    search_message,
    soap,
)

HTTP = 2869
SSDP = 1900
CHROMIUM = "/usr/bin/chromium"
GLOBAL_NET, GLOBAL, ROUTER_GLOBAL = "2001:db8:56::/64", "2001:db8:56::10", "2001:db8:56::2"
SYSTEM_PYTHON = "/usr/bin/python3"  # for which Debian's libtorrent is


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """The public address is the one that faces the default route, so that it can change."""
    lab.run("inside", ["ip", "address", "add", f"{GLOBAL}/64", "dev", "eth0", "nodad"])
    lab.run("router", ["ip", "address", "add", f"{ROUTER_GLOBAL}/64", "dev", "eth1", "nodad"])
    lab.run("outside", ["ip", "route", "add", GLOBAL_NET, "via", ROUTER_OUT6])
    lab.run("router", ["ip", "route", "add", "default", "via", SERVER4])
    inside = [*INSIDE_NETWORKS, GLOBAL_NET]
    sections: dict[str, Any] = {"network": {"inside": inside}, "process": {"workers": 1}}
    gateway = lab.start_gateway(lab.write_config(portmap={"protocols": ["upnp", "pcp"], "per_client": 8}, **sections))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture
def igd(lab: Lab, gateway: Gateway) -> Iterator[Igd]:
    igd = Igd(lab, "inside", CLIENT4)
    yield igd
    clear(Igd(lab, "inside", CLIENT4, 2))


@pytest.fixture
def other(lab: Lab, gateway: Gateway) -> Iterator[Igd]:
    other = Igd(lab, "client2", CLIENT2_4)
    yield other
    clear(Igd(lab, "client2", CLIENT2_4, 2))


def clear(igd: Igd) -> None:
    """End all that a client has."""
    for transport in ("TCP", "UDP"):
        given = {"NewStartPort": 0, "NewEndPort": 65535, "NewProtocol": transport, "NewManage": 0}
        assert igd.ask(igd.connection, "DeletePortMappingRange", **given).code in (0, 730)


def pinholes(gateway: Gateway) -> set[tuple[str, str, str]]:
    """What is open by UPnP: protocol, public port, target."""
    rows = [hole for hole in gateway.admin("pinholes") if hole["reason"] == "map.upnp"]
    return {(hole["protocol"], hole["public"], hole["target"]) for hole in rows}


def upnpc(lab: Lab, *arguments: str, role: Role = "inside", igd: Igd | None = None) -> str:
    """What upnpc says. It calls 203.0.113.0/24 reserved, and goes on with -i. `igd`: it need not search for two
    seconds."""
    known = ["-u", igd.location] if igd is not None else []
    return lab.run(role, [installed("miniupnpc", "/usr/bin/upnpc"), "-i", *known, *arguments], check=False).stdout


def reaches(lab: Lab, role: Role, host: str, port: int, listener: socket.socket, timeout: float = 5) -> bool:
    """Whether a connection comes to the listener, and bytes both ways."""
    try:
        with lab.connect(role, host, port, timeout=timeout) as sock:
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(5)
                sock.sendall(b"ping")
                assert accepted.recv(16) == b"ping"
                accepted.sendall(b"pong")
                assert sock.recv(16) == b"pong"
    except (TimeoutError, ConnectionRefusedError):
        return False
    return True


# --- with a real client -----------------------------------------------------------------------------------------------


def test_upnpc_gets_a_port_and_two_strangers_come_at_once(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    assert "51413 TCP is redirected to internal" in upnpc(lab, "-a", CLIENT4, "51413", "51413", "tcp", "3600")
    assert pinholes(gateway) == {("tcp", f"{ROUTER_OUT4}:51413", f"{CLIENT4}:51413")}
    with (
        lab.listen("inside", CLIENT4, 51413) as listener,
        lab.connect("outside", ROUTER_OUT4, 51413) as client,
        lab.connect("stranger", ROUTER_OUT4, 51413) as two,
    ):
        accepted = dict((listener.accept()[::-1], listener.accept()[::-1]))
        assert {address[0] for address in accepted} == {SERVER4, STRANGER4}
        for sock in (client, two):
            sock.sendall(b"ping")
            peer = accepted[sock.getsockname()]
            assert peer.recv(16) == b"ping"
            peer.sendall(b"pong")
            assert sock.recv(16) == b"pong"
        for sock in accepted.values():
            sock.close()
        listed = upnpc(lab, "-l", igd=igd)
        assert re.search(rf"0 TCP 51413->{CLIENT4}:51413 'libminiupnpc' '' 3\d\d\d", listed)
        assert "51413->" not in upnpc(lab, "-l", role="client2", igd=igd)  # one's own only
        assert "DeletePortMapping() returned : 0" in upnpc(lab, "-d", "51413", "tcp", igd=igd)
        lab.wait_for(lambda: not pinholes(gateway), 5, "the port to close")
        assert not reaches(lab, "outside", ROUTER_OUT4, 51413, listener, 1)


def test_upnpc_may_not_ask_for_others_and_for_services(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    lines = len(gateway.log_lines())
    assert "failed with code 606" in upnpc(lab, "-a", CLIENT2_4, "6000", "6000", "tcp", igd=igd)
    gateway.wait_for_log(f"portmap.refused.*client={CLIENT4}.*why=client.*{CLIENT2_4}", 5, lines)
    assert "failed with code 606" in upnpc(lab, "-a", CLIENT4, "22", "2222", "tcp", igd=igd)
    gateway.wait_for_log(f"portmap.refused.*client={CLIENT4}.*port=22.*why=inside_port", 5, lines)
    assert pinholes(gateway) == set()


def test_upnpc_opens_a_pinhole_of_ipv6(lab: Lab, gateway: Gateway) -> None:
    """WANIPv6FirewallControl, found by a search for version 1 over IPv6."""
    said = upnpc(lab, "-6", "-m", "eth0", "-A", "", "0", GLOBAL, "6000", "tcp", "600")
    assert pinholes(gateway) == {("tcp", f"[{GLOBAL}]:6000", f"[{GLOBAL}]:6000")}, said
    igd = Igd(lab, "inside", GLOBAL, 2)
    number = re.search(r"Pinhole ID\D*(\d+)", said)
    assert number is not None, said
    assert igd.ask(FIREWALL, "DeletePinhole", UniqueID=number[1]).status == 200
    assert pinholes(gateway) == set()


TORRENT = """
import sys, time
import libtorrent as lt
own, info_hash, tracker, folder = sys.argv[1:]
session = lt.session({"enable_upnp": True, "enable_natpmp": True, "enable_dht": False, "enable_lsd": False,
    "listen_interfaces": own + ":6881", "alert_mask": 0x7FFFFFFF})
end = time.time() + 60
mapped = []
while time.time() < end and len(mapped) < 4:
    session.wait_for_alert(500)
    for alert in session.pop_alerts():
        if alert.what().startswith("portmap"):
            print(alert.what(), alert.message(), file=sys.stderr, flush=True)
        if alert.what() == "portmap":
            mapped.append(alert.external_port)
torrent = lt.parse_magnet_uri("magnet:?xt=urn:btih:" + info_hash + "&tr=" + tracker)
torrent.save_path = folder
session.add_torrent(torrent)
print("mapped", mapped, flush=True)
sys.stdin.readline()
"""
TRACKER = """
import http.server, sys
class Tracker(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("announced", self.path, flush=True)
        body = b"d8:intervali60e5:peers0:e"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer((sys.argv[1], 6969), Tracker).serve_forever()
"""


def test_libtorrent_maps_its_ports_and_a_peer_comes(lab: Lab, gateway: Gateway) -> None:
    """By PCP and UPnP at once. A peer outside connects to the port that the tracker was told."""
    probe = subprocess.run([SYSTEM_PYTHON, "-c", "import libtorrent"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("python3-libtorrent is not installed: make setup brings it, where this release has it")
    info_hash = bytes(range(20))
    heard, log = lab.logs / "tracker.log", lab.logs / "libtorrent.log"
    tracker = lab.popen("outside", [sys.executable, "-c", TRACKER, SERVER4], log=heard)
    lab.wait_for(lambda: _serves(lab, SERVER4, 6969), 10, "the tracker")
    words: list[str | Path] = [SYSTEM_PYTHON, "-c", TORRENT, CLIENT4, info_hash.hex()]
    words += [f"http://{SERVER4}:6969/announce", lab.tmp]
    process = lab.popen("inside", words, log=log, stdin=subprocess.PIPE)
    lab.wait_for(
        lambda: "mapped [" in log.read_text() or process.poll() is not None, 60, "libtorrent to have its ports"
    )
    assert "mapped [6881, 6881, 6881, 6881]" in log.read_text(), log.read_text()
    rows = [hole for hole in gateway.admin("pinholes") if hole["target"] == f"{CLIENT4}:6881"]
    assert {(hole["reason"], hole["protocol"]) for hole in rows} == {
        (reason, protocol) for reason in ("map.pcp", "map.upnp") for protocol in ("tcp", "udp")
    }
    lab.wait_for(lambda: "announced" in heard.read_text(), 20, "an announcement")
    found = re.search(r"&port=(\d+)&", heard.read_text())
    assert found is not None
    with lab.connect("outside", ROUTER_OUT4, int(found[1])) as sock:
        sock.sendall(b"\x13BitTorrent protocol" + bytes(8) + info_hash + b"-XX0000-" + bytes(12))
        answer = b""
        while len(answer) < 68:
            more = sock.recv(100)
            assert more, answer
            answer += more
    assert answer[28:48] == info_hash
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.wait(30)
    for program in (process, tracker):
        lab.stop(program)
    # It ends what it has by both protocols, and the port closes with the last one.
    rows = [hole for hole in gateway.admin("pinholes") if hole["target"] == f"{CLIENT4}:6881"]
    assert rows == []


@pytest.fixture
def ordinary_address(gateway: Gateway) -> Iterator[str]:
    """A public address that is none of 203.0.113.0/24, which miniupnpc calls reserved."""
    before = gateway.config.read_text()
    host = "1.2.3.4"
    gateway.config.write_text(before.replace("[network]", f'[network]\noutside = "{host}"'))
    gateway.reload()
    yield host
    gateway.config.write_text(before)
    gateway.reload()


def test_transmission_maps_its_ports(lab: Lab, gateway: Gateway, ordinary_address: str) -> None:
    program = unpacked("transmission-daemon", "usr/bin/transmission-daemon")
    lab.wait_for(lambda: _external(lab) == ordinary_address, 20, "the new address to be told")
    folder = lab.tmp / "transmission"
    folder.mkdir()
    settings: dict[str, Any] = {
        "port-forwarding-enabled": True,
        "peer-port": 51420,
        "dht-enabled": False,
        "lpd-enabled": False,
    }
    settings |= {"rpc-enabled": False, "bind-address-ipv4": CLIENT4}
    (folder / "settings.json").write_text(json.dumps(settings))
    process = lab.popen("inside", [program, "-f", "-g", folder])
    target = f"{CLIENT4}:51420"
    wanted = {("tcp", f"{ROUTER_OUT4}:51420", target), ("udp", f"{ROUTER_OUT4}:51420", target)}
    lab.wait_for(lambda: pinholes(gateway) == wanted, 30, "transmission to have its ports")
    with lab.connect("outside", ROUTER_OUT4, 51420) as sock:
        sock.sendall(b"\x13BitTorrent protocol" + bytes(48))
        with contextlib.suppress(ConnectionResetError):  # it knows no such torrent
            assert sock.recv(100) == b""
    lab.stop(process, 20)
    lab.wait_for(lambda: not pinholes(gateway), 5, "transmission to end what it has")


def _external(lab: Lab) -> str:
    """The public address as a client is told it; empty while the process is replaced."""
    try:
        igd = Igd(lab, "inside", CLIENT4)
        return igd.ask(igd.connection, "GetExternalIPAddress").value("NewExternalIPAddress")
    except OSError:
        return ""


GUPNP_IGD = """
import sys, gi
gi.require_version("GUPnPIgd", "1.0")
from gi.repository import GLib, GUPnPIgd
loop, igd = GLib.MainLoop(), GUPnPIgd.SimpleIgd()
def mapped(_igd, protocol, external, _replaced, port, local, local_port, description, *_):
    print("mapped", protocol, external, port, local, local_port, description, flush=True)
    GLib.timeout_add(100, ended)
def ended():
    igd.remove_port("TCP", 7400)
    GLib.timeout_add(1000, loop.quit)
igd.connect("mapped-external-port", mapped)
igd.connect("error-mapping-port", lambda *said: print("error", *said, flush=True))
igd.add_port("TCP", 7400, sys.argv[1], 7400, 600, "voice")
GLib.timeout_add_seconds(20, loop.quit)
loop.run()
"""


def test_gupnp_igd_maps_and_ends(lab: Lab, gateway: Gateway) -> None:
    """The library of Pidgin and of ICE agents (libnice)."""
    installed("gir1.2-gupnpigd-1.0", _typelib("GUPnPIgd-1.0"))
    lines = len(gateway.log_lines())
    said = lab.run("inside", [SYSTEM_PYTHON, "-c", GUPNP_IGD, CLIENT4], 40, check=False).stdout
    assert f"mapped TCP {ROUTER_OUT4} 7400 {CLIENT4} 7400 voice" in said
    gateway.wait_for_log("pinhole.close.*target=192.168.56.10:7400", 5, lines)
    assert pinholes(gateway) == set()


GUPNP = """
import sys, gi
gi.require_version("GUPnP", "1.6")
from gi.repository import GLib, GUPnP
loop, kept, left = GLib.MainLoop(), [], {"scpd", "event"}
def tell(what, *said):
    print(what, *said, flush=True)
    left.discard(what)
    if not left:
        loop.quit()
def found(_point, service):
    kept.append(service)
    service.add_notify("ExternalIPAddress", str, lambda _service, name, value: tell("event", name, value))
    service.set_subscribed(True)
    service.introspect_async(None, lambda one, result: tell("scpd", len(one.introspect_finish(result).list_actions())))
point = GUPnP.ControlPoint.new(GUPnP.Context.new("eth0", 0), sys.argv[1])
point.connect("service-proxy-available", found)
point.set_active(True)
GLib.timeout_add_seconds(20, loop.quit)
loop.run()
"""


@pytest.mark.parametrize(("version", "actions"), [(1, 11), (2, 14)])
def test_gupnp_reads_the_descriptions_and_hears_events(lab: Lab, gateway: Gateway, version: int, actions: int) -> None:
    installed("gir1.2-gupnp-1.6", _typelib("GUPnP-1.6"))
    service = f"urn:schemas-upnp-org:service:WANIPConnection:{version}"
    said = lab.run("inside", [SYSTEM_PYTHON, "-W", "ignore", "-c", GUPNP, service], timeout=40).stdout
    assert f"scpd {actions}" in said
    assert f"event ExternalIPAddress {ROUTER_OUT4}" in said


def _typelib(name: str) -> str:
    return f"/usr/lib/{MULTIARCH}/girepository-1.0/{name}.typelib"


# --- two consoles, hairpin --------------------------------------------------------------------------------------------


def test_two_consoles_want_one_port(lab: Lab, gateway: Gateway, igd: Igd, other: Igd) -> None:
    """The second one gets another; what each sends leaves from its own, whoever it is sent to."""
    assert igd.add(3074, 3074, "UDP").status == 200
    assert other.add(3074, 3074, "UDP").code == 718
    assert other.add(3074, 3075, "UDP").status == 200
    with (
        Udp(lab, "inside", CLIENT4, 3074) as near,
        Udp(lab, "client2", CLIENT2_4, 3074) as beside,
        Udp(lab, "outside", SERVER4, 9000) as server,
        Udp(lab, "stranger", STRANGER4, 9000) as stranger,
    ):
        for client, public in ((near, 3074), (beside, 3075)):
            for peer in (server, stranger):
                goes_both_ways(client.sock, peer.sock, (ROUTER_OUT4, public))


def test_another_inside_client_comes_by_the_public_address(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    assert igd.add(51413, 51413).status == 200
    with lab.listen("inside", CLIENT4, 51413) as listener:
        assert reaches(lab, "client2", ROUTER_OUT4, 51413, listener)


def test_a_remote_host_is_a_filter(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    given = {**mapping_arguments(6100, 6100, "TCP", CLIENT4, 600), "NewRemoteHost": SERVER4}
    assert igd.ask(igd.connection, "AddPortMapping", **given).status == 200
    with lab.listen("inside", CLIENT4, 6100) as listener:
        assert reaches(lab, "outside", ROUTER_OUT4, 6100, listener)
        assert not reaches(lab, "stranger", ROUTER_OUT4, 6100, listener, 1)


# --- IPv6 -------------------------------------------------------------------------------------------------------------


def test_a_pinhole_of_ipv6_lets_strangers_in(lab: Lab, gateway: Gateway) -> None:
    igd = Igd(lab, "inside", GLOBAL, 2)
    given = {"RemoteHost": "", "RemotePort": 0, "InternalClient": GLOBAL, "InternalPort": 6200, "Protocol": 6}
    added = igd.ask(FIREWALL, "AddPinhole", **given, LeaseTime=600)
    assert added.status == 200, added
    number = added.value("UniqueID")
    with lab.listen("inside", GLOBAL, 6200) as listener:
        assert reaches(lab, "outside", GLOBAL, 6200, listener)
        assert int(igd.ask(FIREWALL, "GetPinholePackets", UniqueID=number).value("PinholePackets")) > 0
        assert igd.ask(FIREWALL, "CheckPinholeWorking", UniqueID=number).value("IsWorking") == "1"
        assert igd.ask(FIREWALL, "UpdatePinhole", UniqueID=number, NewLeaseTime=300).status == 200
        assert igd.ask(FIREWALL, "DeletePinhole", UniqueID=number).status == 200
        lab.wait_for(lambda: not pinholes(gateway), 5, "the pinhole to close")
        assert not reaches(lab, "outside", GLOBAL, 6200, listener, 1)


# --- discovery --------------------------------------------------------------------------------------------------------


def test_searches_find_the_device_of_their_version(lab: Lab, gateway: Gateway) -> None:
    for version in (1, 2):
        [answer] = search(lab, "inside", CLIENT4, f"{IGD}{version}")
        assert answer["st"] == f"{IGD}{version}"
        assert re.fullmatch(rf"http://{ROUTER_IN4}:{HTTP}/[0-9a-f]{{32}}/{version}/root.xml", answer["location"])
    assert len(list(search(lab, "inside", CLIENT4, "ssdp:all"))) == 10
    [answer] = search(lab, "inside", CLIENT4, "upnp:rootdevice", ROUTER_IN4)  # to this host alone
    assert answer["usn"].endswith("::upnp:rootdevice")
    [answer] = search(lab, "inside", CLIENT6, f"{IGD}1", "ff02::c")
    assert answer["location"].startswith(f"http://[{ROUTER_GLOBAL}]:{HTTP}/")
    assert answer["location"].endswith("/2/root.xml")
    said = lab.run("inside", ["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]).stdout
    link = said.split()[3].partition("/")[0]  # of the link: it is told an address from which pinholes can be asked for
    [answer] = search(lab, "inside", link, f"{IGD}2", "ff02::c")
    assert answer["location"].startswith(f"http://[{ROUTER_GLOBAL}]:{HTTP}/")


def test_the_gateway_is_announced_and_says_good_bye(lab: Lab) -> None:
    with lab.enter("inside"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("239.255.255.250", SSDP))
        member = socket.inet_aton("239.255.255.250") + socket.inet_aton(CLIENT4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    sock.settimeout(15)
    with sock:

        def hear(kind: bytes) -> tuple[bytes, str]:
            while True:
                data, source = sock.recvfrom(2000)
                if b"NTS: " + kind in data:
                    return data, source[0]

        config = lab.write_config(portmap={"protocols": ["upnp"], "http_port": 2870}, process={"workers": 1})
        gateway = lab.start_gateway(config)
        hear(b"ssdp:byebye")
        data, source = hear(b"ssdp:alive")
        assert source == ROUTER_IN4
        assert f"LOCATION: http://{ROUTER_IN4}:2870/".encode() in data
        assert gateway.stop() == 0
        hear(b"ssdp:byebye")


def test_from_outside_nothing_answers(lab: Lab, gateway: Gateway) -> None:
    """Nor a reset, by which a scanner would see that there is a port."""
    igd = Igd(lab, "inside", CLIENT4)
    for host in (ROUTER_OUT4, ROUTER_IN4):
        with contextlib.suppress(OSError):
            lab.run("outside", ["ip", "route", "add", f"{ROUTER_IN4}/32", "via", ROUTER_OUT4], check=False)
        with pytest.raises(TimeoutError):
            lab.connect("outside", host, HTTP, timeout=1)
        with Udp(lab, "outside", SERVER4) as sock:
            sock.sock.settimeout(1)
            sock.sock.sendto(search_message("ssdp:all"), (host, SSDP))
            with pytest.raises(TimeoutError):
                sock.sock.recvfrom(2000)
    lab.run("outside", ["ip", "route", "del", f"{ROUTER_IN4}/32"])
    # Nor the public address from inside, but through the mapping of a client.
    answer = exchange(lab, "inside", igd.location, request("GET", igd.location, {"Host": f"{ROUTER_OUT4}:{HTTP}"}))
    assert answer.status == 404


GROUPS = "239.255.255.250", "ff02::c"


def test_from_outside_a_capture_sees_no_answer(lab: Lab, gateway: Gateway) -> None:
    """tcpdump outside sees each question of a stranger, and nothing of this router's but what a client sends through
    it: no answer, no reset, no ICMP."""
    log = lab.logs / "tcpdump.log"
    tcpdump = installed("tcpdump", "/usr/bin/tcpdump")
    capture = lab.popen("outside", [tcpdump, "-i", "eth0", "-n", "-l", "--immediate-mode", "not", "arp"], log=log)
    lab.wait_for(lambda: "listening on" in log.read_text(), 10, "the capture to begin")
    lab.run("outside", ["ip", "route", "add", f"{ROUTER_IN4}/32", "via", ROUTER_OUT4])
    try:
        asked = [
            *(
                (5351, data)
                for data in (bytes(2), b"\0\1" + bytes(10), b"\2\0" + bytes(22), b"\2\1" + bytes(58), b"\x09\0\0\0")
            ),
            *((SSDP, search_message(target)) for target in ("ssdp:all", f"{IGD}1", f"{IGD}2")),
        ]
        for host in (ROUTER_OUT4, ROUTER_IN4, ROUTER_OUT6):
            source = SERVER6 if ":" in host else SERVER4
            with Udp(lab, "outside", source) as sock:
                for port, data in asked:
                    sock.send(data, (host, port))
                group = GROUPS[":" in host]
                if ":" not in host:
                    sock.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(SERVER4))
                for port, data in asked:
                    if port == SSDP:
                        sock.send(data, (group, port))
            with pytest.raises(TimeoutError):
                lab.connect("outside", host, HTTP, timeout=0.5)
        with Udp(lab, "inside", CLIENT4) as near, Udp(lab, "outside", SERVER4) as far:  # so that one sees that it sees
            near.send(b"the end", far.sock.getsockname())
            _, end = far.receive()
        lab.wait_for(lambda: f"{end[0]}.{end[1]} > {SERVER4}" in log.read_text(), 10, "the capture to see the end")
    finally:
        lab.run("outside", ["ip", "route", "del", f"{ROUTER_IN4}/32"])
        lab.stop(capture)
    packets = re.findall(r" IP6? (\S+) > (\S+): (.*)", log.read_text())
    assert len([1 for source, _, _ in packets if source.startswith((f"{SERVER4}.", f"{SERVER6}."))]) >= 3 * len(asked)
    own = (f"{SERVER4}.", f"{SERVER6}.", f"{end[0]}.{end[1]} ")
    of_links = re.compile(r"ICMP6, (neighbor|multicast listener|router solicitation)|igmp")
    answers = [one for one in packets if not f"{one[0]} ".startswith(own) and not of_links.search(one[2])]
    assert answers == []


# --- pages of the web -------------------------------------------------------------------------------------------------


def test_what_a_page_of_the_web_can_send_maps_nothing(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    url, service = igd.url(igd.connection, "controlURL"), igd.connection
    given = mapping_arguments(6300, 6300, "TCP", CLIENT4, 600)
    body = envelope(service, "AddPortMapping", given)
    action = {"SOAPAction": f'"{service}#AddPortMapping"'}
    for status, data in {
        400: request("POST", url, {"Content-Type": "text/plain"}, body),
        404: request("POST", url, {**action, "Host": f"evil.example:{HTTP}"}, body),
        403: request("POST", url, {**action, "Origin": "http://evil.example"}, body),
        405: request("OPTIONS", url, {"Access-Control-Request-Method": "POST"}),
    }.items():
        answer = exchange(lab, "inside", url, data)
        assert answer.status == status
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert pinholes(gateway) == set()
    assert exchange(lab, "inside", url, request("POST", url, action, body)).status == 200


BROWSER = """
import json, sys
from playwright.sync_api import sync_playwright
chromium, page_url, control, rebound, body, action = sys.argv[1:]
SCRIPT = '''async ([control, rebound, body, action]) => {
    const said = {};
    const attempt = async (name, call) => {
        try { said[name] = String(await call()); } catch (error) { said[name] = "error: " + error; }
    };
    const text = async answer => (await answer).status + (await (await answer).text()).slice(0, 100);
    await attempt("simple", () => text(fetch(control, {method: "POST", body})));
    await attempt("opaque", async () => (await fetch(control, {method: "POST", mode: "no-cors", body})).type);
    await attempt("soap", () => text(fetch(control, {method: "POST", headers: {SOAPAction: action}, body})));
    await attempt("rebound", () => text(fetch(rebound, {method: "POST", headers: {SOAPAction: action}, body})));
    await attempt("read", () => text(fetch(control.replace(/WANIPConnection.*/, "root.xml"))));
    const form = document.createElement("form");
    const frame = document.createElement("iframe");
    frame.name = form.target = "target";
    document.body.append(frame, form);
    form.method = "POST"; form.action = control; form.enctype = "text/plain";
    const field = document.createElement("input");
    field.name = body.split("=")[0]; field.value = body.split("=").slice(1).join("=");
    form.append(field);
    const loaded = new Promise(done => { frame.onload = done; setTimeout(done, 3000); });
    form.submit();
    await loaded;
    return said;
}'''
with sync_playwright() as playwright:
    words = ["--no-sandbox", "--host-resolver-rules=MAP *.example 203.0.113.10",
        "--disable-features=BlockInsecurePrivateNetworkRequests,LocalNetworkAccessChecks,"
        "PrivateNetworkAccessSendPreflights,PrivateNetworkAccessRespectPreflightResults"]
    browser = playwright.chromium.launch(executable_path=chromium, args=words)
    page = browser.new_page()
    page.goto(page_url)
    said = page.evaluate(SCRIPT, [control, rebound, body, action])
    # Then the name of a page leads to the router: its requests are of one origin, and may have any header.
    page.goto("/".join(rebound.split("/")[:3]) + "/")
    print("rebind now", flush=True)
    sys.stdin.readline()
    said["after"] = page.evaluate(SCRIPT, [rebound, rebound, body, action])
    print(json.dumps(said), flush=True)
    browser.close()
"""


def test_a_browser_maps_nothing(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    """A page of a server outside, and one whose name leads to the router (DNS rebinding)."""
    pytest.importorskip("playwright.sync_api")
    installed("chromium", CHROMIUM)
    site = lab.tmp / "evil"
    site.mkdir()
    (site / "index.html").write_text("<body>free ringtones</body>")
    servers = []
    for port in (8080, HTTP):
        web: list[str | Path] = [sys.executable, "-m", "http.server", "--directory", site, "--bind", SERVER4, str(port)]
        servers.append(lab.popen("outside", web))
        lab.wait_for(partial(_serves, lab, SERVER4, port), 10, "the web server")
    control, service = igd.url(igd.connection, "controlURL"), igd.connection
    body = envelope(service, "AddPortMapping", mapping_arguments(6400, 6400, "TCP", CLIENT4, 600)).decode()
    rebound = control.replace(ROUTER_IN4, "rebound.example")
    lines = len(gateway.log_lines())
    argv: list[str | Path] = [sys.executable, "-c", BROWSER, CHROMIUM, "http://evil.example:8080/", control, rebound]
    log = lab.logs / "browser.log"
    words = [*argv, body, f'"{service}#AddPortMapping"']
    browser = lab.popen("inside", words, log=log, stdin=subprocess.PIPE, env={"PYTHONUNBUFFERED": "1"})
    lab.wait_for(lambda: "rebind now" in log.read_text() or browser.poll() is not None, 60, "the page")
    assert browser.stdin is not None
    rule = ["OUTPUT", "-d", SERVER4, "-p", "tcp", "--dport", str(HTTP), "-j", "DNAT", "--to", f"{ROUTER_IN4}:{HTTP}"]
    lab.run("inside", ["iptables", "-t", "nat", "-A", *rule])
    try:
        browser.stdin.write(b"\n")
        browser.stdin.flush()
        browser.wait(60)
    finally:
        lab.run("inside", ["iptables", "-t", "nat", "-D", *rule])
        for process in (browser, *servers):
            lab.stop(process)
    said = json.loads(log.read_text().splitlines()[-1])
    assert pinholes(gateway) == set(), said
    assert said["simple"].startswith("error"), said
    assert said["soap"].startswith("error"), said
    assert said["read"].startswith("error"), said
    assert not said["after"]["soap"].startswith("200"), said
    gateway.wait_for_log("portmap.web_page.*evil.example", 5, lines)
    gateway.wait_for_log("portmap.rebinding.*rebound.example", 5, lines)


def _serves(lab: Lab, host: str, port: int) -> bool:
    try:
        lab.connect("inside", host, port, timeout=1).close()
    except OSError:
        return False
    return True


# --- events -----------------------------------------------------------------------------------------------------------


def subscribe(igd: Igd, callback: str, **headers: str) -> dict[str, str]:
    url = igd.url(igd.connection, "eventSubURL")
    fields = {"CALLBACK": f"<{callback}>", "NT": "upnp:event", "TIMEOUT": "Second-1800", **headers}
    answer = exchange(igd.lab, igd.role, url, request("SUBSCRIBE", url, fields))
    return {**answer.headers, "status": str(answer.status)}


def hear(listener: socket.socket) -> str:
    """Accept an event, and say that it was taken."""
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(5)
        said = b""
        while b"</e:propertyset>" not in said:
            said += sock.recv(4096)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    return said.decode()


def test_events_go_to_the_subscriber_only(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    with lab.listen("client2", CLIENT2_4) as victim, lab.listen("outside", SERVER4, 9100) as outside:
        for host, port in (victim.getsockname(), outside.getsockname()):
            assert subscribe(igd, f"http://{host}:{port}/")["status"] == "412"
        assert subscribe(igd, f"http://{CLIENT4}:80/")["status"] == "412"
        for listener in (victim, outside):
            listener.settimeout(0.5)
            with pytest.raises(TimeoutError):
                listener.accept()


def test_an_event_tells_of_the_new_address(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    """And the mapping follows it."""
    new = "203.0.113.3"
    with lab.listen("inside", CLIENT4) as listener, lab.listen("inside", CLIENT4, 6500) as target:
        granted = subscribe(igd, f"http://{CLIENT4}:{listener.getsockname()[1]}/x")
        assert granted["status"] == "200"
        assert granted["timeout"] == "Second-1800"
        first = hear(listener)
        assert "SEQ: 0" in first
        assert f"<ExternalIPAddress>{ROUTER_OUT4}<" in first
        assert "<ConnectionStatus>Connected<" in first
        assert igd.add(6500, 6500).status == 200
        second = hear(listener)
        assert "SEQ: 1" in second
        assert "<PortMappingNumberOfEntries>1<" in second
        lab.run("router", ["ip", "address", "add", f"{new}/24", "dev", "eth0"])
        lab.run("router", ["ip", "route", "change", "default", "via", SERVER4, "src", new])
        try:
            third = hear(listener)
            while f"<ExternalIPAddress>{new}<" not in third:
                third = hear(listener)
            assert igd.ask(igd.connection, "GetExternalIPAddress").value("NewExternalIPAddress") == new
            lab.wait_for(lambda: ("tcp", f"{new}:6500", f"{CLIENT4}:6500") in pinholes(gateway), 10, "the mapping")
            assert reaches(lab, "outside", new, 6500, target)
        finally:
            lab.run("router", ["ip", "route", "change", "default", "via", SERVER4])
            lab.run("router", ["ip", "address", "del", f"{new}/24", "dev", "eth0"])
        lab.wait_for(lambda: ("tcp", f"{ROUTER_OUT4}:6500", f"{CLIENT4}:6500") in pinholes(gateway), 10, "the old one")
        url = igd.url(igd.connection, "eventSubURL")
        for status in (200, 412):
            answer = exchange(lab, "inside", url, request("UNSUBSCRIBE", url, {"SID": granted["sid"]}))
            assert answer.status == status


def test_an_event_that_is_taken_byte_by_byte_is_sent_once(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    """A small device answers in pieces: that is no refusal, for which its other address would be told too."""
    with lab.listen("inside", CLIENT4) as slow, lab.listen("inside", CLIENT4) as other:
        urls = "><".join(f"http://{CLIENT4}:{one.getsockname()[1]}/" for one in (slow, other))
        granted = subscribe(igd, urls)
        assert granted["status"] == "200"
        slow.settimeout(20)
        for number in range(4):
            sock, _ = slow.accept()
            with sock:
                sock.settimeout(5)
                said = b""
                while b"</e:propertyset>" not in said:
                    said += sock.recv(4096)
                assert f"SEQ: {number}\r\n".encode() in said
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":
                    try:
                        sock.sendall(bytes([byte]))
                    except OSError:
                        break  # it has read enough
                    time.sleep(0.002)
            assert igd.add(6510 + number, 6510 + number).status == 200
        other.settimeout(0.5)
        with pytest.raises(TimeoutError):
            other.accept()
        url = igd.url(igd.connection, "eventSubURL")
        assert exchange(lab, "inside", url, request("UNSUBSCRIBE", url, {"SID": granted["sid"]})).status == 200
        for number in range(4):
            igd.delete(6510 + number)


# --- floods -----------------------------------------------------------------------------------------------------------


def test_a_flood_of_one_host_delays_no_other(lab: Lab, gateway: Gateway, igd: Igd, other: Igd) -> None:
    """More than a thousand requests in a few seconds, and searches beside them; another client is served at once."""
    url, service = igd.url(igd.connection, "controlURL"), igd.connection
    data = soap(url, service, "AddPortMapping", mapping_arguments(6600, 6600, "TCP", CLIENT4, 600))
    refused = served = 0
    slowest = 0.0
    with Udp(lab, "inside", CLIENT4) as searcher:
        for number in range(1000):
            try:
                served += exchange(lab, "inside", url, data).status == 200
            except (OSError, IndexError, ValueError):
                refused += 1
            searcher.sock.sendto(search_message("ssdp:all"), (ROUTER_IN4, SSDP))
            if number % 100 == 50:
                began = time.monotonic()
                assert other.add(6700, 6700).status == 200
                slowest = max(slowest, time.monotonic() - began)
    assert refused > 500
    assert served > 0
    assert slowest < 2.0
    assert len(list(search(lab, "client2", CLIENT2_4, f"{IGD}1"))) == 1
    gateway.wait_for_log("portmap.rate")


def test_slow_connections_of_one_host_leave_room_for_others(lab: Lab, gateway: Gateway, other: Igd) -> None:
    held = []
    for _ in range(100):
        with contextlib.suppress(OSError):
            sock = lab.connect("inside", ROUTER_IN4, HTTP, timeout=2)
            held.append(sock)
            sock.sendall(b"POST / HTTP/1.1\r\nHost:")
    assert other.add(6800, 6800).status == 200
    for sock in held:
        sock.close()
    time.sleep(0)


# --- a process that dies ----------------------------------------------------------------------------------------------


def test_a_mapping_outlives_the_process(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    """Its description too; and the pages are where they were."""
    assert igd.add(6900, 6900).status == 200
    [pid] = [row["pid"] for row in gateway.admin("status") if row.get("process") == "portmap"]
    lines = len(gateway.log_lines())
    lab.run("router", ["kill", "-9", str(pid)])
    gateway.wait_for_log("portmap.recovered", 15, lines)
    with lab.listen("inside", CLIENT4, 6900) as listener:
        assert reaches(lab, "outside", ROUTER_OUT4, 6900, listener)

    def entry() -> str:
        try:
            answer = igd.ask(igd.connection, "GetGenericPortMappingEntry", NewPortMappingIndex=0)
        except OSError:
            return ""
        return answer.value("NewPortMappingDescription") if answer.status == 200 else ""

    assert lab.wait_for(entry, 10, "the mapping to be listed") == "test"
    assert igd.delete(6900).status == 200
    lab.wait_for(lambda: not pinholes(gateway), 5, "the port to close")


def test_subscribers_that_take_no_events_cost_a_few_connections(lab: Lab, gateway: Gateway, igd: Igd) -> None:
    """A host that drops what comes to it subscribes, ends its subscription and subscribes again."""
    url = igd.url(igd.connection, "eventSubURL")
    drop = ["iptables", "-w", "-I", "INPUT", "-p", "tcp", "--dport", "7000:7999", "-j", "DROP"]
    lab.run("inside", drop)
    try:
        statuses = []
        for number in range(40):
            answer = subscribe(igd, f"http://{CLIENT4}:{7000 + number}/")
            statuses.append(answer["status"])
            if "sid" in answer:
                exchange(lab, "inside", url, request("UNSUBSCRIBE", url, {"SID": answer["sid"]}))
        begun = lab.run("router", ["ss", "-Htn", "state", "syn-sent", "dst", CLIENT4]).stdout.splitlines()
        assert statuses[:8] == ["200"] * 8
        assert statuses[-1] == "503"
        assert len(begun) <= 8
    finally:
        drop[2] = "-D"
        lab.run("inside", drop)


def test_a_host_with_many_addresses_does_not_take_all_places(lab: Lab, gateway: Gateway, other: Igd) -> None:
    hosts = [f"192.168.56.{number}" for number in range(100, 110)]
    held: list[socket.socket] = []
    for host in hosts:
        lab.run("inside", ["ip", "address", "add", f"{host}/24", "dev", "eth0"])
    try:
        for host in hosts * 16:
            with lab.enter("inside"):
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(sock)
            sock.bind((host, 0))
            sock.settimeout(2)
            with contextlib.suppress(OSError):
                sock.connect((ROUTER_IN4, HTTP))
                sock.sendall(b"GET / HTTP/1.1\r\n")
        assert other.ask(other.connection, "GetExternalIPAddress").status == 200
    finally:
        for sock in held:
            sock.close()
        for host in hosts:
            lab.run("inside", ["ip", "address", "del", f"{host}/24", "dev", "eth0"])


FLOOD = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 0))
message, ends = bytes.fromhex(sys.argv[3]), time.monotonic() + 4
while time.monotonic() < ends:
    for _ in range(100):
        sock.sendto(message, (sys.argv[2], 1900))
"""


def test_a_flood_of_searches_by_one_client_delays_no_other(lab: Lab, gateway: Gateway, other: Igd) -> None:
    argv = [sys.executable, "-c", FLOOD, CLIENT4, ROUTER_IN4, search_message("ssdp:all").hex()]

    def searches() -> int:
        return sum(int(row["upnp_searches"]) for row in gateway.admin("status") if row["process"] == "portmap")

    before = searches()
    floods = [lab.popen("inside", argv) for _ in range(2)]
    try:
        lab.wait_for(lambda: searches() > before + 100, 10, "the flood to begin")
        waited = []
        for _ in range(3):
            began = time.monotonic()
            assert other.ask(other.connection, "GetExternalIPAddress").status == 200
            waited.append(time.monotonic() - began)
        assert all(flood.poll() is None for flood in floods)
    finally:
        for flood in floods:
            lab.stop(flood)
    assert max(waited) < 1.0
