"""`python -m tests.conformance.portmap`: public ports that clients ask for, by algate and by miniupnpd.

Needs root. Puts the table into docs/protocols/upnp.md, with what requests and memory cost either. With `--check` it
writes nothing. Exit code 1 where algate failed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.table import Prepare, Trial, main
from tests.lab.lab import (
    CLIENT2_4,
    CLIENT4,
    INSIDE_NETWORKS,
    ROUTER_IN4,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    STRANGER4,
    Lab,
    LabError,
    Role,
)
from tests.lab.peers import LIBRARIES, unpacked
from tests.lab.udp import goes_both_ways
from tests.lab.upper import MINIUPNPD_TABLE
from tests.net.pcp_client import PREFER_FAILURE, TCP, UDP, PcpClient, filter_option, third_party
from tests.net.upnp_client import (
    CONNECTION,
    IGD,
    Igd,
    envelope,
    exchange,
    mapping_arguments,
    request,
    search,
    search_message,
)

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "upnp.md"
ADVERTISED = "1.2.3.4"  # 203.0.113.0/24 is reserved, and miniupnpd refuses to serve there
GLOBAL_NET, GLOBAL, ROUTER_GLOBAL = "2001:db8:56::/64", "2001:db8:56::10", "2001:db8:56::2"
HOSTS = 40  # addresses from which the server is asked, when its speed is measured
REQUESTS = 40  # of each


@dataclass
class Server:
    """What is being tried: `pid` of the process that answers, `kill` ends everything of it, `start` starts it again."""

    pid: Callable[[], int]
    kill: Callable[[], None]
    start: Callable[[], None]
    http: int
    base: str = ""  # the nft tables that its firewall's service loads


_running: list[Server] = []


def server() -> Server:
    """The one that runs."""
    return _running[-1]


# --- the two ----------------------------------------------------------------------------------------------------------


def prepare_lab(lab: Lab) -> None:
    """Global addresses of IPv6 inside, a default route, and addresses for many clients."""
    if lab.run("inside", ["ip", "-6", "addr", "show", "dev", "eth0"]).stdout.find(GLOBAL + "/") >= 0:
        return
    lab.run("inside", ["ip", "address", "add", f"{GLOBAL}/64", "dev", "eth0", "nodad"])
    lab.run("router", ["ip", "address", "add", f"{ROUTER_GLOBAL}/64", "dev", "eth1", "nodad"])
    lab.run("outside", ["ip", "route", "add", GLOBAL_NET, "via", ROUTER_OUT6])
    lab.run("router", ["ip", "route", "add", "default", "via", SERVER4])
    lab.run("router", ["ip", "route", "add", "default", "via", "2001:db8:113::10"])
    for number in range(HOSTS):
        lab.run("inside", ["ip", "address", "add", f"192.168.56.{100 + number}/24", "dev", "eth0"])


def algate() -> Prepare:
    """algate, with all three protocols."""

    @contextlib.contextmanager
    def prepare(lab: Lab) -> Iterator[None]:
        prepare_lab(lab)
        gateway = lab.start_gateway(
            lab.write_config(
                network={"outside": ADVERTISED, "inside": [*INSIDE_NETWORKS, GLOBAL_NET]},
                portmap={"protocols": ["pcp", "natpmp", "upnp"], "lifetime": "2-7200"},
                process={"workers": 1},
            )
        )

        def pid() -> int:
            return next(int(row["pid"]) for row in gateway.admin("status") if row.get("process") == "portmap")

        _running.append(Server(pid, gateway.kill, lambda: gateway.start(rules=False), 2869))
        try:
            yield
        finally:
            _running.pop()
            gateway.stop()

    return prepare


def miniupnpd(forward: str) -> Prepare:
    """miniupnpd of Debian, with its table made by hand. `forward`: the policy of iptables' FORWARD."""

    @contextlib.contextmanager
    def prepare(lab: Lab) -> Iterator[None]:
        prepare_lab(lab)
        config = lab.tmp / "miniupnpd.conf"
        config.write_text(
            f"ext_ifname=eth0\next_ip={ADVERTISED}\nlistening_ip=eth1\nenable_natpmp=yes\nenable_upnp=yes\n"
            f"min_lifetime=2\nmax_lifetime=7200\nsecure_mode=yes\nhttp_port=5000\nlease_file={lab.tmp}/leases\n"
            "uuid=00000000-0000-0000-0000-000000000001\nallow 1024-65535 192.168.56.0/24 1024-65535\n"
            "deny 0-65535 0.0.0.0/0 0-65535\n"
        )
        lab.run("router", ["nft", "-f", "-"], stdin=MINIUPNPD_TABLE)
        for program in ("iptables", "ip6tables"):
            lab.run("router", [program, "-P", "FORWARD", forward])
        daemon = unpacked("miniupnpd-nftables", "usr/sbin/miniupnpd")
        environment = {"LD_LIBRARY_PATH": str(LIBRARIES)}
        pidfile = lab.tmp / "miniupnpd.pid"

        def pid() -> int:
            return int(pidfile.read_text())

        def start() -> None:
            lab.run("router", [daemon, "-f", config, "-P", pidfile], env=environment)
            lab.wait_for(lambda: listens(lab, 5000), 10, "miniupnpd to listen")

        def kill(number: int = signal.SIGKILL) -> None:
            os.kill(pid(), number)
            lab.wait_for(lambda: not listens(lab, 5000), 10, "miniupnpd to end")
            pidfile.unlink(missing_ok=True)

        start()
        _running.append(Server(pid, kill, start, 5000, MINIUPNPD_TABLE))
        try:
            yield
        finally:
            _running.pop()
            kill(signal.SIGTERM)
            lab.run("router", ["nft", "delete", "table", "inet", "filter"], check=False)
            (lab.tmp / "leases").unlink(missing_ok=True)
            for program in ("iptables", "ip6tables"):
                lab.run("router", [program, "-P", "FORWARD", "DROP"])

    return prepare


