"""Rules that make no sense: each error names the file and the key, or the file and the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.load import load_config, parse_config
from gateway.model.errors import ConfigError

GOOD = '[[rule]]\naction = "permit"\n'


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ('to = ["10.0.0.0/8", "exa mple.com"]', "rule[1].to[1]: 'exa mple.com' is not a host name"),
        ('to = ["10.0.0.1/8"]', "rule[1].to[0]: 10.0.0.1/8 has host bits set"),
        ('to = ["*"]', "rule[1].to[0]: '*' is not a host name"),
        ('to = ["www.*.com"]', "rule[1].to[0]:"),
        ('to = ["127.1"]', "rule[1].to[0]:"),
        ('from = ["example.com"]', "rule[1].from[0]:"),
        ('port = ["9-8"]', "rule[1].port[0]: '9-8' is not a range of ports"),
        ("port = [70000]", "rule[1].port[0]: 70000 is not a range of ports"),
        ("port = [true]", "rule[1].port[0]: expected"),
        ('time = "Mo-Xx"', "rule[1].time: 'mo-xx' is not a day"),
        ('time = ["Mo 08:00-08:00"]', "rule[1].time[0]: 'Mo 08:00-08:00' is not a span of time"),
        ('time = "25:00-26:00"', "rule[1].time:"),
        ("max_sessions = -1", "rule[1].max_sessions: -1 is negative"),
        ('via = "nowhere"', "rule[1].via: there is no upstream 'nowhere'"),
        ('command = ["fly"]', "rule[1].command[0]:"),
        ("colour = 1", "rule[1].colour: unknown key"),
        ('any_peer = true\nto = ["192.0.2.1"]', "rule[1].any_peer:"),
        ('any_peer = true\ncommand = ["connect"]', "rule[1].any_peer:"),
        ('log = "loud"', "rule[1].log:"),
    ],
)
def test_the_error_names_the_key(keys: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(GOOD + GOOD + keys, "algate.toml")
    assert re.sub(r"^algate.toml:\d+: ", "algate.toml: ", str(caught.value)).startswith("algate.toml: " + error)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[[rule]]\n", "rule[0]: the key action is missing"),
        ('[[rule]]\naction = "deny"\nmax_sessions = 1', "rule[0].max_sessions: has no meaning"),
        (GOOD + 'name = "a"\n' + GOOD + 'name = "a"', "rule[1].name: 'a' is there twice"),
        ("[loaded]\n", "loaded: unknown key"),
        ('[dns]\nservers = ["ns.example"]', "dns.servers[0]:"),
        ("[dns]\ntimeout = 0", "dns.timeout:"),
        ('[[upstream]]\nname = "a b"\nkind = "socks5"\naddress = "x:1"', "upstream[0].name:"),
        ('[[upstream]]\nname = "a"\nkind = "socks6"\naddress = "x:1"', "upstream[0].kind:"),
        ('[[upstream]]\nname = "a"\nkind = "socks5"\naddress = "x"', "upstream[0].address:"),
        ('[[upstream]]\nname = "a"\nkind = "socks5"\naddress = "x:1"\nuser = "u"', "upstream[0].user:"),
        (
            '[[upstream]]\nname = "a"\nkind = "http"\naddress = "x:1"\nuser = "u"\npassword_file = "/nonexistent"',
            "upstream[0].password_file: /nonexistent cannot be read",
        ),
        ('[socks]\naccess_file = "/nonexistent"', "socks.access_file: /nonexistent cannot be read"),
    ],
)
def test_so_do_others(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "algate.toml")
    assert re.sub(r"^algate.toml:\d+: ", "algate.toml: ", str(caught.value)).startswith("algate.toml: " + error)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("allow 10.0.0.0 0.0.0.255", "'allow' is neither permit nor deny"),
        ("permit 10.0.0.0", "a source and its mask are missing"),
        ("permit 10.0.0.0 0.0.0.255 10.1.0.0", "the mask of the destination '10.1.0.0' is missing"),
        ("permit 10.0.0.0 0.0.0.255 eq", "the port behind eq is missing"),
        ("permit 10.0.0.0 0.0.0.255 eq 70000", "'70000' is not a port"),
        ("permit 10.0.0.0 0.0.0.255 eq nosuchservice", "service/proto not found"),
        ("permit 10.0.0.0 0.0.0.255 eq 80 81", "'81' is one field too many"),
        ("permit 10.0.0.0 0.0.0.256", "'0.0.0.256' is not a mask"),
        ("permit 10.0.0.300 0.0.0.0", "Octet 300"),
        ("permit 10.0.0.0 255.255.255.0", "the mask 255.255.255.0 looks like the other kind"),
        ("permit ?=x 10.0.0.0 0.0.0.255", "'?=x' is none of"),
        ("permit *=a,,b 10.0.0.0 0.0.0.255", "'*=a,,b' has an empty name"),
        ("permit *=/nonexistent 10.0.0.0 0.0.0.255", "[Errno 2]"),
    ],
)
def test_a_line_of_the_access_file_that_cannot_be_read(tmp_path: Path, line: str, error: str) -> None:
    access = tmp_path / "sockd.conf"
    access.write_text(f"# the first line\n{line}\n")
    config = tmp_path / "algate.toml"
    config.write_text(f'[socks]\naccess_file = "{access}"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    assert str(caught.value).startswith(f"{access}:2: ")
    assert error in str(caught.value)


def test_what_check_prints_is_the_same_rules(tmp_path: Path) -> None:
    access = tmp_path / "sockd.conf"
    access.write_text("permit 10.0.0.0 0.255.255.255\n")
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    text = GOOD + f'[socks]\naccess_file = "{access}"\n'
    text += f'[[upstream]]\nname = "a"\nkind = "http"\naddress = "x:1"\nuser = "u"\npassword_file = "{secret}"\n'
    config = parse_config(text, "algate.toml")
    assert config.loaded.passwords == {"a": "open sesame"}
    assert len(config.loaded.access) == 1
    printed = config.to_toml()
    assert "sesame" not in printed
    again = parse_config(printed, "again")
    assert (again.rule, again.upstream, again.loaded.access) == (config.rule, config.upstream, config.loaded.access)
