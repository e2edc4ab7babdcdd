"""NAT slipstreaming against the modules beside SIP and FTP: a web page makes its browser say what a client would say,
behind HTTP, TLS, STUN or WebSocket, at the beginning of a segment, and the attacker answers as a server would. Nothing
opens. (SIP: test_slipstream.py, FTP: test_ftp_attacks.py.)
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.ways import by_socks, direct
from tests.lab import pptp_text
from tests.lab.bittorrent import Listener, http_announce, http_answer, udp_announce, udp_connect
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, SERVER4, SERVER6, Lab, LabError
from tests.lab.peers import installed
from tests.lab.udp import Udp
from tests.net.udp_client import associate

SEGMENT = 1448  # bytes of TCP in a packet of 1500
HASH = b"h" * 20
LISTENS = 6881  # a real torrent client of that torrent: its port would be opened
IRC_PORT = 7000  # one that browsers do not block
IP_MTU_DISCOVER = 10

Exchange = tuple[bytes, bytes]  # what the client says, and what the server answers

_SETUP = b"SETUP rtsp://a/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
_SET_UP = _SETUP.replace(b"SETUP rtsp://a/1 RTSP/1.0", b"RTSP/1.0 200 OK\r\nSession: 7")


def _offer(own: str) -> bytes:
    return f"PRIVMSG bob :\x01DCC SEND a.txt {own} 5000 100\x01\r\n".encode()


def speech(module: str, version: int = 4) -> list[Exchange]:
    """What a client of a protocol says first, and what it is answered."""
    own = str(int(ipaddress.ip_address(CLIENT4))) if version == 4 else CLIENT6
    said: dict[str, list[Exchange]] = {
        "rtsp": [(_SETUP, _SET_UP)],
        "irc": [
            (b"NICK ann\r\nUSER a 0 * :a\r\n", b":evil.test 001 ann :Welcome\r\n"),
            (_offer(own), b":a PING :x\r\n"),
        ],
        "bittorrent": [(http_announce(HASH, LISTENS), http_answer())],
        "pptp": [
            (pptp_text.start_request(), pptp_text.start_reply()),
            (pptp_text.call_request(7), pptp_text.call_reply(40, 7)),
        ],
    }
    return said[module]


PORTS = {"rtsp": (554, 8554), "irc": (6667, IRC_PORT), "bittorrent": (6969, 2710, 1337), "pptp": (1723,)}
EACH = [pytest.param(name, port, id=f"{name} {port}") for name, ports in PORTS.items() for port in ports]
WAYS = {"redirect": (4, direct), "redirect IPv6": (6, direct), "SOCKS": (4, by_socks), "SOCKS IPv6": (6, by_socks)}

_STUN = struct.pack(">HHI12s", 0x0003, 1400, 0x2112A442, b"transaction!")  # Allocate, with a long user name
_HELLO = b"\x16\x03\x01\x05\xa0\x01\0\x05\x9c\x03\x03" + bytes(range(32)) + b"\0\0\x02\x13\x01\x01\0"
_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://evil.test\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
FRONTS: dict[str, list[Exchange]] = {
    "HTTP POST": [(b"POST / HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 9999\r\n\r\n".ljust(SEGMENT, b"x"), b"")],
    "TLS": [(_HELLO.ljust(SEGMENT, b"x"), b"\x16\x03\x03\0\x02ab")],
    "STUN": [(_STUN.ljust(SEGMENT, b"u"), b"\x01\x13" + _STUN[2:20])],
    "WebSocket": [(_UPGRADE, _UPGRADED), (b"\x82\xfe\x05\xa0\0\0\0\0".ljust(SEGMENT, b"x"), b"")],
}


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    on = {"mode": "rewrite"}
    alg = {"irc": {"ports": list(PORTS["irc"])}, "bittorrent": on, "pptp": on}
    gateway = lab.start_gateway(lab.write_config(alg=alg, process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module", autouse=True)
def torrent_client(lab: Lab, gateway: Gateway) -> Iterator[None]:
    with Listener(lab, "inside", CLIENT4, LISTENS, HASH), Listener(lab, "inside", CLIENT6, LISTENS, HASH):
        yield


def opened(gateway: Gateway, seen: int) -> list[str]:
    """What has been opened since then, even if it is closed already; the ports of SOCKS associations aside. The log
    tells before anybody can come."""
    log = gateway.log_lines()[seen:]
    return [line for line in log if "event=pinhole.open" in line and "reason=socks" not in line]


def passes(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """Said, and read byte for byte; so what comes next is a segment of its own."""
    sender.sendall(data)
    read = b""
    while len(read) < len(data):
        more = receiver.recv(len(data) - len(read))
        assert more, read
        read += more
    assert read == data


@contextlib.contextmanager
def connected(lab: Lab, port: int, way: str = "redirect") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client inside and its server outside."""
    version, connect = WAYS[way]
    host = SERVER4 if version == 4 else SERVER6
    with lab.listen("outside", host, port) as listener:
        client = connect(lab, host, port)
        server, _ = listener.accept()
    with client, server:
        for end in (client, server):
            end.settimeout(15)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client, server


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize(("module", "port"), EACH)
def test_behind_another_protocol(lab: Lab, gateway: Gateway, module: str, port: int, front: str, way: str) -> None:
    seen = len(gateway.log_lines())
    words = speech(module, WAYS[way][0])
    with connected(lab, port, way) as (browser, attacker):
        for said, answer in [*FRONTS[front], *words, *words]:
            passes(browser, attacker, said)
            passes(attacker, browser, answer)
        # IRC inside TLS is nothing wrong: it is only not read. PPTP is of IPv4 only: its port is none of ours else.
        if (module, front) != ("irc", "TLS") and (module, WAYS[way][0]) != ("pptp", 6):
            gateway.wait_for_log(f"event=alg.revoke .*rule={module}\\.(not-|browser)", 5, seen)
        assert opened(gateway, seen) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("module", PORTS)
