"""Plays a scenario (`tests.lab.sip_scenario`) between two SIPp through the router, with media, and judges it.

Each phone is a SIPp and sockets for its media. The media follow the session descriptions that SIPp has sent and
received, as a real phone's would; a stranger sends to the same ports all the time.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.peers import installed
from tests.lab.sip_scenario import Check, Message, Party, Scenario, Side, compile_scenario, other
from tests.lab.sip_text import Stream, judge_inbound, leg_of, shows, skeleton, streams
from tests.lab.socks_phone import SocksPhone

if TYPE_CHECKING:
    from tests.lab.lab import Lab

TICK = 0.025
SOUND_DELAY = 0.1  # seconds from a description until a phone sends what it says
SETTLED = 0.15  # seconds until what a message opens is open: nothing that is expected counts before
GRACE = 0.15  # seconds that the router may take to close what was open
AFTERWARDS = 0.35  # seconds that the far side and the stranger go on sending when all is over
LONGEST = 12.0  # seconds without the pauses

_LOGGED = re.compile(rb"-{20,} ([^\n]+)\n[A-Z]+ message (received|sent) [\[(]([0-9]+)[^\n]*\n\n")

Rows = Callable[[str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Logged:
    """A message as SIPp wrote it down."""

    at: float
    sent: bool
    text: str


@dataclass(frozen=True)
class Arrival:
    at: float
    port: int
    source: tuple[str, int]
    data: bytes


class Phone:
    """One side: SIPp, what it has logged, and its media."""

    def __init__(
        self, lab: Lab, side: Side, party: Party, xml: str, remote: str | None, transport: str, through: str = ""
    ) -> None:
        """`through`: where SIPp sends to, if that is not `remote`."""
        self.lab, self.side, self.party = lab, side, party
        lab._counter += 1
        base = lab.logs / f"{lab._counter:03}-{party.user}-{side}"
        self.log = base.with_suffix(".messages.log")
        self.errors = base.with_suffix(".errors.log")
        scenario = base.with_suffix(".xml")
        scenario.write_text(xml)
        argv: list[str | Path] = [installed("sip-tester", "/usr/bin/sipp")]
        argv += ["-sf", scenario, "-i", party.literal, "-p", str(party.port)]
        argv += ["-m", "1", "-nostdin", "-nd", "-timeout", "80", "-timeout_error", "-recv_timeout", "70000"]
        argv += ["-trace_msg", "-message_file", self.log, "-trace_err", "-error_file", self.errors]
        argv += ["-t", "t1" if transport == "tcp" else "u1", "-default_behaviors", "all,-bye"]
        argv += ["-rsa", through, "-key", "proxy", through.rpartition(":")[0]] if through else []
        environment = {"TERM": "dumb", "HOME": str(lab.tmp)}
        self.process = lab.popen(side, [*argv, *([remote] if remote else [])], base.with_suffix(".log"), environment)
        self.messages: list[Logged] = []
        self.arrivals: list[Arrival] = []
        self.sockets: dict[int, socket.socket] = {}
        self.own: list[Stream] = []
        self.far: list[Stream] = []
        self._read = 0
        self._leg: tuple[str, ...] = ()
        self._silent_until = 0.0

    def look(self) -> None:
        """Read what SIPp has logged since the last time; retransmissions count once."""
        if not self.log.exists():
            return
        text = self.log.read_bytes()
        while match := _LOGGED.search(text, self._read):
            end = match.end() + int(match[3])
            if end > len(text):
                break  # not written to its end yet
            at = datetime.fromisoformat(match[1].decode()).timestamp()
            message = Logged(at, match[2] == b"sent", text[match.end() : end].decode().replace("\r\n", "\n"))
            if all((known.sent, known.text) != (message.sent, message.text) for known in self.messages):
                self.messages.append(message)
                self._follow(message)
            self._read = end

    def _follow(self, message: Logged) -> None:
        """What a message means for the media: a description, or the end of the leg that the latest one is of."""
        leg = leg_of(message.text)
        found = streams(message.text)
        if found is None:
            ended = message.text.startswith("BYE ") or re.match(
                r"SIP/2\.0 [3-6][^$]*^CSeq: 1 INVITE$", message.text, re.M
            )
            if ended and leg == self._leg and self.side == "inside":  # the far side goes on, to see what comes of it
                self.far = []
            return
        self._leg = leg
        self._silent_until = time.monotonic() + SOUND_DELAY
        if not message.sent:
            self.far = found
            return
        self.own = found
        for stream in found:
            for port in (stream.rtp, stream.rtcp):
                if stream.rtp and port and port not in self.sockets:
                    with self.lab.enter(self.side):
                        family = socket.AF_INET6 if ":" in self.party.host else socket.AF_INET
                        sock = self.sockets[port] = socket.socket(family, socket.SOCK_DGRAM)
                        sock.bind((self.party.host, port))

    def targets(self) -> Iterator[tuple[int, tuple[str, int]]]:
        """From which port media go where."""
        for own, far in zip(self.own, self.far, strict=False):
            if own.rtp and far.rtp and far.host not in ("0.0.0.0", "::"):
                yield own.rtp, (far.host, far.rtp)
                if own.rtcp:
                    yield own.rtcp, (far.host, far.rtcp or far.rtp)

    def send(self, data: bytes) -> None:
        if time.monotonic() < self._silent_until:
            return
        for port, target in self.targets():
            with contextlib.suppress(OSError):  # no route, or an ICMP error of an earlier one
                self.sockets[port].sendto(data, target)

    def receive(self) -> None:
        ready = select.select(list(self.sockets.values()), [], [], 0)[0]
        for sock in ready:
            try:
                data, source = sock.recvfrom(2048)
            except OSError:
                continue
            self.arrivals.append(Arrival(time.time(), sock.getsockname()[1], source[:2], data))

    def close(self) -> None:
        self.lab.stop(self.process)
        for sock in self.sockets.values():
            sock.close()


@dataclass
class Played:
    """A scenario, as it went."""

    scenario: Scenario
    transport: str
    inside: Phone
    outside: Phone
    router: str
    proxy: str
    checked: set[int] = field(default_factory=set)

    @property
    def phones(self) -> tuple[Phone, Phone]:
        return self.inside, self.outside


def play(
    lab: Lab,
    scenario: Scenario,
    transport: str,
    parties: dict[Side, Party],
    router: str,
    stranger: str,
    rows: Rows,
    longest: float = LONGEST,
    proxy: str = "",
) -> Played:
    """Play it to its end and judge it: AssertionError says what was wrong. `transport`: udp, tcp, or socks (UDP, by an
    association of the phone inside). `rows`: what `algate ... --json` shows; `longest`: seconds, besides its pauses,
    until it is given up. `proxy`: the inside phone's outbound proxy, as it stands in a URI; messages are not judged
    then, for a proxy has to change them."""
    with contextlib.ExitStack() as stack:
        through = dict.fromkeys(parties, "")
        through["inside"] = proxy and f"{proxy}:5060"
        if transport == "socks":
            near, far = parties["inside"], parties["outside"]
            helper = stack.enter_context(SocksPhone(lab, near.host, near.port, (far.host, far.port)))
            through["inside"] = helper.local
        return _play(lab, scenario, transport, parties, router, stranger, rows, longest, through, proxy)


def _play(
    lab: Lab,
    scenario: Scenario,
    transport: str,
    parties: dict[Side, Party],
    router: str,
    stranger: str,
    rows: Rows,
    longest: float,
    through: dict[Side, str],
    proxy: str,
) -> Played:
    wire = "udp" if transport == "socks" else transport
    documents = compile_scenario(scenario, wire, parties, router, bool(proxy))
    first: Side = scenario.messages[0].side
    second = other(first)
    answering = Phone(lab, second, parties[second], documents[second], None, wire, through[second])
    lab.wait_for(lambda: _is_bound(answering, wire), 5, "sipp to listen")
    remote = f"{parties[other(first)].literal}:{parties[other(first)].port}"
    calling = Phone(lab, first, parties[first], documents[first], remote, wire, through[first])
    phones: dict[Side, Phone] = {first: calling, other(first): answering}
    played = Played(scenario, transport, phones["inside"], phones["outside"], router, proxy)
    family = socket.AF_INET6 if ":" in router else socket.AF_INET
    with lab.enter("stranger"):
        intruder = socket.socket(family, socket.SOCK_DGRAM)
        intruder.bind((stranger, 0))
    try:
        _run(played, intruder, rows, longest)
        _judge(played)
        return played
    finally:
        intruder.close()
        for phone in phones.values():
            phone.close()


def _is_bound(phone: Phone, transport: str) -> bool:
    version6 = ":" in phone.party.host
    packed = socket.inet_pton(socket.AF_INET6 if version6 else socket.AF_INET, phone.party.host)
    words = (packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4))  # as /proc writes them
    assert phone.process.poll() is None, phone.errors.read_text() if phone.errors.exists() else "sipp"
    table = Path(f"/proc/{phone.process.pid}/net/{transport}{'6' if version6 else ''}").read_text()
    return f" {''.join(words)}:{phone.party.port:04X} " in table


def _run(played: Played, intruder: socket.socket, rows: Rows, longest: float) -> None:
    inside, outside = played.inside, played.outside
    end = time.monotonic() + longest + played.scenario.milliseconds / 1000
    over = float("inf")
    while time.monotonic() < over:
        for phone in (inside, outside):
            phone.look()
        alive = [phone for phone in (inside, outside) if phone.process.poll() is None]
        if not alive and over == float("inf"):
            over = time.monotonic() + AFTERWARDS
        late = b"late " if time.monotonic() > over - AFTERWARDS + GRACE else b""
        if alive:
            if not _is_silent(played):
                inside.send(b"\x80media of inside")
            _expect(played, rows)
        if not (alive and _is_silent(played)):
            outside.send(late + b"\x80media of outside")
        for _, target in outside.targets():
            with contextlib.suppress(OSError):
                intruder.sendto(late + b"\x80media of a stranger", target)
        until = time.monotonic() + TICK
        while (left := until - time.monotonic()) > 0:
            select.select([*inside.sockets.values(), *outside.sockets.values()], [], [], left)
            inside.receive()
            outside.receive()
        assert time.monotonic() < end, "sipp does not end"
    for phone in (inside, outside):
        code = phone.process.returncode
        errors = phone.errors.read_text(errors="replace")[-2000:] if phone.errors.exists() else ""
        assert code == 0, f"sipp {phone.side}: {code}\n{errors}"
    here = _here(rows("pinholes"), inside.party)
    assert [row for row in here if row["reason"] != "sip.signalling" and row["peer"] != ""] == []


def _positions(scenario: Scenario) -> Iterator[tuple[int, Check]]:
    """Each check with the number of messages before it."""
    count = 0
    for step in scenario.steps:
        if isinstance(step, Message):
            count += 1
        else:
            yield count, step


def _is_silent(played: Played) -> bool:
    """Whether no phone sends media now: there is a `silence` after the message that was the last at both."""
    seen = {len(played.inside.messages), len(played.outside.messages)}
    return any(check.what == "silence" and seen == {before} for before, check in _positions(played.scenario))


# --- what must be while it goes on ----------------------------------------------------------------------------------


def _here(rows: list[dict[str, Any]], party: Party) -> list[dict[str, Any]]:
    """What is a party's own; the association that it speaks through is not what a call opens."""
    return [row for row in rows if row["client"] == party.host and row.get("reason") != "socks.udp"]


