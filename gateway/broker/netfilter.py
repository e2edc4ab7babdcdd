"""The only module that talks to nf_tables: the broker's table and its elements.

pyroute2's message classes encode and decode, except for what happens many times in a second: adding and deleting
elements, and reading all of them (decision 0036).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.resources
import os
import re
import string
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.broker import marks
from gateway.broker.element_messages import (
    NFGENMSG,
    NFPROTO_INET,
    ElementMessages,
    counter_in,
    elements_in,
    glances,
)
from gateway.broker.elements import COUNTED, FILLED_IN, KEYS, ONCE, SETS, Element, with_keys
from gateway.broker.messages import (
    NFNL_SUBSYS_NFTABLES,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    nft_table_msg,
)
from gateway.broker.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSGHDR,
    NetfilterError,
    Netlink,
    attribute,
    attribute_map,
    decoded,
    error_of,
    sequence_of,
)

NFT_DEADLINE = 60.0
"""Seconds that nft may take: on a slow router that boots, or where another program changes large rulesets, it takes ten
or more."""

SIGN_OF_LIFE = 1.0  # seconds between two of them while nft is waited for
OUTSIDE = 10
ELEMENTS = 512
"""Elements in one transaction, which the kernel takes from a buffer of 208 KiB (net.core.wmem_default) at once: at most
144 bytes each (and of two at most one more, by `with_keys`), and 131 for the comment of each lease, which has two
elements at least."""

TOGETHER = 128
"""The most elements in one message: the attribute that holds them must not be longer than 64 KiB."""

BATCH = 64
"""Questions that are asked at once."""

_NF_TABLES = NFNL_SUBSYS_NFTABLES << 8
_GETTABLE, _DELTABLE = _NF_TABLES | NFT_MSG_GETTABLE, _NF_TABLES | NFT_MSG_DELTABLE
NFT_MSG_GETFLOWTABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 23, 2, 4
NFT_TABLE_F_DORMANT, NFTA_SET_ELEM_LIST_ELEMENTS = 0x1, 3
_BODY = NLMSGHDR.size + len(NFGENMSG)
_ASIDE_OBJECTS = 2  # of iptables/aside.nft: a chain and a helper
_GETFLOWTABLE = _NF_TABLES | NFT_MSG_GETFLOWTABLE
_GETOBJ, NFT_OBJECT_COUNTER = _NF_TABLES | 19, 1  # NFT_MSG_GETOBJ
NFTA_OBJ_TABLE, NFTA_OBJ_NAME, NFTA_OBJ_TYPE, NFTA_OBJ_DATA = 1, 2, 3, 4
_GETRULE, NFTA_RULE_TABLE = _NF_TABLES | NFT_MSG_GETRULE, 1
_GETSETELEM = _NF_TABLES | NFT_MSG_GETSETELEM
_NEWSETELEM, _DELSETELEM = _NF_TABLES | NFT_MSG_NEWSETELEM, _NF_TABLES | NFT_MSG_DELSETELEM
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
_BATCH_BODY = struct.pack(">BBH", 0, 0, NFNL_SUBSYS_NFTABLES)
_FIND_NFT = {**os.environ, "PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}


class TableGoneError(NetfilterError):
    """The table does not exist: another program flushed the ruleset."""


class ForeignTableError(NetfilterError):
    """There is a table of our name that algate did not create."""


class Change:
    """Elements to delete (those that exist), then elements to add (all or none): the whole change of a lease."""

    __slots__ = ("add", "delete")

    def __init__(self, delete: tuple[Element, ...] = (), add: tuple[Element, ...] = ()) -> None:
        self.delete = delete
        self.add = add


def _comment_of(table: Any) -> str:
    return str(table.get_attr("NFTA_TABLE_USERDATA") or "")


def _shape_of(text: str) -> tuple[int, int]:
    """Count the chains, sets and other objects of a table in nft's syntax, and its rules."""
    objects = rules = 0
    within = ""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        depth = len(line) - len(line.lstrip("\t"))
        if depth == 1 and words[-1] in ("{", "}") and words[0] != "}":
            within = words[0]
            objects += 1
        elif depth == 2 and within == "chain" and words[0] != "type":
            rules += 1
    return objects, rules