def listens(lab: Lab, port: int) -> bool:
    try:
        lab.connect("inside", ROUTER_IN4, port, timeout=1).close()
    except OSError:
        return False
    return True


# --- what is asked ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def udp(lab: Lab, role: Role, host: str, port: int = 0) -> Iterator[socket.socket]:
    with lab.enter(role):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind((host, port))
        sock.settimeout(1.5)
        yield sock


def comes(lab: Lab, port: int, target: int, role: Role = "outside", host: str = ROUTER_OUT4) -> bool:
    """Whether a connection to a public port reaches the client, with bytes both ways."""
    with lab.listen("inside", GLOBAL if ":" in host else CLIENT4, target) as listener:
        listener.settimeout(1.5)
        try:
            with lab.connect(role, host, port, timeout=1.5) as sock:
                accepted, _ = listener.accept()
                with accepted:
                    sock.sendall(b"ping")
                    return accepted.recv(10) == b"ping"
        except OSError:
            return False


def pcp(lab: Lab) -> PcpClient:
    return PcpClient(lab, "inside", CLIENT4, ROUTER_IN4)


def igd(lab: Lab, role: Role = "inside") -> Igd:
    return Igd(lab, role, CLIENT4 if role == "inside" else CLIENT2_4)


def natpmp(lab: Lab) -> None:
    program = unpacked("natpmpc", "usr/bin/natpmpc")
    environment = {"LD_LIBRARY_PATH": str(LIBRARIES)}

    def ask(*words: str) -> str:
        return lab.run("inside", [program, "-g", ROUTER_IN4, "-a", *words], env=environment, check=False).stdout

    found = re.search(r"Mapped public port (\d+)", ask("5000", "5000", "udp", "3600"))
    assert found is not None
    public = int(found[1])
    with udp(lab, "inside", CLIENT4, 5000) as near, udp(lab, "stranger", STRANGER4) as far:
        far.sendto(b"in", (ROUTER_OUT4, public))
        data, source = near.recvfrom(100)
        assert data == b"in"
        near.sendto(b"out", source)
        assert far.recvfrom(100) == (b"out", (ROUTER_OUT4, public))
        ask(str(public), "5000", "udp", "0")
        lab.wait_for(lambda: not arrives(lab, near, public), 3, "the port to close")


def arrives(lab: Lab, near: socket.socket, public: int) -> bool:
    """Whether a datagram of somebody new comes to the client."""
    with udp(lab, "stranger", STRANGER4) as far:
        far.sendto(b"new", (ROUTER_OUT4, public))
    near.settimeout(0.5)
    try:
        near.recvfrom(100)
    except TimeoutError:
        return False
    return True


