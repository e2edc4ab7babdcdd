"""Each module in each mode, for unconfigured clients and through SOCKS, over IPv4 and IPv6: what is edited, opened,
noted in the log, counted, and shown by `algate trace`, and that nothing of it is where a module is off.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pytest

from tests.conformance.ways import by_socks, direct
from tests.lab import pptp_text
from tests.lab.bittorrent import Listener, http_announce, http_answer, udp_announce
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, SERVER4, SERVER6, Lab
from tests.lab.udp import Udp
from tests.net.console_http import LISTEN, total
from tests.net.udp_client import Client, associate

HASH, LISTENS = b"h" * 20, 6890
MODULES = ("rtsp", "irc", "tftp", "bittorrent", "pptp")


class Family(NamedTuple):
    """Addresses of one family."""

    client: str
    server: str


FAMILIES = {"IPv4": Family(CLIENT4, SERVER4), "IPv6": Family(CLIENT6, SERVER6)}


@dataclass(frozen=True)
class Speech:
    """What a client says to a port of a server, and what that answers. `reason`: of what is opened; `edits`: whether
    anything is edited where it is opened; `shown`: a word by which a message is found in the trace, "" where it is not
    there."""

    module: str
    transport: Literal["tcp", "udp"]
    port: int
    said: tuple[tuple[bytes, bytes], ...]
    reason: str
    edits: bool
    shown: str


def speeches(family: Family, listens: int = LISTENS) -> dict[str, Speech]:
    """`listens`: the port of a torrent client."""
    own = ipaddress.ip_address(family.client)
    numeral = str(int(own) if own.version == 4 else own)
    setup = b"SETUP rtsp://a/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
    offer = f"PRIVMSG bob :\x01DCC SEND a.txt {numeral} 5000 100\x01\r\n".encode()
    trackers_answer = b"\0\0\0\1anno" + (1800).to_bytes(4) + bytes(8)
    found = [
        Speech("rtsp", "tcp", 554, ((setup, b""),), "rtsp.rtp", True, "SETUP rtsp://a/1"),
        Speech("irc", "tcp", 6667, ((b"NICK ann\r\n", b":x 001 ann :hi\r\n"), (offer, b"")), "irc.send", True, ""),
        Speech("tftp", "udp", 69, ((b"\0\1boot.bin\0octet\0", b""),), "tftp.data", False, "boot.bin"),
        Speech(
            "bittorrent", "tcp", 6969, ((http_announce(HASH, listens), http_answer()),), "map.bittorrent", False,
            "GET /announce",
        ),
        Speech(
            "bittorrent", "udp", 6969,
            (
                (bytes.fromhex("0000041727101980") + b"\0\0\0\0conn", bytes(4) + b"conn12345678"),
                (udp_announce(b"12345678", HASH, listens), trackers_answer),
            ),
            "map.bittorrent", False, "",
        ),
        Speech(
            "pptp", "tcp", 1723,
            (
                (pptp_text.start_request(), pptp_text.start_reply()),
                (pptp_text.call_request(7), b""),
            ),
            "pptp.call", False, "client",
        ),
    ]  # fmt: skip
    return {f"{one.module} {one.transport}": one for one in found}


@pytest.fixture(scope="module", params=["rewrite", "observe", "off"])
def mode(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture(scope="module")
def gateway(lab: Lab, mode: str) -> Iterator[Gateway]:
    alg = {name: {"mode": mode} for name in MODULES}
    gateway = lab.start_gateway(lab.write_config(alg=alg, process={"workers": 1}, console={"listen": LISTEN}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


class Datagrams:
    """A client's end of an exchange of datagrams with one server."""

    def __init__(self, lab: Lab, family: Family, port: int, through_socks: bool) -> None:
        self._to = family.server, port
        self._version = ipaddress.ip_address(family.client).version
        self._associated: Client | None = associate(lab, self._version) if through_socks else None
        self._plain = None if through_socks else Udp(lab, "inside", family.client)

    def send(self, data: bytes) -> None:
        if self._associated is not None:
            self._associated.send(*self._to, data)
        elif self._plain is not None:
            self._plain.send(data, self._to)

    def receive(self) -> bytes:
        if self._associated is not None:
            return self._associated.receive()[2]
        assert self._plain is not None
        return self._plain.receive()[0]

    def close(self) -> None:
        if self._associated is not None:
            self._associated.close()
        elif self._plain is not None:
            self._plain.sock.close()