def _expect(played: Played, rows: Rows) -> None:
    """Try the `expect` whose turn it is; it has to come true before the next message."""
    seen = [len(played.inside.messages), len(played.outside.messages)]
    for number, (before, check) in enumerate(_positions(played.scenario)):
        if check.what != "expect" or number in played.checked:
            continue
        if max(seen) > before:
            shown = [_here(rows(verb), played.inside.party) for verb in ("pinholes", "calls")]
            raise AssertionError(f"not seen: expect {check.detail}: {shown}")
        if min(seen) < before or time.time() < SETTLED + max(phone.messages[-1].at for phone in played.phones):
            continue
        if _is_so(check.detail, played, rows):
            played.checked.add(number)


def _is_so(detail: str, played: Played, rows: Rows) -> bool:
    kind, _, value = detail.partition(" within ")[0].partition(" ")
    if played.transport != "udp" and kind == "signalling":
        return True  # the connection, or the association, is its pinhole (decision 0050)
    party = played.inside.party
    if kind == "call":
        states = [row["state"] for row in _here(rows("calls"), party)]
        return states == ([] if value == "none" else value.split())
    here = _here(rows("pinholes"), party)
    if kind == "signalling":
        signalling = [row for row in here if row["reason"] == "sip.signalling"]
        word, _, seconds = value.partition(" ")
        if word == "none":
            return not signalling
        names = {"nobody": "", "registrar": played.outside.party.host}
        wanted = sorted(names.get(name, name) for name in word.split(","))
        if not signalling or any(sorted(row["peer"].split(",")) != wanted for row in signalling):
            return False
        return not seconds or abs(signalling[0]["expires"] - time.time() - float(seconds)) < 5
    if kind == "media":
        open_now = [row for row in here if row["reason"] != "sip.signalling" and row["peer"] != ""]
        return len(open_now) == int(value)
    if kind == "conntrack":
        return len(_tracked(played.inside)) == int(value)
    raise AssertionError(f"expect {detail}: nobody knows what that is")


