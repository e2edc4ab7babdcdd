"""The classic commands: what they say and understand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.programs import finger, ftp, telnet, whois
from gateway.client.programs.common import host_and_port, printable
from gateway.client.programs.telnet import DO, DONT, ECHO, IAC, NAWS, SB, SE, SGA, TERMINAL_TYPE, WILL, WONT, Nvt
from tests.unit.client.scripted import CONNECT, GREETING, scripted

ROOT = Path(__file__).parents[3]
MAINS = {"ftp": ftp.main, "telnet": telnet.main, "finger": finger.main, "whois": whois.main}


def connect_to(host: str, port: int) -> tuple[bytes, bytes]:
    return b"\5\1\0\3" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big"), CONNECT[1]


# --- finger and whois -----------------------------------------------------------------------------------------------


def test_finger(capsys: pytest.CaptureFixture[str]) -> None:
    answer = b"Login: ann\r\n\x1b[2Jno such escape\r\n"
    with scripted(GREETING, connect_to("a.test", 79), (b"/W ann\r\n", answer), ends=True) as proxy:
        assert finger.main(["--via", f"127.0.0.1:{proxy.port}", "-l", "ann@a.test"]) == 0
    assert capsys.readouterr().out == "Login: ann\n�[2Jno such escape\n"


def test_finger_goes_on_by_the_last_host() -> None:
    assert finger.query("ann@inner") == b"ann@inner\r\n"
    assert finger.query("") == b"\r\n"
    with pytest.raises(ValueError, match="control"):
        finger.query("ann\r\nbob")


IANA = b"% IANA WHOIS server\r\nrefer:        whois.verisign-grs.com\r\n\r\ndomain:       COM\r\n"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (IANA, ("whois.verisign-grs.com", 43)),
        (b"   Registrar WHOIS Server: whois.example.com\r\n", ("whois.example.com", 43)),
        (b"ReferralServer:  whois://whois.ripe.net\n", ("whois.ripe.net", 43)),
        (b"ReferralServer: rwhois://rwhois.example.net:4321\n", ("rwhois.example.net", 4321)),
        (b"Registrar WHOIS Server: http://whois.example.com\r\n", None),
        (b"whois: a b\n", None),
        (b"refer:\n\n", None),
        (b"whois: host/../x\n", None),
        (b"No match.\n", None),
    ],
)
def test_a_referral(answer: bytes, found: tuple[str, int] | None) -> None:
    assert whois.referral(answer) == found


@given(st.binary(max_size=200))
def test_any_answer_is_read(answer: bytes) -> None:
    whois.referral(b"refer: " + answer)
    assert "\x1b" not in printable(answer)


@pytest.mark.parametrize(
    ("text", "found"),
    [("a", ("a", 7)), ("a:9", ("a", 9)), ("[::1]:9", ("::1", 9)), ("[::1]", ("::1", 7)), ("::1", ("::1", 7))],
)
def test_a_host_and_a_port(text: str, found: tuple[str, int]) -> None:
    assert host_and_port(text, 7) == found


@pytest.mark.parametrize("text", ["a:x", "a:0", "a:65536", "[::1]:x"])
def test_a_port_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no port"):
        host_and_port(text, 7)


# --- telnet ---------------------------------------------------------------------------------------------------------


def command(*codes: int) -> bytes:
    return bytes((IAC, *codes))


def test_what_is_agreed_on() -> None:
    nvt = Nvt("xterm", (80, 24))
    asked = command(DO, TERMINAL_TYPE) + command(DO, NAWS) + command(WILL, ECHO) + command(WILL, SGA)
    shown, answer = nvt.receive(b"login: " + asked)
    assert shown == b"login: "
    size = bytes((IAC, SB, NAWS, 0, 80, 0, 24, IAC, SE))
    assert answer == command(WILL, TERMINAL_TYPE) + command(WILL, NAWS) + size + command(DO, ECHO) + command(DO, SGA)
    assert nvt.echoes
    terminal = bytes((IAC, SB, TERMINAL_TYPE, 0)) + b"XTERM" + command(SE)
    assert nvt.receive(bytes((IAC, SB, TERMINAL_TYPE, 1, IAC, SE)))[1] == terminal
    assert nvt.receive(asked) == (b"", b""), "what is agreed on is not answered again (RFC 1143)"
    assert nvt.receive(command(WONT, ECHO)) == (b"", command(DONT, ECHO))
    assert not nvt.echoes


def test_what_is_refused_is_refused_once() -> None:
    nvt = Nvt()
    assert nvt.receive(command(DO, 39)) == (b"", command(WONT, 39))
    assert nvt.receive(command(WILL, 5)) == (b"", command(DONT, 5))
    assert nvt.receive(command(DO, 39) + command(WILL, 5)) == (b"", b"")


def test_bytes_of_255() -> None:
    nvt = Nvt()
    assert nvt.receive(b"a\xff\xffb") == (b"a\xffb", b"")
    assert nvt.send(b"a\xffb\n") == b"a\xff\xffb\r\n"
    assert nvt.send(b"\r") == b"\r\n"


@given(st.binary(max_size=200), st.lists(st.integers(1, 20)))
def test_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    whole, parts = Nvt(), Nvt()
    shown, answer = whole.receive(data)
    got, said, at = b"", b"", 0
    for cut in [*cuts, len(data)]:
        more, answered = parts.receive(data[at : at + cut])
        got, said, at = got + more, said + answered, at + cut
    assert (got.replace(b"\r\0", b"\r"), said) == (shown, answer)


def test_telnet_with_lines_from_a_file() -> None:
    hello = b"220 mail\r\n"
    lines = [GREETING, (connect_to("a.test", 25)[0], CONNECT[1] + hello), (b"QUIT\r\n", b"221 bye\r\n")]
    with scripted(*lines, ends=True) as proxy:
        code = "import sys; from gateway.cli.main import main; sys.argv = sys.argv[1:]; main()"
        argv = [sys.executable, "-c", code, "algate", "telnet", "--via", f"127.0.0.1:{proxy.port}", "a.test", "25"]
        done = subprocess.run(argv, input=b"QUIT\n", capture_output=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (0, hello + b"221 bye\r\n"), done.stderr


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAINS)
def test_what_goes_wrong_has_a_line_and_a_code(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = "ann@a.test" if name == "finger" else "a.test"
    for variable in ("ALGATE_PROXY", "ALL_PROXY", "all_proxy", "SOCKS_SERVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert MAINS[name]([target]) == 2
    assert capsys.readouterr().err == f"{name}: no proxy: --via URL, ALGATE_PROXY or ALL_PROXY names one\n"
    assert MAINS[name](["--via", "ftp://x", target]) == 2
    assert "ftp is no kind of proxy" in capsys.readouterr().err
    with scripted((b"\5\1\0", b"\5\xff")) as proxy:
        assert MAINS[name](["--via", f"127.0.0.1:{proxy.port}", target]) == 1
    said = f"{name}: socks5://127.0.0.1:{proxy.port}: it accepts none of our methods"
    assert capsys.readouterr().err.startswith(said)
