"""`algate explain` of captures with RTSP, IRC, TFTP, BitTorrent and PPTP in them: what would be edited and opened, over
IPv4 and IPv6; and that every message of a capture is shown."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner

from alg.address import Endpoint
from gateway.cli.main import cli
from gateway.driver.capture import Piece, Writer
from tests.lab import pptp_text
from tests.lab.bittorrent import http_announce, http_answer, udp_announce, udp_connect

CLIENTS = {4: "192.168.56.10", 6: "fd00:56::10"}
SERVERS = {4: "203.0.113.10", 6: "2001:db8:113::10"}
PUBLIC, FIRST = "198.51.100.1", 40000  # the first of `pinhole.ports`
HASH = b"h" * 20
CONFIG = """[network]
inside = ["192.168.56.0/24", "fd00:56::/64"]
inside_interfaces = ["eth1"]
[alg.bittorrent]
mode = "rewrite"
[alg.pptp]
mode = "rewrite"
"""


@dataclass(frozen=True)
class Case:
    """`said`: who ("<" the server) says what. `edits`: reasons, over IPv4; over IPv6 nothing is translated here.
    `opens`: the reason of what would be opened."""

    transport: Literal["tcp", "udp"]
    port: int
    said: list[tuple[str, bytes]]
    edits: list[str]
    opens: str


def rtsp(ports: int) -> list[tuple[str, bytes]]:
    transport = "CSeq: 1\r\nTransport: RTP/AVP;unicast;client_port={}-{}\r\n\r\n"
    asked = f"SETUP rtsp://a/1 RTSP/1.0\r\n{transport.format(5000, 5001)}"
    return [(">", asked.encode()), ("<", f"RTSP/1.0 200 OK\r\n{transport.format(ports, ports + 1)}".encode())]


def irc(version: int) -> list[tuple[str, bytes]]:
    own = ipaddress.ip_address(CLIENTS[version])
    shown = str(int(own) if version == 4 else own)
    return [
        (">", b"NICK ann\r\n"),
        ("<", b":irc.test 001 ann :Welcome\r\n"),
        (">", f"PRIVMSG bob :\x01DCC SEND a.txt {shown} 5000 100\x01\r\n".encode()),
        ("<", b":bob!b@test PRIVMSG ann :\x01DCC RESUME a.txt %d 50\x01\r\n" % (FIRST if version == 4 else 5000)),
    ]


def cases(version: int) -> dict[str, Case]:
    """What is said is the same over both families, but for addresses in it."""
    own = CLIENTS[4]
    announce = http_announce(HASH, 6881, f"&ip={own}" if version == 4 else "")
    datagram = udp_announce(b"12345678", HASH, 6881, host=own if version == 4 else "0.0.0.0")
    answer = b"\0\0\0\1anno" + (1800).to_bytes(4) + bytes(8)
    return {
        "rtsp": Case("tcp", 554, rtsp(FIRST if version == 4 else 5000), ["rtsp.client-port"] * 4, "rtsp.rtp"),
        "irc": Case("tcp", 6667, irc(version), ["irc.address", "irc.port", "irc.port"], "irc.send"),
        "tftp": Case("udp", 69, [(">", b"\0\1boot.bin\0octet\0"), ("<", b"\0\3\0\1data")], [], "tftp.data"),
        "bittorrent over HTTP": Case(
            "tcp", 6969, [(">", announce), ("<", http_answer())], ["bittorrent.address"], "map.bittorrent"
        ),
        "bittorrent over UDP": Case(
            "udp",
            6969,
            [(">", udp_connect()), ("<", bytes(4) + b"conn12345678"), (">", datagram), ("<", answer)],
            ["bittorrent.address"],
            "map.bittorrent",
        ),
        "pptp": Case(
            "tcp",
            1723,
            [
                (">", pptp_text.start_request()),
                ("<", pptp_text.start_reply()),
                (">", pptp_text.call_request(7)),
                ("<", pptp_text.call_reply(40, 7)),
                (">", pptp_text.set_link_info(40)),
            ],
            [],
            "pptp.call",
        ),
    }


def explained(tmp_path: Path, case: Case, version: int) -> list[dict[str, Any]]:
    """The rows of a capture of it."""
    client, server = Endpoint(CLIENTS[version], 40123), Endpoint(SERVERS[version], case.port)
    path, config = tmp_path / "said.pcap", tmp_path / "algate.toml"
    config.write_text(CONFIG)
    with path.open("wb") as file:
        writer = Writer(file)
        for number, (who, data) in enumerate(case.said):
            ends = (client, server) if who == ">" else (server, client)
            writer.write(Piece(case.transport, 1700000000.0 + number, *ends, data))
    done = CliRunner().invoke(
        cli, ["explain", "-c", str(config), "--public", PUBLIC, "--json", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.output)
    return rows


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", cases(4))
def test_each_message_is_shown_with_what_becomes_of_it(tmp_path: Path, name: str, version: int) -> None:
    case = cases(version)[name]
    rows = explained(tmp_path, case, version)
    if (name, version) == ("pptp", 6):  # of IPv4 only: the rest is relayed unread
        assert [row["event"] for row in rows if "event" in row] == ["pptp.ipv6", "bypass"]
        return
    shown = [row for row in rows if "event" not in row]
    assert "".join(row["from"][0] for row in shown) == "".join("c" if who == ">" else "s" for who, _ in case.said)
    assert [len(row["data"]) for row in shown] == [len(data) for _, data in case.said]
    edits = [edit["reason"] for row in shown for edit in row["edits"]]
    assert edits == (case.edits if version == 4 else [])
    events = [row for row in rows if row.get("event") == "pinhole"]
    assert [row["detail"].rpartition(" ")[2] for row in events] == [f"({case.opens})"]
    if version == 4:
        assert events[0]["detail"].startswith(PUBLIC)


def test_secrets_of_torrents_are_not_shown(tmp_path: Path) -> None:
    text = json.dumps(explained(tmp_path, cases(4)["bittorrent over HTTP"], 4))
    assert "h" * 20 not in text
    assert "A2-1-36-0" not in text