def _tracked(inside: Phone) -> list[str]:
    """The connections of the phone's media sockets that the router's kernel knows."""
    known = inside.lab.run("router", ["conntrack", "-L", "-p", "udp"]).stdout.splitlines()
    ports = {f"port={port}" for port in inside.sockets}
    return [
        line
        for line in known
        if f"={inside.party.host} " in line and any(word[1:] in ports for word in line.split())  # sport, dport
    ]


# --- what must have been, when it is over ---------------------------------------------------------------------------


def _judge(played: Played) -> None:
    count = len(played.scenario.messages)
    for phone in played.phones:
        assert len(phone.messages) == count, f"{phone.side} has {len(phone.messages)} messages and not {count}"
    if not played.proxy:
        _judge_messages(played)
    for number, (before, check) in enumerate(_positions(played.scenario)):
        if check.what == "media":
            _judge_media(played, before)
        elif check.what == "expect":
            assert number in played.checked, f"not seen: expect {check.detail}"
    strange = [arrival for arrival in played.inside.arrivals if arrival.data.endswith(b"a stranger")]
    assert strange == [], "a stranger's media"
    late = [arrival for arrival in played.inside.arrivals if arrival.data.startswith(b"late")]
    assert late == [], f"media after the end {played.inside.messages[-1].at}"