def _hash_of(rules: Sequence[Mapping[int, bytes]]) -> int:
    """Return a number that another program's change of a rule changes; rules that are filled in later do not count."""
    kept = (rule for rule in rules if rule.get(NFTA_RULE_CHAIN, b"").rstrip(b"\0") not in (b"rates", b"aside"))
    return hash(tuple((rule.get(NFTA_RULE_CHAIN), rule.get(NFTA_RULE_EXPRESSIONS)) for rule in kept))


def _filled_in(script: str) -> int:
    """Count the rules that a script adds."""
    return sum(line.startswith("add rule ") for line in script.splitlines())


@dataclass(frozen=True, slots=True)
class Meter:
    """A rate limit for each source of datagrams for modules.

    `ports`: those of servers; `read`: lowest and highest public port of conversations that modules read; `inside`: the
    networks of clients. `rate`: datagrams a second of a client, half as many at once; a host outside, which answers
    many clients, may send `OUTSIDE` times as many.
    """

    ports: tuple[int, ...] = ()
    read: tuple[int, int] | None = None
    inside: tuple[str, ...] = ()
    rate: float = 1.0

    def script(self, table: str) -> str:
        """Return the script in nft's syntax that fills the sets and the chain."""
        ports = [str(port) for port in self.ports]
        read = [f"{self.read[0]}-{self.read[1]}"] if self.read and ports else []
        lines = [f"flush chain inet {table} rates"]
        for name, elements in (
            ("server_ports", ports),
            ("module_ports", [*ports, *read]),
            ("inside4", [network for network in self.inside if ":" not in network]),
            ("inside6", [network for network in self.inside if ":" in network]),
        ):
            lines.append(f"flush set inet {table} {name}")
            if elements:
                lines.append(f"add element inet {table} {name} {{ {', '.join(elements)} }}")
        for family, word in ((4, "ip"), (6, "ip6")):
            lines.append(self._rule(table, family, word, f"{word} saddr @inside{family}", self.rate) + " return")
            lines.append(f"add rule inet {table} rates {word} saddr @inside{family} return")
            lines.append(self._rule(table, family, word, "", self.rate * OUTSIDE))
        return "".join(line + "\n" for line in lines)

    @staticmethod
    def _rule(table: str, family: int, word: str, match: str, rate: float) -> str:
        limit = f"limit rate over {max(1, round(rate))}/second burst {max(5, round(rate / 2))} packets"
        return (
            f"add rule inet {table} rates {match} update @sources{family} {{ {word} saddr {limit} }} "
            f"meta mark set meta mark or {marks.PASSING:#x} counter name unread"
        )


def _run_nft(arguments: list[str], text: str, deadline: float, busy: Callable[[], None]) -> None:
    """Run nft. `busy` is called as long as that takes. Raises NetfilterError."""
    piped = subprocess.PIPE
    until = time.monotonic() + deadline
    words: str | None = text
    try:
        with subprocess.Popen(
            ["nft", *arguments], stdin=piped, stdout=piped, stderr=piped, text=True, env=_FIND_NFT
        ) as process:
            while True:
                try:
                    _, errors = process.communicate(words, min(deadline, SIGN_OF_LIFE))
                    break
                except subprocess.TimeoutExpired:
                    words = None  # it has been given
                    if time.monotonic() >= until:
                        process.kill()
                        raise
                    busy()
    except subprocess.TimeoutExpired:
        raise NetfilterError(errno.ETIMEDOUT, "nft") from None
    except OSError as error:
        raise NetfilterError(error.errno or errno.EIO, "nft cannot be run") from error
    if process.returncode != 0:
        raise NetfilterError(errno.EINVAL, f"nft: {errors.strip()[:500]}")


_Step = tuple[int, bool, Element]
"""The index of a change, whether an element is added or deleted for it, and the element."""