def two_strangers(lab: Lab) -> None:
    done = lab.run("inside", ["upnpc", "-i", "-a", CLIENT4, "51413", "51413", "tcp", "3600"], check=False)
    assert "is redirected to internal" in done.stdout, done.stdout
    with lab.listen("inside", CLIENT4, 51413) as listener:
        listener.settimeout(2)
        with (
            lab.connect("outside", ROUTER_OUT4, 51413, timeout=2),
            lab.connect("stranger", ROUTER_OUT4, 51413, timeout=2),
        ):
            for _ in range(2):
                listener.accept()[0].close()


def other_host(lab: Lab) -> None:
    client = igd(lab)
    assert client.add(6000, 6000, client=CLIENT2_4).code in (606, 718)
    assert client.add(22, 2222).code == 606
    assert not comes(lab, 6000, 6000)


def consoles(lab: Lab) -> None:
    first, second = igd(lab), igd(lab, "client2")
    assert first.add(3074, 3074, "UDP").status == 200
    assert second.add(3074, 3074, "UDP").code == 718
    assert second.add(3074, 3075, "UDP").status == 200
    with (
        udp(lab, "inside", CLIENT4, 3074) as near,
        udp(lab, "client2", CLIENT2_4, 3074) as beside,
        udp(lab, "outside", SERVER4, 9000) as game,
        udp(lab, "stranger", STRANGER4, 9000) as player,
    ):
        for client, public in ((near, 3074), (beside, 3075)):
            for peer in (game, player):
                goes_both_ways(client, peer, (ROUTER_OUT4, public))


def prefer_failure(lab: Lab) -> None:
    assert igd(lab, "client2").add(6100, 6100).status == 200
    with pcp(lab) as client:
        assert client.map(6100, protocol=TCP, suggested=6100, options=PREFER_FAILURE).result == 11
        answer = client.map(6100, protocol=TCP, suggested=6100)
        assert answer.result == 0
        assert answer.port not in (0, 6100)


def filters(lab: Lab) -> None:
    with pcp(lab) as client:
        answer = client.map(6200, protocol=TCP, suggested=6200, options=filter_option(f"{SERVER4}/32"))
        assert answer.result == 0
        assert comes(lab, answer.port, 6200)
        assert not comes(lab, answer.port, 6200, "stranger")


def nonce(lab: Lab) -> None:
    with pcp(lab) as client:
        public = client.map(6300, protocol=TCP, suggested=6300).port
        assert client.map(6300, protocol=TCP, suggested=6300, nonce=b"x" * 12).result == 2
        assert client.map(6300, protocol=TCP, lifetime=0, nonce=b"x" * 12).result == 2
        assert client.map(6301, protocol=TCP, options=third_party(CLIENT2_4)).result == 5
        assert client.map(6302, protocol=TCP, own=CLIENT2_4).result == 12
    assert comes(lab, public, 6300)


def flushed(lab: Lab) -> None:
    """The router's own firewall is loaded again, as its service does, and the chains into which miniupnpd writes."""
    assert igd(lab).add(6400, 6400).status == 200
    kept = lab.run("router", ["iptables-save"]).stdout  # of the router itself, which its firewall's service restores
    lab.run("router", ["nft", "flush", "ruleset"])
    lab.run("router", ["iptables-restore"], stdin=kept)
    if server().base:
        lab.run("router", ["nft", "-f", "-"], stdin=server().base)
    lab.wait_for(lambda: comes(lab, 6400, 6400), 5, "the mapping to be back")


def killed(lab: Lab) -> None:
    """What answers is killed, and started again: the mapping works and is known."""
    assert igd(lab).add(6500, 6500).status == 200
    server().kill()
    worked = comes(lab, 6500, 6500)
    server().start()
    assert worked
    assert comes(lab, 6500, 6500)
    lab.wait_for(lambda: any(search(lab, "inside", CLIENT4, f"{IGD}1")), 20, "an answer")
    given = {"NewRemoteHost": "", "NewExternalPort": 6500, "NewProtocol": "TCP"}
    client = igd(lab)
    assert client.ask(client.connection, "GetSpecificPortMappingEntry", **given).status == 200