def test_the_same_from_a_client_does_open(lab: Lab, gateway: Gateway, module: str, way: str) -> None:
    """So these tests can fail."""
    if (module, WAYS[way][0]) == ("pptp", 6):
        pytest.skip("PPTP is of IPv4 only")
    seen = len(gateway.log_lines())
    reasons = {"rtsp": "rtsp.rtp", "irc": "irc.send", "bittorrent": "map.bittorrent", "pptp": "pptp.call"}
    with connected(lab, PORTS[module][0], way) as (client, server):
        for said, answer in speech(module, WAYS[way][0]):
            client.sendall(said)
            read = b""
            while not read.endswith(said[-2:]):
                read += server.recv(4096)
            passes(server, client, answer)  # an offer counts behind the welcome only
        gateway.wait_for_log(f"event=pinhole.open .*reason={reasons[module]}", 10, seen)
        if module == "bittorrent":
            client.sendall(http_announce(HASH, LISTENS, "&event=stopped"))
            assert b"stopped" in server.recv(4096)
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 15, "the end")


# --- datagrams --------------------------------------------------------------------------------------------------------

REQUEST = b"\0\1boot.bin\0octet\0"
DATAGRAMS = {  # what stands in front; a browser has no other datagrams
    "STUN": struct.pack(">HHI12s", 0x0001, 64, 0x2112A442, b"transaction!"),
    "TURN": _STUN,
    "DTLS": b"\x16\xfe\xff\0\0\0\0\0\0\0\0\0\x40\x01",
    "QUIC": b"\xc0\0\0\0\x01\x08abcdefgh\0\0\x44\x9e",
    "DNS": b"\0\1\1\0\0\1\0\0\0\0\0\0",
}
SAID = {69: REQUEST, **dict.fromkeys(PORTS["bittorrent"], udp_announce(b"12345678", HASH, LISTENS))}
ANSWERS = {
    69: b"\0\3\0\1the file",
    **dict.fromkeys(PORTS["bittorrent"], b"\0\0\0\1anno" + (1800).to_bytes(4) + bytes(8)),
}
DATAGRAM_WAYS = {"packet path": 4, "packet path IPv6": 6, "SOCKS": 4, "SOCKS IPv6": 6}


