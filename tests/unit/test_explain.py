"""`algate explain`: a capture in, a diff with reasons out; and what a terminal must not be told."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import dpkt
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alg.ftp.commands import conceal
from gateway.cli.diff import render
from gateway.cli.main import cli
from gateway.model.errors import AlgateError

CLIENT, SERVER = "192.168.56.10", "203.0.113.10"
SDP = f"v=0\r\no=- 1 1 IN IP4 {CLIENT}\r\ns=-\r\nc=IN IP4 {CLIENT}\r\nt=0 0\r\nm=audio 9000 RTP/AVP 0\r\n"
INVITE = (
    f"INVITE sip:bob@example.test SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT}:5060;branch=z9hG4bK-1\r\nMax-Forwards: 70\r\n"
    "From: <sip:ann@example.test>;tag=1\r\nTo: <sip:bob@example.test>\r\nCall-ID: 1@x\r\nCSeq: 1 INVITE\r\n"
    f"Contact: <sip:ann@{CLIENT}:5060>\r\nContent-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n\r\n{SDP}"
).encode()


def address(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def ethernet(source: str, destination: str, inner: dpkt.Packet, protocol: int) -> bytes:
    ip = dpkt.ip.IP(src=address(source), dst=address(destination), p=protocol, data=inner)
    ip.len = len(ip)
    return bytes(dpkt.ethernet.Ethernet(type=0x0800, data=ip))


def tcp(flags: int, sequence: int, data: bytes = b"", back: bool = False) -> bytes:
    ports = (21, 40000) if back else (40000, 21)
    segment = dpkt.tcp.TCP(sport=ports[0], dport=ports[1], seq=sequence, flags=flags, data=data)
    return ethernet(*((SERVER, CLIENT) if back else (CLIENT, SERVER)), segment, 6)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """An INVITE over UDP; then FTP over TCP whose PORT comes in two segments, the second one first."""
    udp = dpkt.udp.UDP(sport=5060, dport=5060, data=INVITE)
    udp.ulen = len(udp)
    syn, push = dpkt.tcp.TH_SYN, dpkt.tcp.TH_PUSH | dpkt.tcp.TH_ACK
    frames = [
        ethernet(CLIENT, SERVER, udp, 17),
        tcp(syn, 100),
        tcp(syn | dpkt.tcp.TH_ACK, 500, back=True),
        tcp(push, 501, b"220 ready\r\n", back=True),
        tcp(push, 111, b"56,10,200,10\r\n"),
        tcp(push, 101, b"PORT 192,168,"[:10]),
        tcp(push, 101, b"PORT 192,168,"[:10]),
        b"\0" * 12 + b"\x08\x06" + b"arp",
        struct.pack(">12xH", 0x0800) + b"\x45",
    ]
    frames[4] = tcp(push, 111, b"68,56,10,200,10\r\n")
    path = tmp_path / "capture.pcap"
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for at, frame in enumerate(frames):
            writer.writepkt(frame, 1700000000.0 + at)
    return path


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_diff_with_reasons(capture: Path) -> None:
    lines = [line.rstrip() for line in run("explain", "--public", "198.51.100.1", capture).splitlines()]
    assert "  - m=audio 9000 RTP/AVP 0" in lines
    changed = next(line for line in lines if line.startswith("  + m=audio"))
    assert lines[lines.index(changed) + 1] == "      sdp.port"
    assert "  + c=IN IP4 198.51.100.1" in lines
    assert "    From: <sip:ann@example.test>;tag=1" in lines
    assert "  - PORT 192,168,56,10,200,10" in lines
    assert any(line.startswith("  + PORT 198,51,100,1,") for line in lines)
    assert any("* pinhole 198.51.100.1:" in line and "(sip.rtp)" in line for line in lines)


def test_in_colour_on_a_terminal_only(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in run("explain", capture)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = run("explain", "--public", "198.51.100.1", capture)
    assert "\x1b[31m  - " in text
    assert "\x1b[1;32m198.51.100.1" in text


def test_as_json(capture: Path) -> None:
    rows = json.loads(run("explain", "--json", capture))
    invite = next(row for row in rows if row.get("data", "").startswith("INVITE"))
    assert (invite["from"], invite["source"], invite["time"]) == (
        "client",
        f"{CLIENT}:5060",
        "2023-11-14T22:13:20.000000Z",
    )
    assert CLIENT not in invite["after"]
    assert {edit["reason"] for edit in invite["edits"]} >= {"sip.via", "sip.contact", "sdp.port"}
    for edit in invite["edits"]:
        assert invite["data"][edit["start"] : edit["end"]] == edit["before"]
    port = next(row for row in rows if row.get("data", "").startswith("PORT"))
    assert [edit["reason"] for edit in port["edits"]] == ["ftp.port"]


def test_a_file_that_is_no_capture(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"not a capture at all, but long enough to look at")
    done = CliRunner().invoke(cli, ["explain", str(path)])
    assert done.exit_code != 0
    assert "cannot be read as a capture" in str(done.exception)


def test_what_a_terminal_would_obey_is_shown_and_not_sent() -> None:
    row = {"time": 0.0, "source": "a", "destination": "b", "data": "X: \x1b[2J\x07\x9b\r\n", "edits": []}
    text = "".join(line.plain for line in render(row))
    assert "\\x1b[2J\\x07\\x9b" in text
    assert "\x1b" not in text


def messages(*arguments: str | Path) -> list[dict[str, object]]:
    return [row for row in json.loads(run("explain", "--json", *arguments)) if "event" not in row]


def test_a_compressed_capture_is_read(capture: Path, tmp_path: Path) -> None:
    packed = tmp_path / "capture.pcap.gz"
    packed.write_bytes(gzip.compress(capture.read_bytes()))
    assert messages(packed) == messages(capture)
    packed.write_bytes(gzip.compress(capture.read_bytes())[:-20])
    cut = CliRunner().invoke(cli, ["explain", str(packed)])
    assert isinstance(cut.exception, AlgateError)
    assert "cannot be read as a capture" in str(cut.exception)


@pytest.mark.parametrize("after", [False, True])
def test_messages_are_written_as_a_capture(capture: Path, tmp_path: Path, after: bool) -> None:
    written = tmp_path / "written.pcap"
    rows = messages("--write", written, *(["--after"] if after else []), capture)
    again = messages(written)
    sent = [row["after"] if after and row["after"] is not None else row["data"] for row in rows]
    assert [row["data"] for row in again] == sent
    assert [row["source"] for row in again] == [row["source"] for row in rows]
    assert [row["time"] for row in again] == [row["time"] for row in rows]


def test_messages_of_one_client_or_call(capture: Path) -> None:
    assert messages("--client", "192.168.56.99", capture) == []
    assert messages("--client", CLIENT, capture) == messages(capture)
    assert [str(row["data"])[:6] for row in messages("--call", "1@x", capture)] == ["INVITE"]
    assert messages("--call", "2@x", capture) == []


def test_an_address_that_is_none(capture: Path) -> None:
    for option in ("--public", "--client"):
        done = CliRunner().invoke(cli, ["explain", option, "foo", str(capture)])
        assert (done.exit_code, f"{option}: 'foo' is not an address" in done.output) == (2, True)


def test_a_capture_with_nothing_to_read(tmp_path: Path) -> None:
    path = tmp_path / "rtp.pcap"
    with path.open("wb") as file:
        udp = dpkt.udp.UDP(sport=9000, dport=9002, data=b"\x80" + b"\0" * 171)
        udp.ulen = len(udp)
        dpkt.pcap.Writer(file).writepkt(ethernet(CLIENT, SERVER, udp, 17), 1700000000.0)
    said = run("explain", path)
    assert "no module reads any of it: of 1 datagrams and pieces" in said
    assert "21/tcp" in said
    assert "5060/udp" in said


@given(
    st.sampled_from([b"", b"\xff\xf4", b"\xff\xf4\xff\xf2"]),
    st.sampled_from([b"PASS ", b"pass ", b"ACCT ", b"ADAT "]),
    st.text("abc !*", min_size=6, max_size=12).map(str.encode),
    st.lists(st.sampled_from([b"NOOP\r\n", b"USER ann\r\n", b"331 Password required for pass\r\n"]), max_size=3),
)
def test_no_password_is_shown(telnet: bytes, verb: bytes, secret: bytes, others: list[bytes]) -> None:
    line = telnet + verb + secret + b"\r\n"
    text = b"".join([*others, line, *others])
    shown = conceal(text)
    assert len(shown) == len(text)
    assert shown == b"".join([*others, telnet + verb + b"*" * len(secret) + b"\r\n", *others])
