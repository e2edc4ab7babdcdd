"""`algate rules apply|remove` with the real iptables, in a namespace of its own for each test."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.lab import namespaces
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4, SERVER4, Lab, algate

FOREIGN = """*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:MINE - [0:0]
-A PREROUTING -i wan0 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.168.56.7:443
-A POSTROUTING -o wan0 -j MASQUERADE
-A MINE -m comment --comment "algate: table was absent" -j RETURN
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ALGATE-LOOKALIKE - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "say \\"hello\\" -j ALGATE-INPUT" -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ALGATE-LOOKALIKE -j DROP
COMMIT
"""
FOREIGN6 = FOREIGN.replace("192.168.56.7:443", "[fd00:56::7]:443")


class Host:
    """A network namespace with nothing in it."""

    def __init__(self, name: str, tmp: Path) -> None:
        self.name, self.tmp = name, tmp

    def run(self, *argv: str, stdin: str = "", path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program; `path` is put before PATH."""
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *argv], input=stdin, capture_output=True, text=True, timeout=30,
            check=False, env=environment,
        )  # fmt: skip

    def ok(self, *argv: str, stdin: str = "") -> str:
        done = self.run(*argv, stdin=stdin)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def config(self, name: str = "a", **network: object) -> str:
        """Write a configuration; its path. Each name is an instance of its own."""
        file = self.tmp / f"{name}.toml"
        inside = {"inside": ["192.168.56.0/24", "fd00:56::/64"], "inside_interfaces": ["eth1", "eth2"], **network}
        socks = {"listen": ["192.168.56.2:1080", "[fd00:56::2]:1081", "127.0.0.1:1082"]}
        file.write_text(
            tomli_w.dumps({"network": inside, "socks": socks, "process": {"run_dir": str(self.tmp / name)}})
        )
        return str(file)

    def rules(self, action: str, config: str) -> str:
        return self.ok(str(algate()), "rules", action, "-c", config)

    def state(self) -> str:
        """All of netfilter, without counters and times: both iptables-save and what nft sees of chains and tables."""
        text = "".join(self.ok(program) for program in ("iptables-save", "ip6tables-save"))
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        tables = self.ok("nft", "list", "ruleset")
        return re.sub(r"\[\d+:\d+\]", "[0:0]", text) + re.sub(r"packets \d+ bytes \d+", "", tables)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    name = f"{namespaces.new_prefix()}rules"
    namespaces.add(name)
    try:
        yield Host(name, tmp_path)
    finally:
        namespaces.remove(name)


def load_nothing(host: Host) -> None:
    """No table at all, as after booting."""


def load_foreign(host: Host) -> None:
    host.ok("iptables-restore", stdin=FOREIGN)
    host.ok("ip6tables-restore", stdin=FOREIGN6)


def load_empty_tables(host: Host) -> None:
    host.ok("nft", "add", "table", "ip", "nat")
    host.ok("nft", "add", "table", "ip6", "filter")