def _judge_media(played: Played, before: int) -> None:
    """Media of both arrive at both, in each stream and its RTCP, between message `before` and the next."""
    inside, outside = played.inside, played.outside
    since = max(phone.messages[before - 1].at for phone in (inside, outside))
    until = min(phone.messages[before].at for phone in (inside, outside))

    def last(phone: Phone, sent: bool) -> list[Stream]:
        said = [streams(message.text) for message in phone.messages[:before] if message.sent is sent]
        return next(found for found in reversed(said) if found is not None)

    def within(phone: Phone) -> list[Arrival]:
        return [arrival for arrival in phone.arrivals if since < arrival.at < until + TICK]

    near, shown, far, heard = last(inside, True), last(outside, False), last(outside, True), last(inside, False)
    assert len(near) == len(shown) == len(far)
    used = [index for index in range(len(near)) if near[index].rtp and far[index].rtp]
    assert used, "no stream in use"
    for index in used:
        for kind in ("rtp", "rtcp"):
            own, public, peer = (getattr(stream[index], kind) for stream in (near, shown, far))
            if own is None or peer is None:
                continue
            got = {(arrival.port, arrival.source[0]) for arrival in within(inside)}
            source = heard[index].host if played.proxy else outside.party.host
            assert (own, source) in got, f"{kind} {index} to inside: {got}"
            got_out = {(arrival.port, *arrival.source) for arrival in within(outside)}
            assert (peer, shown[index].host, public) in got_out, f"{kind} {index} to outside: {got_out}"


def _judge_messages(played: Played) -> None:
    """Only what may be edited was, and inside nothing is seen of it."""
    wrote = "\n".join(message.text for message in played.inside.messages if message.sent)
    for sender, receiver in ((played.inside, played.outside), (played.outside, played.inside)):
        sent = [message.text for message in sender.messages if message.sent]
        received = [message.text for message in receiver.messages if not message.sent]
        assert len(sent) == len(received)
        for before, after in zip(sent, received, strict=True):
            if played.scenario.untouched == "all":
                assert before == after
                continue
            if played.scenario.untouched == "description":
                assert before.partition("\n\n")[2] == after.partition("\n\n")[2]
            assert skeleton(before) == skeleton(after), f"{before}\nbecame\n{after}"
            own = played.inside.party.host
            if sender is played.inside:
                assert shows(after, own, played.scenario.untouched != "description") == [], after
            else:
                assert before.partition("\n\n")[2] == after.partition("\n\n")[2], "a body to inside"
                judge_inbound(after, wrote, own, played.router)
