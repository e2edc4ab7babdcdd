"""The configuration: what is accepted, and that each error names the file and the key or line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from msgspec.structs import replace

from alg.api import Mode
from gateway.config.load import load_config, parse_config
from gateway.model.errors import ConfigError

FULL = """
[network]
inside = ["192.168.56.0/24", "fd00:56::/64"]
inside_interfaces = ["eth1"]
outside = "203.0.113.2"
masquerade = ["ipv4"]
[socks]
listen = ["192.168.56.1:1080", "[fd00:56::1]:1080"]
auth = ["none"]
handshake_timeout = 10
[transparent]
port = 10800
ports = [8021]
[pinhole]
ports = "40000-49999"
backend = "auto"
per_client = 64
[alg.ftp]
mode = "observe"
ports = [21, 2121]
[process]
workers = 2
run_dir = "/run/algate-test"
user = "nobody"
"""


def test_a_full_configuration() -> None:
    config = parse_config(FULL, "algate.toml")
    assert [str(network) for network in config.inside_networks] == ["192.168.56.0/24", "fd00:56::/64"]
    assert config.pinhole_ports == (40000, 49999)
    assert config.module_ports() == (21, 554, 2121, 5060, 6667, 8554)
    assert config.module_of(2121) == ("ftp", config.alg["ftp"])
    assert config.module_of(22) is None
    assert config.alg["ftp"].mode is Mode.OBSERVE
    assert config.transparent_enabled
    assert config.broker_wanted
    assert config.worker_count == 2


def test_what_check_prints_is_the_same_configuration() -> None:
    config = parse_config(FULL, "algate.toml")
    again = parse_config(config.to_toml(), "again")
    assert replace(again, loaded=config.loaded) == config
    assert tomllib.loads(config.to_toml())["socks"]["handshake_timeout"] == 10


def test_no_configuration_is_a_socks_server_for_this_machine() -> None:
    config = parse_config("", "none")
    assert config.socks.listen == ("127.0.0.1:1080",)
    assert not config.broker_wanted
    assert not config.transparent_enabled
    assert config.module_ports() == (21, 554, 5060, 6667, 8554)
    assert config.module_ports("udp") == (69, 5060)
    assert not config.packets_wanted


def test_a_module_that_is_off_has_no_ports() -> None:
    config = parse_config('[alg.ftp]\nmode = "off"\n', "x")
    assert config.module_ports() == (554, 5060, 6667, 8554)
    assert config.module_of(21) is None


def test_datagrams_are_read_where_there_is_a_broker_and_an_inside_interface() -> None:
    network = '[network]\ninside = ["10.0.0.0/8"]\ninside_interfaces = ["eth1"]\n'
    config = parse_config(network, "x")
    assert config.packets_wanted
    assert config.module_of(5060, "udp") == ("sip", config.alg["sip"])
    assert config.module_of(21, "udp") is None
    assert config.read_ports == (48750, 49999)
    assert config.queue != parse_config(network + '[process]\nrun_dir = "/x"\n', "x").queue
    for more in (
        '[pinhole]\nbackend = "userspace"\n',
        '[alg.sip]\nmode = "off"\n',
        '[alg.sip]\ntransports = ["tcp"]\n',
    ):
        config = parse_config(network + '[alg.tftp]\nmode = "off"\n' + more, "x")
        assert not config.packets_wanted
        assert config.read_ports is None


def test_instances_differ_by_their_run_dir() -> None:
    names = [parse_config(f'[process]\nrun_dir = "{path}"\n', "x").instance for path in ("/run/algate", "/run/b", "/c")]
    assert names[0] == "algate"
    assert len(set(names)) == 3
    assert all(len(name) <= 13 for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "f.toml: x: unknown key"),
        ("[network]\ninside = [1]", "f.toml: network.inside[0]: expected text, got a whole number"),
        ("[network]\nmasquerade = ['ipv5']", "f.toml: network.masquerade[0]: 'ipv5' is not one of ipv4, ipv6"),
        ("[socks]\nident_timeout = 0", "f.toml: socks.ident_timeout: 0 is not greater than 0"),
        ("[socks.guard]\nfailures = -1", "f.toml: socks.guard.failures: -1 is negative"),
        ("[socks.guard]\nban = 0", "f.toml: socks.guard.ban: 0 is not greater than 0"),
        ("[socks.gssapi]\nprotection = ['x']", "f.toml: socks.gssapi.protection[0]: 'x' is not one of confidentiality"),
        ("[socks]\nauth = []", "f.toml: socks.auth: must name at least one method"),
        ("[socks]\nhandshake_timeout = 0", "f.toml: socks.handshake_timeout: 0 is not greater than 0"),
        ("[transparent]\nport = 70000", "f.toml: transparent.port: 70000 is not a port"),
        ("[transparent]\nports = [0]", "f.toml: transparent.ports: 0 is not a port"),
        ("[pinhole]\nports = 'many'", "f.toml: pinhole.ports: 'many' is not LOWEST-HIGHEST"),
        ("[pinhole]\nper_client = 0", "f.toml: pinhole.per_client: 0 is not greater than 0"),
        ("[alg.ftp]\nports = [70000]", "f.toml: alg.ftp.ports: 70000 is not a port"),
        ("alg = 1", "f.toml: alg: expected a table, got a whole number"),
        ("[process]\nworkers = -1", "f.toml: process.workers: -1 is not between 0 (one per core) and 1024"),
        ("[[rule]]\naction = 'permit'\ntime = 3", "f.toml: rule[0].time: expected text or a list, got a whole number"),
        ("[[rule]]\naction = 'permit'\nfrm = []", "f.toml: rule[0].frm: unknown key (did you mean from?)"),
    ],
)
def test_an_error_names_the_file_and_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.toml")
    assert re.sub(r"^f.toml:\d+: ", "f.toml: ", str(caught.value)).startswith(message)


def test_an_unreadable_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=f"{missing}: cannot be read: No such file"):
        load_config(missing)
    missing.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(missing)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[alg.ftp]\npasv_adress = "peer"', "alg.ftp.pasv_adress: unknown key"),
        ('[alg.ftp]\npasv_address = "far"', "alg.ftp.pasv_address: "),
        ("[alg.ftp]\npasv_address = 1", "alg.ftp.pasv_address: "),
        ('[alg.ftp]\nnat64 = ["64:ff9b::1/96"]', "alg.ftp.nat64: 64:ff9b::1/96 has host bits set"),
        ("[alg.sip]\nmedia_timeout = 9.9", "alg.sip.media_timeout: 9.9 is not between 10 and 86400 (seconds)"),
        ("[alg.sip]\nmedia_timeout = nan", "alg.sip.media_timeout: nan is not between 10 and 86400 (seconds)"),
        ("[alg.sip]\nhold_timeout = inf", "alg.sip.hold_timeout: inf is not between 10 and 86400 (seconds)"),
        ("[alg.sip]\nhold_timeout = 60", "alg.sip.hold_timeout: 60 is less than media_timeout, 300"),
        ('[alg.sip]\nmedia_timeout = "300"', "alg.sip.media_timeout: expected a number, got text"),
        ("[alg.sip]\nmedia_timeout = true", "alg.sip.media_timeout: expected a number, got true or false"),
        ("[alg.sip]\nmedia_timout = 30", "alg.sip.media_timout: unknown key (did you mean media_timeout?)"),
        ("[alg.ftp.options]\nx = 1", "alg.ftp.options: unknown key"),
        ('[[publish]]\noutside = "203.0.113.2:21"', "publish"),
        ('[[publish]]\noutside = "203.0.113.2"\ninside = "10.0.0.1:21"', "publish[0].outside: "),
        ('[[publish]]\noutside = "203.0.113.2:21"\ninside = "11.0.0.1:21"', "publish[0].inside: 11.0.0.1 is not in"),
        ('[[publish]]\noutside = "203.0.113.2:0"\ninside = "10.0.0.1:21"', "publish[0].outside: 0 is not a port"),
        ('[[publish]]\noutside = "[2001:db8::1]:21"\ninside = "10.0.0.1:21"', "publish[0].outside: 2001:db8::1 is of"),
    ],
)
def test_keys_of_a_module_and_published_servers(text: str, message: str) -> None:
    base = '[network]\ninside = ["10.0.0.0/8"]\ninside_interfaces = ["eth1"]\n'
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(base + text, "file")


def test_a_module_gets_its_keys() -> None:
    config = parse_config('[alg.ftp]\npasv_address = "peer"', "file")
    defaults = {"pasv_address": "keep", "convert": "off", "nat64": ("64:ff9b::/96",)}
    assert config.alg["ftp"].options == {**defaults, "pasv_address": "peer"}
    assert parse_config("", "file").alg["ftp"].options == defaults
    again = parse_config(config.to_toml(), "again")
    assert replace(again, loaded=config.loaded) == config