def _groups(steps: Iterable[_Step]) -> list[list[_Step]]:
    """Divide steps into messages: the kernel takes several elements of a set at once in half the time. Within a set the
    order stays. What packets use up is deleted alone, because one that is gone would be an error of all."""
    groups: list[list[_Step]] = []
    last: dict[str, list[_Step]] = {}
    for step in steps:
        _, add, element = step
        group = last.get(element.set)
        if group is None or group[0][1] != add or len(group) == TOGETHER or (not add and element.set in ONCE):
            group = last[element.set] = []
            groups.append(group)
        group.append(step)
    return groups


def _batches(changes: Sequence[Change]) -> Iterator[range]:
    """Divide changes into transactions of at most `ELEMENTS` elements; a change is never divided."""
    start = size = 0
    for at, change in enumerate(changes):
        more = len(change.delete) + len(change.add)
        if size and size + more > ELEMENTS:
            yield range(start, at)
            start, size = at, 0
        size += more
    if size:
        yield range(start, len(changes))


class _Form(NamedTuple):
    """A form of the table. `keyed`: its rules look for the keys of some maps in sets, as they have to before Linux 6.5
    (0036). `mark`: its comment; `shape`: how many objects and rules it has."""

    keyed: bool
    mark: str
    rules: str
    shape: tuple[int, int]


def _form(table: str, source: str, keyed: bool) -> _Form:
    """Return a form of iptables/algate.nft for a table of this name."""
    mark = "algate " + hashlib.sha256(source.encode()).hexdigest()[:16]
    if not keyed:
        mark += " maps"
        for name, keys in KEYS.items():
            source = re.sub(rf"@{keys}\b", f"@{name}", source)
    rules = string.Template(source).substitute(
        table=table,
        comment=mark,
        pinhole=hex(marks.PINHOLE),
        admitted=hex(marks.ADMITTED),
        media=hex(marks.MEDIA),
        entered=hex(marks.MEDIA | marks.ADMITTED),
        unread=hex(marks.UNREAD),
        passing=hex(marks.PASSING),
        passed=hex(marks.PASSING ^ 0xFFFFFFFF),
        probe=hex(marks.PROBE),
        spoken="{}-{}".format(*marks.SPOKEN),
    )
    return _Form(keyed, mark, rules, _shape_of(rules))


def _report_nothing() -> None:
    """The default of `busy`."""


