"""The bundled iptables rules: rendered from `iptables/ipv4.rules` and `ipv6.rules`, applied and removed.

The rules are in chains of their own, named after the instance; the built-in chains get one jump each. Nothing is
remembered in a file: our rules are found in the output of iptables-save, and a comment on our own jump says that a
table did not exist before, so that `remove` can restore everything.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import msgspec

from gateway.broker.marks import ADMITTED, PASSING, UNREAD
from gateway.config.schema import SSDP_PORT, Config
from gateway.host.privilege import is_privileged
from gateway.host.programs import run_program
from gateway.model.errors import AlgateError

Family = Literal["ipv4", "ipv6"]
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

_PREFIX: dict[Family, str] = {"ipv4": "iptables", "ipv6": "ip6tables"}
_NFT_FAMILY: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}
_BUILTIN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_FURTHER = ("FROM", "TO")  # chains of ours to which only others of ours jump: from the inside, to the inside
_PORTS_PER_RULE = 15  # the multiport match takes no more
_TABLE_ABSENT = "algate: table was absent"
_CHAIN_ABSENT = "algate: chain was absent"


@dataclass(slots=True)
class _Table:
    """Chains (names) and rules (iptables-save lines, in order) of one table."""

    chains: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)


_Tables = dict[str, _Table]

# --- what is wanted -------------------------------------------------------------------------------------------------


def render(config: Config, family: Family) -> str | None:
    """Return the rules of this configuration for one family, as input for `iptables-restore --noflush`.

    None if no inside network belongs to the family. Raises AlgateError if there is nothing to redirect at all.
    """
    interfaces = list(config.network.inside_interfaces)
    if not interfaces:
        raise AlgateError("network.inside_interfaces is empty: nothing to redirect")
    version = 4 if family == "ipv4" else 6
    inside = [str(network) for network in config.inside_networks if network.version == version]
    if not inside:
        return None
    ports = [str(port) for port in sorted({*config.module_ports(), *config.transparent.ports})]
    # An upstream may reach a server that this host cannot: nothing is asked where connections may go through one.
    direct = not any(entry.via or entry.chain for entry in config.rule)
    tried = [str(port) for port in config.module_ports()] if config.packets_wanted and direct else []
    sockets = {i: o for i, o in config.published_datagrams.items() if o.version == version}
    published = [endpoint for endpoint in config.published if endpoint.version == version]
    values = {
        "chain": [config.instance.upper()],
        "interface": interfaces,
        "inside": inside,
        "ports": [",".join(ports[i : i + _PORTS_PER_RULE]) for i in range(0, len(ports), _PORTS_PER_RULE)],
        "transparent": [str(config.transparent.port)],
        "socks": [str(port) for port in _socks_ports(config, version)],
        "relay": ["{}:{}".format(*config.pinhole_ports)] if _socks_ports(config, version) else [],
        "masquerade": inside if family in config.network.masquerade else [],
        "published": [f"-d {e.host} -p tcp -m tcp --dport {e.port}" for e in published],
        "redirected": [f"--ctproto tcp --ctorigdst {e.host} --ctorigdstport {e.port}" for e in published],
        "forwarded": [
            f"-d {o.host} -p udp -m udp --dport {o.port} -j DNAT --to-destination {i}" for i, o in sockets.items()
        ],
        "sender": [f"-s {i.host} -p udp -m udp --sport {i.port}" for i in sockets],
        "returned": [f"-s {i.host} -p udp -m udp --sport {i.port} -j SNAT --to-source {o}" for i, o in sockets.items()],
        "open": [f"--ctproto udp --ctorigdst {o.host} --ctorigdstport {o.port}" for o in sockets.values()],
        "asked": [str(port) for port in config.portmap_ports["udp"]],
        "control": [str(port) for port in config.portmap_ports["tcp"]],
        "ssdp": [str(port) for port in config.portmap_ports["udp"] if port == SSDP_PORT],
        "unread": [f"{PASSING:#x}/{PASSING:#x}"],
        "media": [f"{UNREAD:#x}/{UNREAD:#x}"],
        "admitted": [f"{ADMITTED:#x}/{ADMITTED:#x}"],
        "packets": [config.instance.upper()] if config.packets_wanted else [],
        "udp": [str(port) for port in config.module_ports("udp")] if config.packets_wanted else [],
        "read": ["{}:{}".format(*config.read_ports)] if config.read_ports else [],
        "tried": [",".join(tried[i : i + _PORTS_PER_RULE]) for i in range(0, len(tried), _PORTS_PER_RULE)],
        "queue": [str(config.queue)],
        "early": [str(config.early_queue)],
    }
    template = files("iptables").joinpath(f"{family}.rules").read_text(encoding="ascii")
    lines = (line for line in template.splitlines() if not line.startswith("#"))
    text = "\n".join(itertools.chain.from_iterable(_fill(line, values) for line in lines)) + "\n"
    return re.sub(r"^\*.*\nCOMMIT\n", "", text, flags=re.MULTILINE)  # loading an empty table would make it


def _socks_ports(config: Config, version: int) -> list[int]:
    """Return the ports at which SOCKS listens for hosts other than this one."""
    endpoints = config.socks_listeners.values()
    return sorted({e.port for e in endpoints if e.version == version and not ipaddress.ip_address(e.host).is_loopback})


def _fill(line: str, values: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Return the line once for each combination of the values of the names in it."""
    names = string.Template(line).get_identifiers()
    for combination in itertools.product(*(values[name] for name in names)):
        yield string.Template(line).substitute(dict(zip(names, combination, strict=True)))


