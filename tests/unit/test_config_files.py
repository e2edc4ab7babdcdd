"""Several files of one configuration, where its keys stand, and what a valid one can hardly mean."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.cli.main import main
from gateway.config.doubts import doubts
from gateway.config.load import load_config, parse_config
from gateway.config.places import lines_of
from gateway.config.rules import compile_rule
from gateway.config.schema_rules import RuleSection
from gateway.model.errors import ConfigError
from gateway.policy.rules import Prefix, Query, covers, why_not
from tests.lab.lab import algate
from tests.lab.private import shown
from tests.unit.policy.rulesets import NAMES, PATTERNS, request, section, some, target

UPSTREAM = '[[upstream]]\nname = "a"\nkind = "socks5"\naddress = "192.0.2.1:1080"\n'
ROUTER = '[network]\ninside = ["10.0.0.0/8"]\ninside_interfaces = ["eth1"]\n'
PORTMAP = '[network]\ninside = ["10.0.0.0/8"]\ninside_interfaces = ["eth1"]\n[portmap]\nprotocols = ["pcp"]\n'
ROUTER = '[network]\ninside = ["192.168.56.0/24"]\ninside_interfaces = ["eth1"]\n'
PUBLISH = '[[publish]]\noutside = "203.0.113.2:{}"\ninside = "192.168.56.20:{}"\n'
FORWARD = '[[forward]]\noutside = "203.0.113.2:{}"\ninside = "192.168.56.20:{}"\n'
RULE = '[[rule]]\naction = "permit"\nto = ["192.0.2.1"]\n'


def files(folder: Path, **texts: str) -> Path:
    """algate.toml from `main`, conf.d/NAME.toml from the others; the path of the first."""
    (folder / "conf.d").mkdir()
    for name, text in texts.items():
        (folder / ("algate.toml" if name == "main" else f"conf.d/{name}.toml")).write_text(text)
    return folder / "algate.toml"


def test_later_files_add_and_override_and_append(tmp_path: Path) -> None:
    main_file = files(
        tmp_path,
        main='[network]\ninside = ["10.0.0.0/8"]\n[socks]\nlisten = ["127.0.0.1:1080"]\n' + RULE,
        a='[socks]\nlisten = ["127.0.0.1:1081"]\nbind_timeout = 7\n',
        b='[pinhole]\nper_client = 9\n[[rule]]\naction = "deny"\n',
    )
    config = load_config(main_file)
    assert config.socks.listen == ("127.0.0.1:1081",)
    assert (config.socks.bind_timeout, config.pinhole.per_client) == (7, 9)
    assert config.network.inside == ("10.0.0.0/8",)
    assert [rule.action for rule in config.rule] == ["permit", "deny"]
    assert config.loaded.places["rule[1]"] == f"{tmp_path}/conf.d/b.toml:3"


@pytest.mark.parametrize(
    ("second", "where", "what"),
    [
        ("[socks]\nlisten = [1]", "conf.d/b.toml:2", "socks.listen[0]: expected text"),
        ("[[rule]]\naction = 'permit'\nport = ['x']", "conf.d/b.toml:3", "rule[1].port[0]: 'x' is not a port"),
        ("[socks", "conf.d/b.toml:1:7", "Expected ']'"),
        ("[pinhole]\nper_clint = 7", "conf.d/b.toml:2", "pinhole.per_clint: unknown key"),
        ("[limits]\nflows = 7", "conf.d/a.toml:2", "limits.flws: unknown key"),  # the table is in both
    ],
)
def test_an_error_names_the_file_of_its_key(tmp_path: Path, second: str, where: str, what: str) -> None:
    mistaken = "[limits]\nflws = 7" if "flws" in what else ""
    main_file = files(tmp_path, main=RULE, a=mistaken, b=second)
    with pytest.raises(ConfigError) as caught:
        load_config(main_file)
    assert str(caught.value).startswith(f"{tmp_path}/{where}: {what}")


def test_the_file_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files(tmp_path, main="[pinhole]\nper_client = 11\n")
    monkeypatch.setenv("ALGATE_CONFIG", str(path))
    monkeypatch.setattr("sys.argv", ["algate", "check"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "per_client = 11" in capsys.readouterr().out


VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.text("ab\"'\\#[]{},=\n é", max_size=8), st.booleans()),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=3)


@given(st.dictionaries(st.sampled_from(["x", "y", "z"]), st.one_of(TABLES, st.lists(TABLES, min_size=1, max_size=3))))
def test_every_key_is_found_on_the_line_on_which_it_stands(document: dict[str, object]) -> None:
    text = "# a comment with [a] = 1\n" + tomli_w.dumps(document, multiline_strings=True)
    found = lines_of(text)
    lines = text.split("\n")
    for name, value in document.items():
        if isinstance(value, list) and f"[[{name}]]" not in text:
            continue  # written as a list of inline tables, whose keys have the line of the list
        tables = {name: value} if isinstance(value, dict) else {f"{name}[{i}]": table for i, table in enumerate(value)}  # type: ignore[arg-type,var-annotated]
        for path, table in tables.items():
            for key in table:
                assert lines[found[f"{path}.{key}"] - 1].startswith(f"{key} = "), (path, key, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[[rule]]\naction = "permit"\n[[rule]]\naction = "deny"\nto = ["192.0.2.0/24"]',
            "rule[1]: never decides: rule[0]",
        ),
        (
            '[[rule]]\naction = "deny"\nport = ["1-100"]\n[[rule]]\naction = "permit"\nport = [80]',
            "rule[1]: never decides",
        ),
        ('[[rule]]\naction = "permit"\nuser = ["ann"]', "rule[0].user: never matches"),
        ('[socks]\nlisten = ["127.0.0.1:41080"]', "socks.listen[0]: its port is one of pinhole.ports"),
        ('[[rule]]\naction = "permit"\ngroup = ["staff"]', "rule[0].group: never matches"),
        ('[network]\ninside = ["10.0.0.0/8", "0.0.0.0/0"]', "network.inside[1]: 0.0.0.0/0 is everybody"),
        (
            '[network]\ninside = ["10.0.0.0/8"]\noutside = "10.0.0.1"',
            "network.outside: 10.0.0.1 is in network.inside[0]",
        ),
        (
            '[network]\ninside = ["10.0.0.0/8"]\ninside_interfaces = ["eth1", "eth2", "eth1"]',
            "network.inside_interfaces[2]: eth1 is there twice",
        ),
        ('[pinhole]\nports = "40000-40009"\nper_client = 11', "pinhole.per_client: 11 are more than pinhole.ports has"),
        (
            '[[rule]]\naction = "permit"\nfrom = ["10.0.0.0/8"]\nto = ["2001:db8::/32"]',
            "rule[0].to: never matches: none of its addresses is of the family",
        ),
        (
            '[[upstream]]\nname = "a"\nkind = "socks5"\naddress = "127.0.0.1:1080"',
            "upstream[0].address: 127.0.0.1:1080 is this gateway itself",
        ),
        (
            '[socks]\nlisten = ["0.0.0.0:1090"]\n[[upstream]]\nname = "a"\nkind = "http"\naddress = "localhost:1090"',
            "upstream[0].address: localhost:1090 is this gateway itself",
        ),
        ('[process]\nuser = "root"', "process.user: workers read what strangers send, and as root"),
        (
            '[network]\ninside = ["10.0.0.0/8"]\ninside_interfaces = ["eth1"]\n[process]\nuser = "daemon"',
            "process.user: workers and the broker are both daemon",
        ),
        (
            ROUTER + UPSTREAM + '[[rule]]\naction = "permit"\nvia = ["a"]',
            "rule[0].via: what unconfigured clients open themselves beside a connection to port 21 ",
        ),
        (
            ROUTER + UPSTREAM + '[[rule]]\naction = "permit"\nport = [22, "20-21"]\nchain = ["a"]',
            "rule[0].chain: what unconfigured clients open themselves",
        ),
        (
            PORTMAP + '[[rule]]\naction = "permit"\ncommand = ["transparent"]',
            "portmap.protocols: no rule permits `map`",
        ),
        (
            ROUTER + '[socks]\nlisten = ["0.0.0.0:1080"]\n' + FORWARD.format(1080, 443),
            "forward[0].outside: 203.0.113.2:1080 is a port of socks.listen[0] too, which is not reached there",
        ),
        (
            ROUTER + '[console]\nlisten = "203.0.113.2:2121"\n' + PUBLISH.format(2121, 21),
            "publish[0].outside: 203.0.113.2:2121 is a port of console.listen too",
        ),
        (
            ROUTER + PUBLISH.format(21, 2121),
            "publish[0].inside: port 2121 is none of alg.ftp.ports, and nobody reads what comes to port 21",
        ),
        (ROUTER + FORWARD.format(2121, 21), "forward[0].inside: its port is one of alg.ftp.ports, and nobody reads"),
        ('[alg.pptp]\nmode = "rewrite"\nports = []', "alg.pptp.ports: is empty, so the module reads nothing"),
    ],
)
def test_what_can_hardly_be_meant_is_told(text: str, said: str) -> None:
    assert [doubt[: len(said)] for doubt in doubts(parse_config(text, "f.toml"))] == [said]


@pytest.mark.parametrize(
    "text",
    [
        RULE + '[[rule]]\naction = "deny"',
        ROUTER + '[socks]\nlisten = ["192.168.56.1:1080"]\n' + FORWARD.format(1080, 443),  # another address
        ROUTER + FORWARD.format(1080, 443).replace("443", '443"\nprotocol = "udp'),
        "[alg.pptp]\nports = []",  # off
        '[[rule]]\naction = "permit"\n[[rule]]\naction = "permit"\nto = ["127.0.0.1"]',  # a protected address, by name
        '[[rule]]\naction = "deny"\ntime = "Mo-Fr"\n[[rule]]\naction = "permit"',
        '[[rule]]\naction = "permit"\nident = true\nuser = ["ann"]',
        PORTMAP + '[[rule]]\naction = "permit"\nfrom = ["10.0.0.0/8"]',
        '[[rule]]\naction = "permit"\n[[rule]]\naction = "deny"\ncommand = ["fxp"]',
        '[[rule]]\naction = "permit"\nfrom = ["10.0.0.0/8"]\nto = ["2001:db8::/32", "example.com"]',
        '[[upstream]]\nname = "a"\nkind = "socks5"\naddress = "192.0.2.1:1080"',
        ROUTER + UPSTREAM + '[[rule]]\naction = "permit"\nport = [443]\nvia = ["a"]',
        ROUTER + UPSTREAM + '[[rule]]\naction = "permit"\ncommand = ["connect"]\nvia = ["a"]',
        ROUTER + UPSTREAM + '[alg.ftp]\nmode = "off"\n[[rule]]\naction = "permit"\nvia = ["a"]',
        UPSTREAM + '[[rule]]\naction = "permit"\nvia = ["a"]',
    ],
)
def test_what_can_be_meant_is_not(text: str) -> None:
    assert list(doubts(parse_config(text, "f.toml"))) == []


def said_by_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> tuple[object, list[str]]:
    """The exit code of `algate check`, and its lines on standard error with FILE for the path."""
    monkeypatch.setattr("sys.argv", ["algate", "check", "-c", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err.replace(str(path), "FILE").splitlines()


def test_what_this_host_has_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "algate.toml"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        path.write_text(
            f'[process]\nrun_dir = "{tmp_path}"\n[console]\nlisten = ""\n'
            '[pinhole]\nports = "1024-1025"\nper_client = 2\n'
            f'[socks]\nlisten = [\n"127.0.0.1:{port}",\n"203.0.113.77:1080"]\n'
            '[log]\ntarget = "syslog"\nsyslog = "/nonexistent/log"\n'
        )
        assert said_by_check(monkeypatch, capsys, path) == (
            0,
            [
                "algate: warning: FILE:14: log.syslog: /nonexistent/log is not there now: lines are lost until it is",
                f"algate: warning: FILE:10: socks.listen[0]: another program listens on port {port} of 127.0.0.1 now",
                "algate: warning: FILE:11: socks.listen[1]: this host does not have the address 203.0.113.77 now",
            ],
        )
        (tmp_path / "supervisor.sock").touch()  # as if this gateway ran: it is the other program then
        assert [line.partition(": log.")[2][:6] for line in said_by_check(monkeypatch, capsys, path)[1]] == ["syslog"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may look into."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """This process is an ordinary user."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def said_by_check_to_nobody(path: Path) -> tuple[int, list[str]]:
    """The same as `said_by_check`, of a process of an ordinary user. It looks for the modules of this checkout, which
    may lie below a private home."""
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    become = ["unshare", "--mount", *shown(), *user] if os.geteuid() == 0 else []
    done = subprocess.run([*become, algate(), "check", "-c", path], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.replace(str(path), "FILE").splitlines()


def test_what_this_user_may_not_read_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, users, closed = folder / "algate.toml", folder / "users", folder / "closed"
    path.write_text(
        f'[process]\nrun_dir = "{closed}/run"\n[console]\nlisten = ""\n'
        f'[socks]\nauth = ["password"]\nusers = "{users}"\n'
    )
    users.touch()
    closed.mkdir()
    assert said_by_check(monkeypatch, capsys, path) == (0, [])
    users.chmod(0)
    closed.chmod(0)
    said = said_by_check_to_nobody(path)
    closed.chmod(0o700)
    denied = "cannot be read: Permission denied"
    by_others = f"socks.users: {users}: {denied}; root, or the user of the service, can check it"
    assert said == (0, [f"algate: warning: FILE:7: {by_others}"])


@pytest.mark.parametrize("mode", [0o000, 0o444])  # of the folder: it may not be entered
def test_a_file_that_this_user_may_not_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    etc = folder / "etc"
    etc.mkdir()
    path = files(etc, main="")
    monkeypatch.setattr("gateway.config.load.DEFAULT_PATH", path)
    etc.chmod(mode)
    with as_nobody():
        for asked in (path, None):
            with pytest.raises(ConfigError) as caught:
                load_config(asked)
            assert str(caught.value) == f"{path}: cannot be read: Permission denied"
    etc.chmod(0o755)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "algate.toml"
    path.write_bytes(b"\xef\xbb\xbf[pinhole]\r\nper_client = 3\r\n")
    assert load_config(path).pinhole.per_client == 3


def test_text_of_another_code_page_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "algate.toml"
    path.write_bytes('[network]\ninside = ["10.0.0.0/8"] # Büro\n'.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:2: is not UTF-8 text (byte 0xfc)"


LOOPBACK = Prefix.of(ipaddress.ip_network("127.0.0.0/8"))


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_a_covered_rule_never_decides(seed: int) -> None:
    chance = random.Random(seed)
    first = compile_rule(replace(section(chance), ident=False), "first", "")
    if chance.random() < 0.7:  # most pairs of random rules have nothing to do with each other
        first = compile_rule(
            RuleSection(action=chance.choice(("permit", "deny")), to=some(chance, PATTERNS)), "first", ""
        )
    later = compile_rule(section(chance), "later", "")
    if not covers(first, later):
        return
    for _ in range(30):
        asked = request(chance)
        address = target(chance)
        name = asked.host if asked.host in NAMES else None
        query = Query(
            asked.command, asked.client.ip, name, asked.port, asked.user, asked.groups, chance.randrange(7 * 24 * 60)
        )
        protected = LOOPBACK if LOOPBACK.contains(address) else None
        if why_not(later, query, address, protected) is None and why_not(first, query, address, protected) is not None:
            # Only a protected address, which a permission for everywhere leaves out and the later rule denies as well.
            assert first.permit
            assert not later.permit
            assert protected is not None