@pytest.mark.parametrize("way", DATAGRAM_WAYS)
@pytest.mark.parametrize("front", DATAGRAMS)
@pytest.mark.parametrize("port", SAID)
def test_in_a_datagram_of_another_protocol(lab: Lab, gateway: Gateway, port: int, front: str, way: str) -> None:
    """In front of it in one datagram; and, over UDP trackers, behind an answer that nobody has asked for."""
    seen = len(gateway.log_lines())
    data = DATAGRAMS[front] + SAID[port]
    version = DATAGRAM_WAYS[way]
    host, own = (SERVER4, CLIENT4) if version == 4 else (SERVER6, CLIENT6)
    with Udp(lab, "outside", host, port) as attacker:
        if "SOCKS" in way:
            client = associate(lab, version)
            client.send(host, port, data)
        else:
            sock = Udp(lab, "inside", own)
            sock.send(data, (host, port))
        read, address = attacker.receive()
        assert read == data
        for answer in (ANSWERS[port], bytes(4) + b"conn12345678"):
            attacker.send(answer, address)
        if port != 69:  # the id is one that no tracker was asked for
            if "SOCKS" in way:
                client.send(host, port, SAID[port])
            else:
                sock.send(SAID[port], (host, port))
            assert attacker.receive()[0] == SAID[port]
        assert opened(gateway, seen) == []
        if "SOCKS" in way:
            client.close()
        else:
            sock.sock.close()


@pytest.mark.parametrize("port", SAID)
def test_a_fragment_that_begins_with_a_forged_header(lab: Lab, gateway: Gateway, port: int) -> None:
    """The second fragment of a long TURN message is the attacker's from its first byte on."""
    seen = len(gateway.log_lines())
    payload = _STUN.ljust(1480 - 8, b"u") + struct.pack(">HHHH", 5060, port, 8 + len(SAID[port]), 0) + SAID[port]
    with Udp(lab, "outside", SERVER4, port) as attacker, Udp(lab, "inside", CLIENT4) as browser:
        browser.sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
        for _ in range(2):
            browser.send(payload.ljust(2980, b"z"), (SERVER4, port))
            read, address = attacker.receive()
            assert read == payload.ljust(2980, b"z")
            attacker.send(ANSWERS[port], address)
        assert opened(gateway, seen) == []


def test_the_same_datagrams_from_clients_do_open(lab: Lab, gateway: Gateway) -> None:
    """So these tests can fail."""
    seen = len(gateway.log_lines())
    with Udp(lab, "inside", CLIENT4) as client, Udp(lab, "outside", SERVER4, 69) as server:
        client.send(REQUEST, (SERVER4, 69))
        assert server.receive()[0] == REQUEST
    gateway.wait_for_log("event=pinhole.open .*reason=tftp.data", 10, seen)
    with Udp(lab, "inside", CLIENT4) as client, Udp(lab, "outside", SERVER4, 6969) as tracker:
        client.send(udp_connect(), (SERVER4, 6969))
        _, address = tracker.receive()
        tracker.send(bytes(4) + b"conn12345678", address)
        client.receive()
        client.send(SAID[6969], (SERVER4, 6969))
        assert tracker.receive()[0] == SAID[6969]
        gateway.wait_for_log("event=pinhole.open .*reason=map.bittorrent", 10, seen)
        client.send(udp_announce(b"12345678", HASH, LISTENS, event=3), (SERVER4, 6969))
        tracker.receive()
    lab.wait_for(
        lambda: all(hole["reason"] != "map.bittorrent" for hole in gateway.admin("pinholes")), 15, "the mapping to end"
    )


# --- a real browser ---------------------------------------------------------------------------------------------------