# --- what is there --------------------------------------------------------------------------------------------------


def _parse(text: str) -> _Tables:
    """Parse the output of iptables-save, or of `render`."""
    tables: _Tables = {}
    table = _Table()
    for line in text.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), _Table())
        elif line.startswith(":"):
            table.chains.append(line[1:].split()[0])
        elif line.startswith("-"):
            table.rules.append(line)
    return tables


def _own_chains(instance: str, table: _Table) -> list[str]:
    own = re.compile(rf"{re.escape(instance.upper())}-(?:{'|'.join((*_BUILTIN, *_FURTHER))})")
    return [chain for chain in table.chains if own.fullmatch(chain)]


def _is_jump(rule: str, own: Sequence[str]) -> bool:
    """Whether the rule is a jump from another chain into one of ours."""
    words = rule.split()
    return words[-1] in own and words[-2] in ("-j", "-g") and words[1] not in own


def _own_part(instance: str, saved: _Tables) -> _Tables:
    """Return our chains, their rules, and our jumps with their positions, which restore the state that was saved."""
    part: _Tables = {}
    for name, table in saved.items():
        own = _own_chains(instance, table)
        if not own:
            continue
        mine = part.setdefault(name, _Table(own))
        position: dict[str, int] = {}
        for rule in table.rules:
            chain = rule.split()[1]
            position[chain] = position.get(chain, 0) + 1
            if chain in own:
                mine.rules.append(rule)
            elif _is_jump(rule, own) and chain in _BUILTIN:
                mine.rules.append(rule.replace(f"-A {chain}", f"-I {chain} {position[chain]}", 1))
    return part


def _transaction(instance: str, now: _Tables, wanted: _Tables) -> str:
    """Return input for iptables-restore that changes our part of `now` into `wanted`."""
    lines: list[str] = []
    for name in [*wanted, *(name for name in now if name not in wanted)]:
        table, goal = now.get(name, _Table()), wanted.get(name, _Table())
        existing = _own_chains(instance, table)
        if not existing and not goal.chains:
            continue
        gone = [chain for chain in existing if chain not in goal.chains]
        lines.append(f"*{name}")
        # A declaration makes the chain, or flushes it if it is there.
        lines += [f":{chain} - [0:0]" for chain in dict.fromkeys([*goal.chains, *gone])]
        for rule in table.rules:
            # Whoever else leads into a chain of ours keeps doing so, unless the chain goes.
            if _is_jump(rule, existing) and (rule.split()[1] in _BUILTIN or rule.split()[-1] in gone):
                lines.append(rule.replace("-A ", "-D ", 1))
        lines += goal.rules
        lines += [f"-X {chain}" for chain in gone]
        lines.append("COMMIT")
    return "".join(line + "\n" for line in lines)


# --- the programs ---------------------------------------------------------------------------------------------------