def ends_by_itself(lab: Lab) -> None:
    """When everything is dead, a mapping ends at its time."""
    with pcp(lab) as client:
        answer = client.map(6600, protocol=TCP, suggested=6600, lifetime=4)
    assert comes(lab, answer.port, 6600)
    server().kill()
    try:
        lab.wait_for(lambda: not comes(lab, answer.port, 6600), 8, "the mapping to end")
    finally:
        server().start()


TORRENT = """
import json, sys, time
import libtorrent as lt
session = lt.session({"enable_upnp": True, "enable_natpmp": True, "enable_dht": False, "enable_lsd": False,
    "listen_interfaces": sys.argv[1] + ":6881", "alert_mask": 0x7FFFFFFF})
end = time.time() + 30
mapped = []
while time.time() < end and len(mapped) < 4:
    session.wait_for_alert(500)
    mapped += [alert.external_port for alert in session.pop_alerts() if alert.what() == "portmap"]
print("mapped", mapped, flush=True)
sys.stdin.readline()
"""


def torrent(lab: Lab) -> None:
    log = lab.logs / f"torrent-{time.monotonic()}.log"
    process = lab.popen("inside", ["/usr/bin/python3", "-c", TORRENT, CLIENT4], log=log, stdin=subprocess.PIPE)
    try:
        lab.wait_for(lambda: "mapped" in log.read_text(), 40, "libtorrent")
        assert "6881, 6881, 6881, 6881" in log.read_text(), log.read_text()
        with lab.connect("outside", ROUTER_OUT4, 6881, timeout=2) as sock:
            sock.sendall(b"\x13BitTorrent protocol" + bytes(48))
            with contextlib.suppress(ConnectionResetError):  # it knows no such torrent
                assert sock.recv(100) == b""
    finally:
        lab.stop(process)


def web_page(lab: Lab) -> None:
    client = igd(lab)
    url = client.url(client.connection, "controlURL")
    body = envelope(client.connection, "AddPortMapping", mapping_arguments(6700, 6700, "TCP", CLIENT4, 600))
    action = {"SOAPAction": f'"{client.connection}#AddPortMapping"'}
    for data in (
        request("POST", url, {"Content-Type": "text/plain"}, body),
        request("POST", url, {**action, "Host": f"evil.example:{server().http}"}, body),
        request("OPTIONS", url, {"Access-Control-Request-Method": "POST"}),
    ):
        answer = exchange(lab, "inside", url, data)
        assert 400 <= answer.status < 600, data
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not comes(lab, 6700, 6700)


def guessable(lab: Lab) -> None:
    """A control URL that can be guessed (VU#361684)."""
    client = igd(lab)
    assert re.search(r"/[0-9a-f]{16,}/", client.url(client.connection, "controlURL"))


def strangers_called(lab: Lab) -> None:
    client = igd(lab)
    url = client.url(client.connection, "eventSubURL")
    for host, status in ((CLIENT2_4, 412), (SERVER4, 412), (CLIENT4, 200)):
        fields = {"CALLBACK": f"<http://{host}:9999/>", "NT": "upnp:event", "TIMEOUT": "Second-1800"}
        assert exchange(lab, "inside", url, request("SUBSCRIBE", url, fields)).status == status


def outside(lab: Lab) -> None:
    for port, data in ((1900, search_message("ssdp:all")), (5351, bytes(2)), (5351, b"\2" + bytes(23))):
        with udp(lab, "outside", SERVER4) as sock:
            sock.settimeout(0.7)
            sock.sendto(data, (ROUTER_OUT4, port))
            try:
                sock.recvfrom(2000)
            except TimeoutError:
                continue
            raise AssertionError(f"port {port} answers")
    try:
        lab.connect("outside", ROUTER_OUT4, server().http, timeout=0.7).close()
    except TimeoutError:
        return
    except OSError:
        raise AssertionError("the port of HTTP answers with a reset") from None
    raise AssertionError("the port of HTTP is open")


def hairpin(lab: Lab) -> None:
    assert igd(lab).add(6800, 6800).status == 200
    assert comes(lab, 6800, 6800, "client2")