class Attacker:
    """Answers whatever comes with `answer`, again and again, and notes how each connection has begun."""

    def __init__(self, lab: Lab, port: int, answer: bytes) -> None:
        self.began: list[bytes] = []
        self.heard = b""
        self._answer = answer
        self._listener = lab.listen("outside", SERVER4, port)
        self._listener.settimeout(60)
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._attack, args=[connection], daemon=True).start()

    def _attack(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, contextlib.suppress(OSError):
            data = connection.recv(65536)
            self.began.append(data[:32])
            while data:
                self.heard += data
                connection.sendall(self._answer)
                data = connection.recv(65536)

    def kinds(self) -> set[str]:
        """How connections have begun."""
        first = {"HTTP POST": b"POST ", "WebSocket": b"GET ", "TLS": b"\x16\x03", "STUN": b"\0[\1\3]"}
        return {name for name, words in first.items() for began in self.began if re.match(words, began)}


def stop_helpers(lab: Lab) -> None:
    """What a browser has started outlives it for a moment."""
    found = subprocess.run(["ip", "netns", "pids", lab.ns("inside")], capture_output=True, text=True, check=True).stdout
    for pid in found.split():
        with contextlib.suppress(OSError):
            if b"chrom" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)


PAGE = """<script>{
const said = "\\r\\n" + %(said)s, long = said.repeat(300), at = "%(host)s:%(port)d";
fetch("http://" + at + "/", {method: "POST", mode: "no-cors", body: long});
fetch("https://" + at + "/", {method: "POST", mode: "no-cors", body: long});
try { new WebSocket("ws://" + at + "/"); } catch (error) { /* a port that it blocks */ }
const username = said.repeat(20).slice(0, 500).replaceAll("\\x01", "_");  // with that byte it asks no server
const turn = {urls: "turn:" + at + "?transport=tcp", username, credential: "x"};
const peer = new RTCPeerConnection({iceServers: [turn]});
peer.createDataChannel("x");
peer.createOffer().then(offer => peer.setLocalDescription(offer));
}</script>"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("module", "port"), [("rtsp", 8554), ("bittorrent", 6969), ("irc", IRC_PORT)])
def test_a_page_in_a_real_browser(lab: Lab, gateway: Gateway, module: str, port: int) -> None:
    """At ports that browsers do not block (554, 6667, 1723 and 69 they do): everything that a page can make one say."""
    chromium = installed("chromium", "/usr/bin/chromium")
    page = lab.tmp / f"{module}.html"
    said = b"".join(said for said, _ in speech(module)).decode("latin-1")
    page.write_text(PAGE % {"said": json.dumps(said), "host": SERVER4, "port": port})
    seen = len(gateway.log_lines())
    with Attacker(lab, port, b"".join(answer for _, answer in speech(module))) as attacker:
        argv: list[str | Path] = [chromium, "--headless", "--no-sandbox", "--disable-gpu"]
        browser = lab.popen("inside", [*argv, f"--user-data-dir={lab.tmp}/{module}", "--remote-debugging-port=0", page])
        try:
            lab.wait_for(lambda: attacker.kinds() == set(FRONTS), 40, "all that it can say")
        except LabError:
            raise AssertionError(f"it has said {attacker.kinds()} only: {attacker.began}") from None
        lab.wait_for(lambda: said[:20].encode("latin-1") in attacker.heard, 20, "the body of a request")
        lab.stop(browser)
        stop_helpers(lab)
    assert opened(gateway, seen) == []
    gateway.wait_for_log(f"event=alg.revoke .*rule={module}\\.(not-|browser)", 5, seen)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("blocked", [6667, 554, 1723, 69])
def test_a_browser_says_nothing_to_a_port_that_it_blocks(lab: Lab, gateway: Gateway, blocked: int) -> None:
    """Chromium's own list has the usual ports of the other modules; one that it does not have hears it meanwhile."""
    chromium = installed("chromium", "/usr/bin/chromium")
    page = lab.tmp / f"blocked-{blocked}.html"
    said = json.dumps("NICK ann")
    page.write_text("".join(PAGE % {"said": said, "host": SERVER4, "port": port} for port in (blocked, IRC_PORT)))
    with Attacker(lab, blocked, b"") as silent, Attacker(lab, IRC_PORT, b"") as heard:
        argv: list[str | Path] = [chromium, "--headless", "--no-sandbox", "--disable-gpu"]
        browser = lab.popen(
            "inside", [*argv, f"--user-data-dir={lab.tmp}/b{blocked}", "--remote-debugging-port=0", page]
        )
        lab.wait_for(lambda: heard.kinds() == set(FRONTS), 40, "all that it can say to the other port")
        lab.stop(browser)
        stop_helpers(lab)
        assert silent.began == []