class _Host:
    """Our rules of one family on this host."""

    def __init__(self, family: Family, instance: str) -> None:
        self.instance = instance
        self._prefix = _PREFIX[family]
        self._nft_family = _NFT_FAMILY[family]
        # With iptables-legacy a table comes with its kernel module and cannot be made to go away again.
        self._is_nft = "nf_tables" in run_program([f"{self._prefix}-restore", "--version"])

    def read(self) -> _Tables:
        return _parse(run_program([f"{self._prefix}-save"]))

    def test(self, wanted: _Tables) -> None:
        """Raise AlgateError if `wanted` would not load. Changes nothing."""
        self._restore(_transaction(self.instance, self.read(), wanted), "--test")

    def load(self, wanted: _Tables) -> None:
        """Replace our rules by `wanted`, in one transaction. Raises AlgateError if it fails; then nothing has
        changed."""
        now = self.read()
        self._restore(_transaction(self.instance, now, wanted))
        self._drop_what_was_absent(_own_part(self.instance, now), wanted)

    def marked(self, wanted: _Tables) -> _Tables:
        """Return `wanted`, with a comment on each jump that makes a table or built-in chain come into being."""
        if not self._is_nft:
            return wanted
        now = self.read()
        own = _own_part(self.instance, now)
        present = self._chains()
        return {
            name: _Table(table.chains, [self._mark(name, rule, now, own, present) for rule in table.rules])
            for name, table in wanted.items()
        }

    def _mark(self, table: str, rule: str, now: _Tables, own: _Tables, present: set[tuple[str, str]]) -> str:
        if not rule.startswith("-I "):
            return rule
        chain = rule.split()[1]
        before = [mine for mine in own.get(table, _Table()).rules if mine.startswith(f"-I {chain} ")]
        if before:
            mark = next((mark for mark in (_TABLE_ABSENT, _CHAIN_ABSENT) if mark in before[0]), None)
        elif table not in now or any(_TABLE_ABSENT in other for other in now[table].rules):
            mark = _TABLE_ABSENT
        else:
            # Of another instance too: the last instance to go leaves it as it was before the first.
            made = any(_CHAIN_ABSENT in other and other.split()[1] == chain for other in now[table].rules)
            mark = _CHAIN_ABSENT if made or (table, chain) not in present else None
        return rule.replace(" -j ", f' -m comment --comment "{mark}" -j ', 1) if mark else rule

    def _restore(self, script: str, *options: str) -> None:
        if script:
            run_program([f"{self._prefix}-restore", "--noflush", "--wait", "10", *options], script)

    def _chains(self) -> set[tuple[str, str]]:
        found = self._nft_objects("list", "chains", self._nft_family)
        return {(chain["table"], chain["name"]) for kind, chain in found if kind == "chain"}

    def _nft_objects(self, *command: str) -> list[tuple[str, dict[str, Any]]]:
        entries = json.loads(run_program(["nft", "-j", *command]))["nftables"]
        return [(kind, value) for entry in entries for kind, value in entry.items() if kind != "metainfo"]

    def _drop_what_was_absent(self, before: _Tables, wanted: _Tables) -> None:
        """Delete the built-in chains and tables that came with our jumps, if nothing else is in them."""
        for name, table in before.items():
            kept = {rule.split()[1] for rule in wanted.get(name, _Table()).rules if rule.startswith("-I ")}
            gone = {rule.split()[1]: rule for rule in table.rules if rule.startswith("-I ")}
            marked = [chain for chain, rule in gone.items() if chain not in kept and "was absent" in rule]
            if not marked:
                continue
            where = (self._nft_family, name)
            objects = self._nft_objects("list", "table", *where)
            used = {value["chain"] for kind, value in objects if kind == "rule"}
            accepting = {
                value["name"] for kind, value in objects if kind == "chain" and value.get("policy") == "accept"
            }
            empty = [chain for chain in marked if chain in accepting - used]
            if empty:
                run_program(["nft", "-f", "-"], "".join(f"delete chain {' '.join(where)} {chain}\n" for chain in empty))
            others = [value for kind, value in objects if kind != "table" and value.get("name") not in empty]
            if not others and not kept and any(_TABLE_ABSENT in rule for rule in gone.values()):
                run_program(["nft", "delete", "table", *where])


# --- apply and remove -----------------------------------------------------------------------------------------------


def apply(config: Config) -> None:
    """Load the rules of this configuration, in place of those that this instance has loaded before.

    All or nothing: when one family fails, the other is restored. Raises AlgateError.
    """
    wanted = {family: _parse(render(config, family) or "") for family in FAMILIES}
    _require_root()
    hosts = _hosts(config.instance, [family for family in FAMILIES if wanted[family]])
    goals = {family: host.marked(wanted[family]) for family, host in hosts.items()}
    for family, host in hosts.items():
        host.test(goals[family])
    before = {family: _own_part(config.instance, host.read()) for family, host in hosts.items()}
    tried: list[Family] = []
    try:
        for family, host in hosts.items():
            tried.append(family)
            host.load(goals[family])
    except AlgateError as error:
        for family in reversed(tried):
            try:
                hosts[family].load(before[family])
            except AlgateError as worse:
                error.add_note(f"putting back the {family} rules failed too: {worse}")
        raise