class Netfilter:
    """The nft table `name`: its fixed part and its elements. Must not be used by several threads, except for
    `counters`. `busy` is called again and again while nft is waited for."""

    def __init__(self, name: str, busy: Callable[[], None] = _report_nothing) -> None:
        self.name = name
        self._busy = busy
        self._rates = ""
        source = importlib.resources.files("iptables").joinpath("algate.nft").read_text()
        self._forms: tuple[_Form, ...] = (_form(name, source, keyed=False), _form(name, source, keyed=True))
        self._form = self._forms[-1]  # any kernel's, unless `load` finds that this one is good for the other
        self._netlink = Netlink()
        self._messages = ElementMessages(name)
        self._aside: str | None = None  # what keeps our flows out of flowtables
        self._rules: int | None = None  # a hash of the rules as they have to be
        self._filled: tuple[bytes, ...] | None = None  # the elements of the sets that `measure` fills

    @property
    def port(self) -> int:
        """The netlink port from which changes of elements are sent."""
        return self._netlink.port

    # --- the table --------------------------------------------------------------------------------------------------

    def load(self) -> bool:
        """Create the table, unless it exists as we would create it; then it stays, with its elements.

        Returns whether it was created. Raises ForeignTableError and NetfilterError.
        """
        table = self._table()
        there = None if table is None else _comment_of(table)
        self._aside = None
        for form in self._forms:
            if table is not None and there == form.mark and self._has_all(table, read_back=True):
                self._form = form
                if self._rates:
                    self._nft(self._rates)
                self._remember()
                return False
        if there is not None and not there.startswith("algate "):
            raise ForeignTableError(errno.EEXIST, f"table inet {self.name} is not ours")
        replace = f"delete table inet {self.name}\n" if there is not None else ""
        for form in self._forms:
            try:
                self._nft(replace + form.rules + self._rates)
            except NetfilterError as error:
                if form.keyed or error.code != errno.EINVAL:
                    raise
            else:
                self._form = form
                break
        if self._form.keyed:
            self._forms = (self._form,)  # it is this kernel's from now on
        self._rules = None
        self._remember()
        return True

    def _remember(self) -> None:
        """Note what the kernel says of the table, which is as it has to be."""
        self._rules = _hash_of(self._rules_there())
        self._filled = tuple(map(self._elements_there, FILLED_IN))

    def _rules_there(self) -> list[dict[int, bytes]]:
        body = NFGENMSG + attribute(NFTA_RULE_TABLE, self.name.encode() + b"\0")
        answers = self._request(self._netlink.message(_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, body))
        return [attribute_map(answer, _BODY) for answer in answers]

    def _elements_there(self, name: str) -> bytes:
        answers = self._request(self._question(self._messages.all_of(name), NLM_F_DUMP))
        return b"".join(attribute_map(answer, _BODY).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"") for answer in answers)

    def refill(self) -> bool:
        """Fill the sets of `measure` again, if another program has deleted elements of them. Returns whether one has.
        Raises NetfilterError."""
        if not self._rates or self._filled == tuple(map(self._elements_there, FILLED_IN)):
            return False
        self._nft(self._rates)
        self._filled = tuple(map(self._elements_there, FILLED_IN))
        return True

    def has_flowtables(self) -> bool:
        """Whether this host has flowtables, of any program."""
        body = bytes(len(NFGENMSG))  # of any family
        return bool(self._request(self._netlink.message(_GETFLOWTABLE, NLM_F_REQUEST | NLM_F_DUMP, body)))

    def keep_aside(self, ports: Sequence[int]) -> None:
        """Keep connections to these UDP ports, and conversations, out of flowtables. Raises NetfilterError if the
        kernel cannot do that; then nothing has changed."""
        text = self._aside_text(ports)
        if text != self._aside:
            chain = f"inet {self.name} aside"
            replace = f"flush chain {chain}\ndelete chain {chain}\n" if self._aside is not None else ""
            self._nft(replace + text)
            self._aside = text

    def _aside_text(self, ports: Sequence[int]) -> str:
        lines = importlib.resources.files("iptables").joinpath("aside.nft").read_text().splitlines(keepends=True)
        return "".join(
            string.Template(line).substitute(table=self.name, port=port)
            for line in lines
            if not line.startswith("#")
            for port in (ports if "$port" in line else ("",))
        )

    def is_whole(self) -> bool:
        """Whether the table exists with all its chains, sets and rules. Elements are not checked."""
        table = self._table()
        return (
            table is not None
            and _comment_of(table) in [form.mark for form in self._forms]
            and self._has_all(table, self._rates == "")
        )

    def _has_all(self, table: Any, read_back: bool) -> bool:
        """Whether a table has everything that it must have. `read_back`: what was filled in later is not checked,
        because another process may have done that."""
        if int(table.get_attr("NFTA_TABLE_FLAGS") or 0) & NFT_TABLE_F_DORMANT:
            return False
        rules = self._rules_there()
        chains = Counter(rule.get(NFTA_RULE_CHAIN, b"").rstrip(b"\0") for rule in rules)
        rates, aside = chains.pop(b"rates", 0), chains.pop(b"aside", 0)
        objects = int(table.get_attr("NFTA_TABLE_USE") or 0) - (_ASIDE_OBJECTS if aside else 0)
        if (objects, chains.total()) != self._form.shape or self._rules not in (None, _hash_of(rules)):
            return False
        if read_back:
            self._aside = "" if aside else None
            return True
        return rates == _filled_in(self._rates) and aside == (_shape_of(self._aside)[1] if self._aside else 0)

    def measure(self, meter: Meter, now: bool = True) -> None:
        """Set how fast a host may send datagrams for modules. Those beyond are marked, and pass unread. Takes effect
        with the next `load`, or at once (`now`; raises NetfilterError)."""
        self._rates = meter.script(self.name)
        if now:
            self._nft(self._rates)
            self._filled = tuple(map(self._elements_there, FILLED_IN))

    def unload(self) -> None:
        """Delete the table, if there is one."""
        errors = self._transaction([self._netlink.encoded(self._named(), _DELTABLE, NLM_F_REQUEST)])
        if errors and errors[0].code != errno.ENOENT:
            raise errors[0]

    def counters(self) -> dict[str, dict[str, int]]:
        """Return packets and bytes of the named counters: admitted, data, late, unread, early."""
        body = NFGENMSG + attribute(NFTA_OBJ_TABLE, self.name.encode() + b"\0")
        body += attribute(NFTA_OBJ_TYPE, struct.pack(">I", NFT_OBJECT_COUNTER))
        found: dict[str, dict[str, int]] = {}
        with contextlib.closing(Netlink()) as netlink:  # of whichever thread this is
            for answer in netlink.request(netlink.message(_GETOBJ, NLM_F_REQUEST | NLM_F_DUMP, body)):
                what = attribute_map(answer, _BODY)
                packets, total = counter_in(what.get(NFTA_OBJ_DATA, b""))
                name = what.get(NFTA_OBJ_NAME, b"").rstrip(b"\0").decode()
                found[name] = {"packets": packets, "bytes": total}
        return found

    def _table(self) -> Any | None:
        """Return the kernel's description of the table, or None if there is no table."""
        try:
            (table,) = self._ask(self._named(), _GETTABLE, NLM_F_ACK)
        except TableGoneError:
            return None
        return table

    def _named(self) -> Any:
        message = nft_table_msg()
        message["nfgen_family"] = NFPROTO_INET
        message["attrs"] = [("NFTA_TABLE_NAME", self.name)]
        return message

    def _nft(self, text: str) -> None:
        """Have nft do what `text` says."""
        _run_nft(["-f", "-"], text, NFT_DEADLINE, self._busy)

    # --- its elements -----------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> dict[int, NetfilterError]:
        """Carry out changes, in as few transactions as possible. Returns those that were refused: index to error.

        The kernel names every message that it refuses, and then does nothing; so what is in those is left out, and the
        others are tried again. Raises TableGoneError, or NetfilterError if it is not known what was done.
        """
        refused: dict[int, NetfilterError] = {}
        for batch in _batches(changes):
            groups = _groups(
                (index, add, element)
                for index in batch
                for add, elements in ((False, changes[index].delete), (True, changes[index].add))
                for element in (with_keys(elements) if self._form.keyed else elements)
            )
            while groups and (errors := self._transaction([self._change(group) for group in groups])):
                if any(len(groups[at]) > 1 for at in errors):
                    groups = [[step] for group in groups for step in group]  # the error names the group only
                    continue
                wrong: dict[int, NetfilterError] = {}
                absent = set()
                for at, error in errors.items():
                    ((index, add, _),) = groups[at]
                    if not add:
                        absent.add(at)  # gone already: used up, or its time was over
                    elif isinstance(error, TableGoneError):
                        raise error
                    else:
                        wrong[index] = error
                if wrong:  # what is absent may be what one of these has deleted: that is for the next round to say
                    refused |= wrong
                    left = [[step for step in group if step[0] not in wrong] for group in groups]
                    groups = [group for group in left if group]
                else:
                    groups = [group for at, group in enumerate(groups) if at not in absent]
        return refused

    def elements(self, sets: Sequence[str] = SETS) -> list[Element]:
        """Read all elements of these sets, with the rest of their time. Raises TableGoneError."""
        return [element for name in sets for element in self._read(name)]

    def glance(self, sets: Sequence[str]) -> list[Element]:
        """Read only key and counter of all elements of these sets. Raises TableGoneError."""
        return [
            element
            for name in sets
            for answer in self._request(self._question(self._messages.all_of(name), NLM_F_DUMP))
            for element in glances(name, answer)
        ]

    def has(self, name: str, key: bytes) -> bool:
        """Whether an element is in a set."""
        return self.has_any([(name, key)])

    def has_any(self, keys: Iterable[tuple[str, bytes]]) -> bool:
        """Whether any of these elements (set, key) is there."""
        return any(answer is not None for answer in self._get((*key, None) for key in keys))

    def data(self, name: str, key: bytes) -> bytes | None:
        """Return the data of a map for a key; None: the key is not there."""
        (answer,) = self._get([(name, key, None)])
        return next((element.data for element in elements_in(name, answer)), None) if answer else None

    def counted(self, wanted: Iterable[Element]) -> list[Element]:
        """Return the elements of `wanted` with their counters, if they exist and count."""
        result = list(wanted)
        counting = [at for at, element in enumerate(result) if element.set in COUNTED]
        answers = self._get((result[at].set, result[at].key, result[at].end) for at in counting)
        for at, answer in zip(counting, answers, strict=True):
            if answer is not None:
                (there,) = glances(result[at].set, answer)
                result[at] = result[at].with_counter(there.packets, there.octets)
        return result

    def _get(self, keys: Iterable[tuple[str, bytes, bytes | None]]) -> list[bytes | None]:
        """Return what the kernel has of each of these elements; None: the element is not there. All are asked for at
        once, by struct like a change, because this happens often (0036)."""
        messages = [self._question(self._messages.question(name, key, end)) for name, key, end in keys]
        return [
            answer
            for start in range(0, len(messages), BATCH)
            for answer in self._netlink.ask_each(messages[start : start + BATCH])
        ]

    def _question(self, body: bytes, flags: int = 0) -> bytes:
        return self._netlink.message(_GETSETELEM, NLM_F_REQUEST | flags, body)

    def _read(self, name: str) -> list[Element]:
        """Read all elements of a set, with all their fields."""
        answers = self._request(self._question(self._messages.all_of(name), NLM_F_DUMP))
        return [element for answer in answers for element in elements_in(name, answer)]

    def _change(self, group: Sequence[_Step]) -> bytes:
        """One message for steps of the same set that all add, or all delete."""
        _, add, first = group[0]
        if add:
            body = self._messages.of(first.set, [self._messages.whole(element) for _, _, element in group])
            return self._netlink.message(_NEWSETELEM, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, body)
        keys = [self._messages.key(element.key, element.end) for _, _, element in group]
        return self._netlink.message(_DELSETELEM, NLM_F_REQUEST, self._messages.of(first.set, keys))

    # --- netlink ----------------------------------------------------------------------------------------------------

    def _transaction(self, messages: list[bytes]) -> dict[int, NetfilterError]:
        """Carry out all messages or none. Returns the errors by position of the message; empty: all were carried out.

        Only the last message asks for an answer; errors of the others come before it.
        """
        begin = self._netlink.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, _BATCH_BODY)
        end = self._netlink.message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, _BATCH_BODY)
        length, kind, flags, last, pid = NLMSGHDR.unpack_from(messages[-1])
        messages[-1] = NLMSGHDR.pack(length, kind, flags | NLM_F_ACK, last, pid) + messages[-1][NLMSGHDR.size :]
        positions = {sequence_of(message): at for at, message in enumerate(messages)}
        self._netlink.send(b"".join([begin, *messages, end]))
        errors = {}
        for kind, sequence, _flags, packet in self._netlink.receive():
            if kind != NLMSG_ERROR:
                continue
            code = error_of(packet)
            if sequence == sequence_of(begin) and code:
                raise NetfilterError(code, "netfilter transaction")
            if sequence in positions and code:
                errors[positions[sequence]] = self._error(code)
            if sequence == last:
                return errors
        raise AssertionError("unreachable: receive ends by raising")

    def _request(self, message: bytes) -> list[bytes]:
        try:
            return self._netlink.request(message)
        except NetfilterError as error:
            if error.code == errno.ENOENT:
                raise self._error(error.code) from None
            raise

    def _ask(self, message: Any, kind: int, flags: int) -> list[Any]:
        return decoded(type(message), self._request(self._netlink.encoded(message, kind, NLM_F_REQUEST | flags)))

    def _error(self, code: int) -> NetfilterError:
        if code == errno.ENOENT:
            return TableGoneError(code, f"table inet {self.name}")
        return NetfilterError(code, "netfilter")