def load_one_chain(host: Host) -> None:
    host.ok("iptables", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
    host.ok("iptables", "-P", "FORWARD", "DROP")


STARTS = [load_nothing, load_foreign, load_empty_tables, load_one_chain]


@pytest.mark.parametrize("start", STARTS)
def test_removed_is_as_before(host: Host, start: Callable[[Host], None]) -> None:
    start(host)
    config = host.config(masquerade=["ipv4", "ipv6"])
    before = host.state()
    host.rules("apply", config)
    assert host.state() != before
    host.rules("remove", config)
    assert host.state() == before
    host.rules("remove", config)
    assert host.state() == before


@pytest.mark.parametrize("start", STARTS)
def test_applied_twice_is_once_and_forgets_nothing(host: Host, start: Callable[[Host], None]) -> None:
    start(host)
    config = host.config()
    before = host.state()
    host.rules("apply", config)
    once = host.state()
    host.rules("apply", config)
    assert host.state() == once
    host.rules("remove", config)
    assert host.state() == before


def test_what_is_loaded_is_what_show_prints(host: Host) -> None:
    config = host.config(masquerade=["ipv4"])
    host.rules("apply", config)
    applied = {program: host.ok(program) for program in ("iptables-save", "ip6tables-save")}
    host.rules("remove", config)
    for family, program in (("ipv4", "iptables"), ("ipv6", "ip6tables")):
        text = host.ok(str(algate()), "rules", "show", "--family", family, "-c", config)
        host.ok(f"{program}-restore", "--noflush", stdin=text)
        by_hand = host.ok(f"{program}-save")
        comment = re.compile(r'^#.*\n| -m comment --comment "algate: [a-z ]+"', re.MULTILINE)
        assert comment.sub("", by_hand) == comment.sub("", applied[f"{program}-save"])


def test_foreign_rules_stay_where_they_are_and_ours_come_first(host: Host) -> None:
    load_foreign(host)
    config = host.config()
    host.rules("apply", config)
    host.ok("iptables", "-I", "FORWARD", "1", "-i", "eth9", "-j", "DROP")
    host.rules("apply", config)
    lines = host.ok("iptables-save", "-t", "filter").splitlines()
    forward = [line for line in lines if line.startswith("-A FORWARD")]
    assert re.fullmatch(r"-A FORWARD -j ALGATE-[0-9A-F]{6}-FORWARD", forward[0])
    assert forward[1:] == [
        "-A FORWARD -i eth9 -j DROP",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]
    foreign = [line for line in FOREIGN.splitlines() if line.startswith("-A") and "MASQ" not in line]
    everything = host.ok("iptables-save").splitlines()
    assert [line for line in foreign if line not in everything] == []


def test_rules_of_others_in_a_chain_that_we_made_are_kept(host: Host) -> None:
    config = host.config()
    host.rules("apply", config)
    host.ok("iptables", "-t", "nat", "-A", "PREROUTING", "-i", "wan0", "-p", "tcp", "-j", "ACCEPT")
    host.ok("ip6tables", "-P", "FORWARD", "DROP")
    host.rules("remove", config)
    assert "-A PREROUTING -i wan0 -p tcp -j ACCEPT" in host.ok("iptables-save")
    assert ":FORWARD DROP" in host.ok("ip6tables-save")
    assert "ALGATE" not in host.state()


def test_a_changed_configuration_replaces_the_old_rules(host: Host) -> None:
    before = host.state()
    host.rules("apply", host.config(masquerade=["ipv4"]))
    assert "MASQUERADE" in host.state()
    host.rules("apply", host.config(inside=["10.0.0.0/8"]))
    now = host.state()
    assert "MASQUERADE" not in now
    assert "192.168.56.0" not in now
    assert "fd00:56" not in now, "no inside network is IPv6 any more"
    assert "10.0.0.0/8" in now
    host.rules("remove", host.config())
    assert host.state() == before


def test_two_instances_do_not_touch_each_other(host: Host) -> None:
    load_foreign(host)
    for program in ("iptables", "ip6tables"):  # a table that the first one brings goes with the first one only
        host.ok(program, "-t", "mangle", "-P", "FORWARD", "ACCEPT")
    first, second = host.config("one"), host.config("two")
    before = host.state()
    host.rules("apply", first)
    with_one = host.state()
    host.rules("apply", second)
    host.rules("remove", second)
    assert host.state() == with_one
    host.rules("apply", second)
    host.rules("remove", first)
    assert "ALGATE" in host.state()
    host.rules("remove", second)
    assert host.state() == before


@pytest.mark.parametrize("step", ["--test", "--noflush"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_of_ipv6_leaves_both_families_as_they_were(host: Host, step: str, earlier: bool) -> None:
    load_foreign(host)
    config = host.config()
    if earlier:
        host.rules("apply", host.config(inside=["10.0.0.0/8", "fd99::/64"]))
        host.ok("iptables", "-I", "FORWARD", "1", "-i", "eth9", "-j", "DROP")
        host.config()
    before = host.state()
    # An ip6tables-restore that cannot do it: at once, or only when it is no test any more.
    broken = host.tmp / "bin"
    broken.mkdir()
    script = broken / "ip6tables-restore"
    allowed = "*--version*" if step == "--test" else "*--version*|*--test*"
    script.write_text(f'#!/bin/sh\ncase "$*" in {allowed}) exec /usr/sbin/ip6tables-restore "$@";; esac\n')
    with script.open("a") as file:
        file.write('echo "ip6tables-restore v1.8.9 (nf_tables): line 3: out of luck" >&2\nexit 4\n')
    script.chmod(0o755)
    done = host.run(str(algate()), "rules", "apply", "-c", config, path=broken)
    assert done.returncode == 1
    assert "ip6tables-restore: " in done.stderr
    assert "out of luck" in done.stderr
    assert "that line is: " in done.stderr
    assert "Traceback" not in done.stderr
    assert host.state() == before


def test_nothing_to_redirect_is_said(host: Host) -> None:
    file = host.tmp / "empty.toml"
    file.write_text('[network]\ninside = ["10.0.0.0/8"]\n')
    for action in ("show", "apply"):
        done = host.run(str(algate()), "rules", action, "-c", str(file))
        assert done.returncode == 1
        assert done.stderr == "algate: network.inside_interfaces is empty: nothing to redirect\n"
    done = host.run(str(algate()), "rules", "apply", "--if-any", "-c", str(file))  # as the service's unit asks
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_program_is_named(host: Host) -> None:
    environment = {"PATH": str(host.tmp)}
    code = (
        "import sys; from gateway.host import programs, rules; programs._SBIN = ''\n"
        "from gateway.config.load import load_config; rules.apply(load_config(sys.argv[1]))"
    )
    python = algate().with_name("python")
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", python, "-c", code, host.config()],  # never in the machine's own namespace
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "iptables-restore is not installed: install the package iptables" in done.stderr


@pytest.mark.parametrize("version", [4, 6])
def test_a_router_whose_input_policy_is_drop(tmp_path: Path, version: int) -> None:
    with Lab(strict=True, input_drop=True, logs=tmp_path) as lab:
        server = lab.vsftpd()
        server.put("pub/hello", b"hello")
        gateway = lab.start_gateway()
        url = server.url("pub/hello", version)
        assert lab.run("inside", ["curl", "-sS", "-m", "10", url]).stdout == "hello"
        socks = f"{ROUTER_IN4}:1080" if version == 4 else f"[{ROUTER_IN6}]:1080"
        assert lab.run("inside", ["curl", "-sS", "-m", "10", "--socks5", socks, url]).stdout == "hello"
        # The port to which connections are redirected is not open for direct ones.
        with pytest.raises(TimeoutError):
            lab.connect("inside", ROUTER_IN4 if version == 4 else ROUTER_IN6, 10800, timeout=0.5)
        assert gateway.stop() == 0
        assert lab.leftovers() == []


def test_masquerade_for_a_router_that_has_no_nat(tmp_path: Path) -> None:
    with Lab(nat4=False, logs=tmp_path) as lab, lab.listen("outside", SERVER4, 9999) as listener:
        with pytest.raises(TimeoutError):
            lab.connect("inside", SERVER4, 9999, timeout=0.5)
        config = lab.write_config(network={"masquerade": ["ipv4"]})
        lab.run("router", [algate(), "rules", "apply", "-c", config])
        with lab.connect("inside", SERVER4, 9999):
            connection, (address, _) = listener.accept()
            connection.close()
            assert address == ROUTER_OUT4
        lab.run("router", [algate(), "rules", "remove", "-c", config])
        assert lab.leftovers() == []