def ipv6(lab: Lab) -> None:
    with PcpClient(lab, "inside", GLOBAL, ROUTER_GLOBAL) as client:
        answer = client.map(6900, protocol=TCP)
        assert answer.result == 0
        assert (answer.address, answer.port) == (GLOBAL, 6900)
    assert comes(lab, 6900, 6900, host=GLOBAL)


def own_only(lab: Lab) -> None:
    assert igd(lab).add(7000, 7000).status == 200
    client = igd(lab, "client2")
    given = {"NewRemoteHost": "", "NewExternalPort": 7000, "NewProtocol": "TCP"}
    assert client.ask(client.connection, "GetSpecificPortMappingEntry", **given).code == 714
    assert client.delete(7000).code in (606, 714)
    assert comes(lab, 7000, 7000)


def both_versions(lab: Lab) -> None:
    """A search for each version leads to a device of this version."""
    for version in (1, 2):
        assert f"{CONNECTION}{version}" in Igd(lab, "inside", CLIENT4, version).pages


def any_port(lab: Lab) -> None:
    assert igd(lab, "client2").add(7100, 7100).status == 200
    client = Igd(lab, "inside", CLIENT4, 2)
    answer = client.ask(client.connection, "AddAnyPortMapping", **mapping_arguments(7100, 7100, "TCP", CLIENT4, 600))
    assert comes(lab, int(answer.value("NewReservedPort")), 7100)


def quota(lab: Lab) -> None:
    """No client has forty ports, where 32 are the most."""
    client = igd(lab, "client2")
    assert any(client.add(port, port).code for port in range(20000, 20040))


def flood(lab: Lab) -> None:
    """1,000 requests as fast as they go; another client is answered within half a second meanwhile."""
    client = igd(lab, "client2")
    with pcp(lab) as flooder:
        data = flooder.request(7200, protocol=UDP, suggested=7200)
        slowest = 0.0
        for number in range(1000):
            flooder.sock.sendto(data, flooder.server)
            if number % 250 == 100:
                began = time.monotonic()
                client.ask(client.connection, "GetExternalIPAddress")
                slowest = max(slowest, time.monotonic() - began)
        flooder.sock.settimeout(1.0)
        answers, until = 0, time.monotonic() + 5
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < until:
                flooder.sock.recvfrom(2000)
                answers += 1
    assert slowest < 0.5, f"another client waits {slowest:.1f} s"
    assert answers < 500, f"all {answers} are answered"


TRIALS = [
    Trial("1 natpmpc: a stranger's datagram and the answer; nothing after the end", natpmp),
    Trial("2 upnpc: two strangers at once", two_strangers),
    Trial("3 another inside host, port 22: refused", other_host),
    Trial("4 two consoles want 3074: each leaves from its own port", consoles),
    Trial("5 PCP: PREFER_FAILURE 11, without it another port", prefer_failure),
    Trial("6 PCP: FILTER", filters),
    Trial("7 PCP: nonce 2, THIRD_PARTY 5, address 12", nonce),
    Trial("10 libtorrent: PCP and UPnP at once, a peer comes", torrent),
    Trial("11 what a web page can send maps nothing", web_page),
    Trial("11 control URLs cannot be guessed", guessable),
    Trial("12 events to another host: 412", strangers_called),
    Trial("13 from outside no answer, no reset", outside),
    Trial("14 another inside client, by the public address", hairpin),
    Trial("15 PCP over IPv6", ipv6),
    Trial("one's own mappings only", own_only),
    Trial("a device of version 1 and one of version 2", both_versions),
    Trial("AddAnyPortMapping of a taken port", any_port),
    Trial("a client has not all ports", quota),
    Trial("a flood of one host is limited", flood),
    Trial("8 `nft flush ruleset`: back within 5 s", flushed),
    Trial("8 all of it killed: the mapping works, and is known after a start", killed),
    Trial("9 all of it dead: the mapping ends at its time", ends_by_itself),
]
WAYS = {
    "miniupnpd 2.3.1, FORWARD policy DROP": miniupnpd("DROP"),
    "miniupnpd 2.3.1, FORWARD policy ACCEPT": miniupnpd("ACCEPT"),
    "algate, FORWARD policy DROP": algate(),
}


# --- what it costs ----------------------------------------------------------------------------------------------------


