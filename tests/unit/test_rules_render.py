"""The rules of a configuration, and the transaction that takes what is there to what is wanted; no root needed."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from alg.registry import options_by_name
from gateway.config.load import parse_config
from gateway.config.schema import Config
from gateway.host import programs, rules
from gateway.host.native import _HOOKS
from gateway.model.errors import AlgateError

BASIC = """
[network]
inside = ["192.168.56.0/24"]
inside_interfaces = ["eth1"]
"""


def config(text: str) -> Config:
    return parse_config(text, "test")


def lines(text: str, family: rules.Family = "ipv4") -> list[str]:
    rendered = rules.render(config(text), family)
    assert rendered is not None
    return rendered.splitlines()


def test_a_small_router() -> None:
    queue = "-j NFQUEUE --queue-num 15855 --queue-bypass"
    assert lines(BASIC + '[process]\nrun_dir = "/run/algate"\n[alg.tftp]\nmode = "off"') == [
        "*raw",
        ":ALGATE-PREROUTING - [0:0]",
        "-I PREROUTING 1 -j ALGATE-PREROUTING",
        (
            "-A ALGATE-PREROUTING -s 192.168.56.0/24 -i eth1 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
            " -m multiport --dports 21,554,5060,6667,8554 -m addrtype ! --dst-type LOCAL"
            " -j NFQUEUE --queue-num 65458 --queue-bypass"
        ),
        "COMMIT",
        "*mangle",
        ":ALGATE-PREROUTING - [0:0]",
        ":ALGATE-FORWARD - [0:0]",
        ":ALGATE-FROM - [0:0]",
        ":ALGATE-TO - [0:0]",
        "-I PREROUTING 1 -j ALGATE-PREROUTING",
        "-I FORWARD 1 -j ALGATE-FORWARD",
        (
            "-A ALGATE-PREROUTING -p udp -m mark --mark 0x80000000/0x80000000 -m conntrack --ctstate NEW"
            " -j NFQUEUE --queue-num 65458 --queue-bypass"
        ),
        "-A ALGATE-FORWARD ! -p udp -j RETURN",
        "-A ALGATE-FORWARD -m connmark --mark 0x50000000/0x50000000 -j RETURN",
        "-A ALGATE-FORWARD -m mark --mark 0x80000000/0x80000000 -j RETURN",
        "-A ALGATE-FORWARD -d 192.168.56.0/24 -i eth1 -j RETURN",
        "-A ALGATE-FORWARD -s 192.168.56.0/24 -i eth1 -j ALGATE-FROM",
        "-A ALGATE-FORWARD -d 192.168.56.0/24 -o eth1 -j ALGATE-TO",
        "-A ALGATE-FROM -p udp -m conntrack --ctorigdstport 5060 --ctdir ORIGINAL " + queue,
        "-A ALGATE-FROM -p udp -m udp --sport 5060 -m conntrack --ctdir REPLY " + queue,
        "-A ALGATE-FROM -p udp -m conntrack --ctorigdstport 48750:49999 --ctdir REPLY " + queue,
        "-A ALGATE-TO -p udp -m conntrack --ctorigdstport 5060 --ctdir REPLY " + queue,
        "-A ALGATE-TO -p udp -m udp --dport 5060 -m conntrack --ctdir ORIGINAL " + queue,
        "-A ALGATE-TO -p udp -m conntrack --ctorigdstport 48750:49999 --ctdir ORIGINAL " + queue,
        "COMMIT",
        "*nat",
        ":ALGATE-PREROUTING - [0:0]",
        ":ALGATE-POSTROUTING - [0:0]",
        "-I PREROUTING 1 -j ALGATE-PREROUTING",
        "-I POSTROUTING 1 -j ALGATE-POSTROUTING",
        "-A ALGATE-PREROUTING -i eth1 -m addrtype --dst-type LOCAL -m socket --nowildcard -j RETURN",
        "-A ALGATE-PREROUTING -d 192.168.56.0/24 -i eth1 -m addrtype ! --dst-type LOCAL -j RETURN",
        (
            "-A ALGATE-PREROUTING -s 192.168.56.0/24 -i eth1 -p tcp -m multiport --dports 21,554,5060,6667,8554"
            " -j REDIRECT --to-ports 10800"
        ),
        "COMMIT",
        "*filter",
        ":ALGATE-INPUT - [0:0]",
        ":ALGATE-FORWARD - [0:0]",
        "-I INPUT 1 -j ALGATE-INPUT",
        "-I FORWARD 1 -j ALGATE-FORWARD",
        "-A ALGATE-INPUT -i eth1 -p tcp -m tcp --dport 10800 -m conntrack --ctstate DNAT -j ACCEPT",
        "-A ALGATE-INPUT -m connmark --mark 0x20000000/0x20000000 -j ACCEPT",
        "-A ALGATE-FORWARD -m connmark --mark 0x20000000/0x20000000 -j ACCEPT",
        "COMMIT",
    ]


def test_a_published_socket_of_udp_is_the_kernels() -> None:
    entry = '[[publish]]\noutside = "203.0.113.2:5060"\ninside = "192.168.56.20:5060"\nprotocol = "udp"\n'
    found = lines(f'{BASIC}{entry}[process]\nrun_dir = "/run/algate"')
    assert [line for line in found if "192.168.56.20" in line or "203.0.113.2" in line] == [
        "-A ALGATE-PREROUTING -d 203.0.113.2 -p udp -m udp --dport 5060 -j DNAT --to-destination 192.168.56.20:5060",
        "-A ALGATE-POSTROUTING -s 192.168.56.20 -p udp -m udp --sport 5060 -o eth1 -j RETURN",
        "-A ALGATE-POSTROUTING -s 192.168.56.20 -p udp -m udp --sport 5060 -j SNAT --to-source 203.0.113.2:5060",
        (
            "-A ALGATE-FORWARD -p udp -m conntrack --ctstate DNAT"
            " --ctproto udp --ctorigdst 203.0.113.2 --ctorigdstport 5060 -j ACCEPT"
        ),
    ]


def test_no_inside_network_of_a_family_no_rules() -> None:
    assert rules.render(config(BASIC), "ipv6") is None


def test_every_interface_with_every_network_and_all_ports() -> None:
    text = BASIC.replace('["eth1"]', '["eth1", "ppp+"]').replace("/24", '/24", "10.0.0.0/8')
    found = lines(f"{text}[transparent]\nport = 999\nports = {list(range(100, 120))}")
    redirects = [line for line in found if "REDIRECT" in line]
    assert len(redirects) == 2 * 2 * 2
    assert all(line.endswith("-j REDIRECT --to-ports 999") for line in redirects)
    some = "21," + ",".join(map(str, range(100, 114)))
    rest = ",".join(map(str, range(114, 120))) + ",554,5060,6667,8554"
    assert [line.split("--dports ")[1].split()[0] for line in redirects if "ppp+" in line and "10.0.0.0/8" in line] == [
        some,
        rest,
    ]
    assert sum("! --dst-type LOCAL -j RETURN" in line for line in found) == 4


def test_a_module_that_is_off_has_no_port() -> None:
    off = lines(BASIC + "".join(f'[alg.{name}]\nmode = "off"\n' for name in options_by_name()))
    assert not [line for line in off if "REDIRECT" in line or "mangle" in line]
    assert [line for line in lines(BASIC + '[alg.ftp]\nmode = "observe"') if "REDIRECT" in line]


def test_masquerade_only_if_asked_for() -> None:
    asked = lines(BASIC + 'masquerade = ["ipv4"]')
    assert [line for line in asked if line not in lines(BASIC)] == [
        "-A ALGATE-POSTROUTING -s 192.168.56.0/24 -o eth1 -j RETURN",
        "-A ALGATE-POSTROUTING -s 192.168.56.0/24 -j MASQUERADE",
    ]
    assert not [line for line in lines(BASIC + 'masquerade = ["ipv6"]') if "MASQUERADE" in line]


@pytest.mark.parametrize(
    ("listen", "ports"),
    [
        ('["192.168.56.2:1080", "0.0.0.0:1081"]', ["1080", "1081"]),
        ('["127.0.0.1:1080", "[::1]:1080", "[fd00::1]:1080"]', []),
    ],
)
def test_socks_ports_that_others_can_reach(listen: str, ports: list[str]) -> None:
    rules = lines(f"{BASIC}[socks]\nlisten = {listen}")
    found = [line.split() for line in rules if "-INPUT -s " in line and "-p tcp" in line]
    assert [words[words.index("--dport") + 1] for words in found] == ports


def test_an_instance_of_its_own_has_short_enough_names() -> None:
    chains = [line[1:].split()[0] for line in lines(BASIC + '[process]\nrun_dir = "/x"') if line.startswith(":")]
    assert all(len(chain) <= 28 and chain.startswith("ALGATE-") for chain in chains)
    assert not set(chains) & {line[1:].split()[0] for line in lines(BASIC) if line.startswith(":")}


def test_nothing_to_redirect_is_an_error() -> None:
    with pytest.raises(AlgateError, match="inside_interfaces is empty: nothing to redirect"):
        rules.render(config('[network]\ninside = ["10.0.0.0/8"]'), "ipv4")


SAVED = """# Generated by iptables-save
*filter
:INPUT DROP [12:3456]
:FORWARD DROP [0:0]
:ALGATE-FORWARD - [0:0]
:ALGATE-GUESTS - [0:0]
:ALGATE-ABCDEF-FORWARD - [0:0]
-A INPUT -m comment --comment "not -j ALGATE-FORWARD" -j ACCEPT
-A FORWARD -i eth9 -j DROP
-A FORWARD -m comment --comment "algate: chain was absent" -j ALGATE-FORWARD
-A FORWARD -j ALGATE-ABCDEF-FORWARD
-A ALGATE-GUESTS -j ALGATE-FORWARD
-A ALGATE-FORWARD -m connmark --mark 0x1/0x1 -j ACCEPT
COMMIT
"""


def test_removing_takes_ours_and_nothing_else() -> None:
    now = rules._parse(SAVED)
    assert rules._transaction("algate", now, {}).splitlines() == [
        "*filter",
        ":ALGATE-FORWARD - [0:0]",
        '-D FORWARD -m comment --comment "algate: chain was absent" -j ALGATE-FORWARD',
        "-D ALGATE-GUESTS -j ALGATE-FORWARD",
        "-X ALGATE-FORWARD",
        "COMMIT",
    ]
    assert rules._transaction("other", now, {}) == ""


def test_applying_again_moves_our_jump_and_leaves_what_leads_to_us_from_elsewhere() -> None:
    wanted = rules._parse("*filter\n:ALGATE-FORWARD - [0:0]\n-I FORWARD 1 -j ALGATE-FORWARD\nCOMMIT\n")
    assert rules._transaction("algate", rules._parse(SAVED), wanted).splitlines() == [
        "*filter",
        ":ALGATE-FORWARD - [0:0]",
        '-D FORWARD -m comment --comment "algate: chain was absent" -j ALGATE-FORWARD',
        "-I FORWARD 1 -j ALGATE-FORWARD",
        "COMMIT",
    ]


def test_what_was_there_is_put_back_at_its_place() -> None:
    assert rules._own_part("algate", rules._parse(SAVED))["filter"].rules == [
        '-I FORWARD 2 -m comment --comment "algate: chain was absent" -j ALGATE-FORWARD',
        "-A ALGATE-FORWARD -m connmark --mark 0x1/0x1 -j ACCEPT",
    ]


def test_the_failing_line_is_shown() -> None:
    said = programs._explain(
        "iptables-restore v1.8.9 (nf_tables): \nline 2: RULE_APPEND failed\n", "*nat\n-A X\nCOMMIT\n"
    )
    assert said == "iptables-restore v1.8.9 (nf_tables): line 2: RULE_APPEND failed (that line is: -A X)"


@pytest.mark.parametrize(
    ("hook", "marks", "clears"), [("PREROUTING", "before", "behind"), ("FORWARD", "measure", "measured")]
)
def test_as_nft_text_the_packet_path_stands_between_the_chains_that_mark_for_it(
    hook: str, marks: str, clears: str
) -> None:
    """At -155 it came before the marks of -151: no rate had an effect, and early media did not wait."""
    table = files("iptables").joinpath("algate.nft").read_text()

    def priority(text: str) -> int:
        found = re.search(r"priority (-?\d+);", text)
        assert found is not None
        return int(found[1])

    first, last = (priority(table.partition(f"\tchain {name} {{")[2]) for name in (marks, clears))
    assert first < priority(_HOOKS["mangle", hook]) < last


def test_no_rule_looks_for_a_key_in_a_map_without_taking_its_data() -> None:
    """Linux allows that since 6.5. On Debian 12's 6.1 the table was refused, and the gateway did not start."""
    for name in ("algate.nft", "aside.nft"):
        table = files("iptables").joinpath(name).read_text()
        maps = set(re.findall(r"^\tmap (\w+) \{", table, re.MULTILINE))
        rules = [line for line in table.splitlines() if line.startswith("\t\t")]
        looked_for = {
            found for line in rules for found in re.findall(r"(?<! map )(?<!update )(?<!delete )@(\w+)", " " + line)
        }
        assert looked_for.isdisjoint(maps)


def test_only_ports_of_modules_wait_for_their_server() -> None:
    """A SYN to another port that is redirected does not pass through a process."""
    text = BASIC + '[transparent]\nports = [80]\n[alg.sip]\nmode = "off"'
    (waits,) = [line for line in lines(text) if "SYN" in line]
    assert " --dports 21,554,6667,8554 " in waits
    assert any(" --dports 21,80,554,6667,8554 " in line and "REDIRECT" in line for line in lines(text))


@pytest.mark.parametrize("word", ["via = ['far']", "chain = ['far']"])
def test_no_server_is_asked_where_an_upstream_may_reach_it(word: str) -> None:
    """This host may not be allowed to reach it: a refusal would say nothing of the server."""
    asked = "--queue-num 65458 --queue-bypass"
    plain = BASIC + '[process]\nrun_dir = "/run/algate"\n'
    upstream = "[[upstream]]\nname = 'far'\nkind = 'socks5'\naddress = '198.51.100.7:1080'\n"
    rule = f"[[rule]]\naction = 'permit'\n{word}\n"
    assert any(asked in line and "--tcp-flags" in line for line in lines(plain))
    assert not any("--tcp-flags" in line for line in lines(plain + upstream + rule))