def _read(sock: socket.socket, least: int) -> bytes:
    data = b""
    while len(data) < least:
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


def _pinhole(line: str) -> str:
    """Which pinhole the line of a log is about; nothing if it is about none."""
    found = re.search(r" (?:id|pinhole)=(\w+)", line) if "event=pinhole." in line else None
    return found[1] if found else ""


def speak(lab: Lab, family: Family, speech: Speech, through_socks: bool, check: Callable[[], None]) -> bytes:
    """What the server has read, all together. `check` is called before the connection ends."""
    heard = b""
    if speech.transport == "udp":
        client = Datagrams(lab, family, speech.port, through_socks)
        with Udp(lab, "outside", family.server, speech.port) as server:
            for said, answer in speech.said:
                client.send(said)
                data, address = server.receive()
                heard += data
                if answer:
                    server.send(answer, address)
                    assert client.receive() == answer
            check()
        client.close()
        return heard
    with lab.listen("outside", family.server, speech.port) as listener:
        sock = (by_socks if through_socks else direct)(lab, family.server, speech.port)
        peer, _ = listener.accept()
    with sock, peer:
        for end in (sock, peer):
            end.settimeout(15)
        for said, answer in speech.said:
            sock.sendall(said)
            part = _read(peer, len(said) - 30)  # an address may be shorter than the client's own
            while not part.endswith(said[-2:]):
                part += peer.recv(65536)
            heard += part
            peer.sendall(answer)
            if answer:
                assert _read(sock, len(answer)) == answer
        check()
    return heard


@pytest.mark.parametrize("through_socks", [False, True], ids=["unconfigured", "SOCKS"])
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("name", speeches(FAMILIES["IPv4"]))
def test_a_module(lab: Lab, gateway: Gateway, mode: str, name: str, version: str, through_socks: bool) -> None:
    family = FAMILIES[version]
    listens = LISTENS + 2 * list(FAMILIES).index(version) + through_socks + 4 * (name == "bittorrent udp")
    speech = speeches(family, listens)[name]
    seen = len(gateway.log_lines())
    # What was opened for the tests before lives on, and the broker may see only now that it was used.
    others = set(map(_pinhole, gateway.log_lines())) - {""}
    # PPTP is of IPv4 only; the socket of an association has its public port already.
    serves = (name, version) != ("pptp tcp", "IPv6") and (name, through_socks) != ("tftp udp", True)

    def check() -> None:
        """What the log says while the connection lives."""
        if serves and mode == "rewrite":
            gateway.wait_for_log(f"event=pinhole.open .*reason={speech.reason}", 10, seen)
        if serves and mode == "observe":
            gateway.wait_for_log(f"event=alg.open .*reason={speech.reason}", 10, seen)
        log = gateway.log_lines()[seen:]
        if mode != "rewrite" or not serves:
            ours = [line for line in log if "event=pinhole." in line and "reason=socks" not in line]
            ours = [line for line in ours if _pinhole(line) not in others]
            assert ours == []
        edits = [line for line in log if "event=alg.edit" in line]
        assert bool(edits) is (serves and speech.edits and mode != "off")
        assert all(f"applied={'true' if mode == 'rewrite' else 'false'}" in line for line in edits)
        if edits:
            applied = f'applied="{"yes" if mode == "rewrite" else "no"}"'
            assert total(lab, "algate_edits_total", f'reason="{speech.module}.', applied) >= 1

    with Listener(lab, "inside", family.client, listens, HASH):
        heard = speak(lab, family, speech, through_socks, check)
    said = b"".join(part for part, _ in speech.said)
    assert (heard != said) is (mode == "rewrite" and speech.edits)
    if speech.shown and mode != "off":
        rows = json.loads(gateway.algate("trace", "--json").stdout)
        assert any(speech.shown in row["data"] for row in rows), rows