def ticks(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Megabytes of a process, shared ones in part (PSS)."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def interface(number: int) -> str:
    return f"host{number}"


def separate(lab: Lab) -> None:
    """Give each of the many addresses a link-layer address of its own, by which algate tells hosts apart."""
    lab.run("inside", ["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])
    for number in range(HOSTS):
        address, name = f"192.168.56.{100 + number}/24", interface(number)
        lab.run("inside", ["ip", "address", "del", address, "dev", "eth0"])
        lab.run("inside", ["ip", "link", "add", "link", "eth0", "name", name, "type", "macvlan", "mode", "bridge"])
        lab.run("inside", ["ip", "address", "add", address, "dev", name])
        lab.run("inside", ["ip", "link", "set", name, "up"])


def ask_one(client: Igd, url: str, host: str, action: str, given: dict[str, Any]) -> bool:
    """Ask from an address of many, by its own interface; whether the answer is a good one."""
    name = interface(int(host.rpartition(".")[2]) - 100)
    head = {"Content-Type": "text/xml", "SOAPAction": f'"{client.connection}#{action}"'}
    with client.lab.enter("inside"):
        sock = socket.socket()
    with sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        sock.bind((host, 0))
        sock.connect((ROUTER_IN4, server().http))
        sock.sendall(request("POST", url, head, envelope(client.connection, action, given)))
        return b" 200 OK" in sock.recv(64)


def added(host: str, number: int) -> dict[str, Any]:
    """The arguments for the mapping of one of these addresses."""
    return mapping_arguments(30000 + number, 30000 + number, "TCP", host, 600)


def cost(lab: Lab) -> list[str]:
    """The cells of one server: requests in a second of processor time, and memory with and without mappings."""
    pid = server().pid()
    empty = memory(pid)
    client = igd(lab)
    url = client.url(client.connection, "controlURL")

    def ask(action: str, count: int, given: Callable[[str, int], dict[str, Any]]) -> str:
        before, served = ticks(pid), 0
        for number in range(HOSTS):
            host = f"192.168.56.{100 + number}"
            for round_ in range(count):
                served += ask_one(client, url, host, action, given(host, number * count + round_))
        spent = max(ticks(pid) - before, 0.01)
        return f"{served / spent:,.0f}" if served > 0.9 * count * HOSTS else f"only {served} of {count * HOSTS} served"

    for number in range(HOSTS):  # slowly enough for a limit of new ones
        host = f"192.168.56.{100 + number}"
        ask_one(client, url, host, "AddPortMapping", added(host, number))
        time.sleep(0.15)
    ask_address = ask("GetExternalIPAddress", REQUESTS, lambda _host, _number: {})
    ask_port = ask("AddPortMapping", 10, lambda host, number: added(host, number // 10))
    return [ask_address, ask_port, f"{empty:.1f}", f"{memory(pid):.1f}"]


ROWS = (
    "GetExternalIPAddress, requests in a second of processor time",
    f"AddPortMapping, the same, renewals of {HOSTS} mappings",
    "memory of the process that answers, MB",
    f"the same with {HOSTS} mappings",
)


def costs() -> str:
    """The second table."""
    ways = {"miniupnpd 2.3.1": miniupnpd("ACCEPT"), "algate": algate()}
    columns: list[list[str]] = []
    for prepare in ways.values():
        with Lab() as lab, prepare(lab):
            separate(lab)
            columns.append(cost(lab))
    lines = ["| | " + " | ".join(ways) + " |", "| --- " * (1 + len(ways)) + "|"]
    lines += [
        f"| {row} | " + " | ".join(column[number] for column in columns) + " |" for number, row in enumerate(ROWS)
    ]
    return "\n".join(lines)


def write_costs(text: str) -> None:
    begin, end = "<!-- costs: made by python -m tests.conformance.portmap -->", "<!-- end of costs -->"
    old = PAGE.read_text()
    PAGE.write_text(f"{old[: old.index(begin)]}{begin}\n\n{text}\n\n{old[old.index(end) :]}")


if __name__ == "__main__":
    code = main("tests.conformance.portmap", PAGE, TRIALS, WAYS, sys.argv[1:])
    try:
        table = costs()
        print(table)
        if "--check" not in sys.argv:
            write_costs(table)
    except LabError as error:
        print(error, file=sys.stderr)
        code = 1
    sys.exit(code)