def applied(config: Config) -> bool:
    """Whether this instance's rules are applied. Raises AlgateError."""
    return any(_own_part(config.instance, host.read()) for host in _hosts(config.instance, []).values())


class RulesSnapshot:
    """The rules of an instance on this host, as iptables-save writes them: what `apply` has made, once that is seen."""

    def __init__(self, there: Mapping[Family, _Tables]) -> None:
        self._chains = {
            (family, name, chain): rules
            for family, tables in there.items()
            for name, table in tables.items()
            for chain, rules in _contents(table).items()
        }

    def differences(self, now: RulesSnapshot) -> list[str]:
        """Return the chains whose rules are not those of this snapshot."""
        return [
            f"{_PREFIX[family]} -t {name} {chain}"
            for (family, name, chain), rules in self._chains.items()
            if now._chains.get((family, name, chain)) != rules
        ]


def missing(config: Config, before: RulesSnapshot | None = None) -> tuple[list[str] | None, RulesSnapshot]:
    """Describe which tables and chains of the rules are not as `apply` makes them; None if no rules are applied. What
    `apply` makes is known by the number of rules, and by the contents of `before`, a snapshot of complete rules,
    because each version of iptables writes them in its own way. Returns what is there, too. Raises AlgateError."""
    wanted = {family: _parse(render(config, family) or "") for family in FAMILIES}
    hosts = _hosts(config.instance, [family for family in FAMILIES if wanted[family]])
    there = {family: _own_part(config.instance, host.read()) for family, host in hosts.items()}
    now = RulesSnapshot(there)
    if not any(there.values()):
        return None, now
    found = []
    for family, tables in wanted.items():
        for name, table in tables.items():
            own = _shape(there.get(family, {}).get(name, _Table()))
            shape = _shape(table)
            found += [f"{_PREFIX[family]} -t {name} {chain}" for chain in shape if own.get(chain) != shape[chain]]
    return found or (before.differences(now) if before is not None else []), now


def _contents(table: _Table) -> dict[str, tuple[str, ...]]:
    """Return the rules of each of our chains, and the jumps of each built-in one, without their positions."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(table.chains, ())
    for rule in table.rules:
        text = re.sub(r'-m comment --comment "[^"]*" ', "", re.sub(r"^-I (\S+) \d+ ", r"-I \1 ", rule))
        chain = text.split()[1]
        found[chain] = (*found.get(chain, ()), text)
    return found


def _shape(table: _Table) -> dict[str, int]:
    """Return how many rules each of our chains has, and how many jumps lead from a built-in chain to which of ours."""
    shape = dict.fromkeys(table.chains, 0)
    for rule in table.rules:
        words = rule.split()
        name = words[1] if words[0] == "-A" else f"{words[1]} -j {words[-1]}"
        shape[name] = shape.get(name, 0) + 1
    return shape


def stop_redirecting(config: Config) -> None:
    """If the rules are applied, redirect no new connection to the gateway; connections under way pass as before. Raises
    AlgateError."""
    if config.transparent_enabled and applied(config):
        transparent = msgspec.structs.replace(config.transparent, ports=())
        sockets = tuple(entry for entry in config.publish if entry.protocol == "udp")  # the kernel's alone
        apply(msgspec.structs.replace(config, alg={}, transparent=transparent, publish=sockets))


def remove(config: Config) -> None:
    """Remove everything that `apply` made for this instance, if there is anything. Raises AlgateError."""
    _require_root()
    for host in _hosts(config.instance, []).values():
        host.load({})


def _hosts(instance: str, needed: Sequence[Family]) -> dict[Family, _Host]:
    """Return the families that are needed, and those that this host supports anyway."""
    hosts: dict[Family, _Host] = {}
    for family in FAMILIES:
        try:
            hosts[family] = _Host(family, instance)
        except AlgateError:
            if family in needed:
                raise
    return hosts


def _require_root() -> None:
    if not is_privileged():
        raise AlgateError("iptables rules can only be changed by root")
