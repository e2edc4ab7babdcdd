"""Scenario files (tests/net/sip/README.md) as SIPp's XML: one file is a call, as both phones play it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Side = Literal["inside", "outside"]
SIDES: tuple[Side, Side] = ("inside", "outside")
DOMAIN = "example.test"
PAUSE_MS = {"media": 600, "expect": 600, "silence": 600}

_HAS_CONTACT = ("INVITE", "UPDATE", "REGISTER", "SUBSCRIBE", "NOTIFY", "REFER", "OPTIONS")
_ANSWER_HAS_CONTACT = ("INVITE", "UPDATE", "SUBSCRIBE", "REFER")
_MAKES_DIALOG = ("INVITE", "SUBSCRIBE", "REFER")
_WORD = re.compile(r"\{([a-z-]+)(?:\+([0-9]+))?\}")


def other(side: Side) -> Side:
    return "outside" if side == "inside" else "inside"


@dataclass(frozen=True)
class Party:
    """A phone: its address of record's user, where it signals from, and the first of its media ports."""

    user: str
    host: str
    port: int
    media: int

    @property
    def literal(self) -> str:
        """The host as it stands in a URI."""
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass
class Message:
    """A line of a scenario with what is indented below it. `status` 0: a request."""

    side: Side
    method: str
    status: int = 0
    uri: str = ""
    tag: str = ""
    dialog: str = "call"
    headers: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """`media`, `silence` (both [for SECONDS]) or `expect ... [within SECONDS]` between two messages."""

    what: str
    detail: str

    @property
    def milliseconds(self) -> int:
        given = re.search(r"\b(?:within|for) ([0-9]+)$", self.detail)
        return int(given[1]) * 1000 if given else PAUSE_MS[self.what]


@dataclass
class Scenario:
    """A file, read."""

    name: str
    title: str
    transports: list[str] = field(default_factory=lambda: ["udp"])
    untouched: str = ""
    steps: list[Message | Check] = field(default_factory=list)

    @property
    def milliseconds(self) -> int:
        """How long its pauses take."""
        return sum(step.milliseconds for step in self.steps if isinstance(step, Check))

    @property
    def messages(self) -> list[Message]:
        return [step for step in self.steps if isinstance(step, Message)]


def read(path: Path) -> Scenario:
    """The scenario in `path`. ValueError for a line that is none."""
    lines = path.read_text().splitlines()
    scenario = Scenario(path.stem, lines[0].lstrip("# "))
    dialog = "call"
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        last = scenario.steps[-1] if scenario.steps else None
        if line.startswith("  ") and isinstance(last, Message):
            text = line[2:]
            header = re.match(r"-?[A-Za-z][A-Za-z-]*\s*(:|$)", text) and not text.startswith(("sdp", "|"))
            (last.headers if header else last.body).append(text)
        elif words[0] == "transports":
            scenario.transports = words[1:]
        elif words[0] == "untouched":
            scenario.untouched = words[1]
        elif words[0] == "dialog":
            dialog = words[1]
        elif words[0] in PAUSE_MS:
            scenario.steps.append(Check(words[0], " ".join(words[1:])))
        elif words[0] in SIDES:
            side: Side = "inside" if words[0] == "inside" else "outside"
            scenario.steps.append(_message(side, words[1:], dialog))
        else:
            raise ValueError(f"{path}:{number}: {line}")
    return scenario


def _message(side: Side, words: list[str], dialog: str) -> Message:
    message = Message(side, "", dialog=dialog)
    for word in words:
        if word.isdigit():
            message.status = int(word)
        elif word.startswith("tag="):
            message.tag = word[4:]
        elif message.method:
            message.uri = word
        else:
            message.method = word
    return message


@dataclass
class _Transaction:
    number: int
    sender: Side
    method: str
    cseq: int
    uri: str
    head: list[str]  # From, To (without a tag that the answer adds), Call-ID, CSeq
    in_dialog: bool
    status: int = 0


@dataclass
class _Dialog:
    caller: Side
    far_tag: str = ""
    cseqs: dict[Side, int] = field(default_factory=lambda: {"inside": 0, "outside": 0})
    transactions: list[_Transaction] = field(default_factory=list)


class _Writer:
    """Writes both sides' XML, message after message."""

    def __init__(
        self, scenario: Scenario, transport: str, parties: dict[Side, Party], router: str, proxy: bool
    ) -> None:
        self._proxy = proxy
        self._scenario = scenario
        self._transport = transport
        self._parties = parties
        self._router = router
        self._dialogs: dict[str, _Dialog] = {}
        self._count = 0
        self._versions: dict[Side, int] = {"inside": 0, "outside": 0}
        self.xml: dict[Side, list[str]] = {"inside": [], "outside": []}

    def message(self, message: Message) -> None:
        dialog = self._dialogs.setdefault(message.dialog, _Dialog(message.side))
        if message.status:
            text, of, receive = self._response(message, dialog)
        else:
            text, of, receive = self._request(message, dialog)
        resent = of.method == "INVITE" and message.status > 199 if message.status else message.method != "ACK"
        retrans = ' retrans="2000"' if resent and self._transport == "udp" else ""
        self.xml[message.side].append(f"<send{retrans}><![CDATA[\n{text}]]></send>")
        self.xml[other(message.side)].append(receive)

    def _request(self, message: Message, dialog: _Dialog) -> tuple[str, _Transaction, str]:
        side, method = message.side, message.method
        initial = not dialog.far_tag or method == "REGISTER"
        invite = next((t for t in reversed(dialog.transactions) if t.method == "INVITE" and t.sender == side), None)
        self._count += 1
        number = self._count
        uri = message.uri or (f"sip:{self._parties[other(side)].user}@{DOMAIN}" if initial else "{contact}")
        if initial and side == "outside" and not message.uri:
            uri = "{contact}"  # as the phone has registered
        to_tag = message.tag or ("" if initial else dialog.far_tag)
        if method in ("ACK", "CANCEL"):
            assert invite is not None
            cseq = invite.cseq
            if method == "CANCEL" or invite.status > 299:
                number, uri = invite.number, invite.uri
            to_tag = "" if method == "CANCEL" and not invite.in_dialog else to_tag
        else:
            dialog.cseqs[side] += 1
            cseq = dialog.cseqs[side]
        me, you = ("caller", to_tag) if side == dialog.caller else (to_tag, "caller")
        head = [
            f"From: <sip:{self._parties[side].user}@{DOMAIN}>;tag={me}",
            f"To: <sip:{self._parties[other(side)].user}@{DOMAIN}>" + (f";tag={you}" if you else ""),
            f"Call-ID: {message.dialog}///[call_id]",
            f"CSeq: {cseq} {method}",
        ]
        if method == "REGISTER":
            head[1] = head[0].replace("From", "To").partition(";")[0]
        branch = f"z9hG4bK-{self._scenario.name}-{number}"
        fill = self._filler(side, number, branch)
        head = [_WORD.sub(fill, _header(message, line)) for line in head]
        transaction = _Transaction(number, side, method, cseq, uri, head, not initial)
        if method != "ACK":
            dialog.transactions.append(transaction)
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{self._transport.upper()} {{host}}:{{port}};branch={branch}",
            "Max-Forwards: 70",
            *head,
        ]
        if method in _HAS_CONTACT:
            lines.append(self._contact(side))
        saves = f'<ereg regexp=".*" search_in="hdr" header="Via:" assign_to="via{number}"/>' if method != "ACK" else ""
        if self._proxy:
            lines += self._route(side, transaction)
            if method in ("REGISTER", *_MAKES_DIALOG) and initial:
                saves += _SAVE_PATH if method == "REGISTER" else _SAVE_ROUTE
        receive = f'<recv request="{method}">{self._saving(saves, message, method in _HAS_CONTACT)}</recv>'
        return self._text(message, lines, fill), transaction, receive

    def _response(self, message: Message, dialog: _Dialog) -> tuple[str, _Transaction, str]:
        of = next(
            t for t in reversed(dialog.transactions) if t.sender != message.side and message.method in ("", t.method)
        )
        of.status = message.status
        tag = ""
        if message.status > 100 and not of.in_dialog:
            tag = message.tag or "callee"
            if of.method in _MAKES_DIALOG:
                dialog.far_tag = tag
        lines = [f"SIP/2.0 {message.status} {_REASONS.get(message.status, 'Whatever')}", f"Via:[$via{of.number}]"]
        lines += [line + (f";tag={tag}" if tag and line.startswith("To:") else "") for line in of.head]
        with_contact = of.method in _ANSWER_HAS_CONTACT and 100 < message.status < 300
        if with_contact:
            lines.append(self._contact(message.side))
        recorded = self._proxy and of.method in _MAKES_DIALOG and not of.in_dialog
        if recorded:
            lines.append("Record-Route:[$route]")
        saves = _SAVE_ROUTE if recorded and 100 < message.status < 300 else ""
        receive = f'<recv response="{message.status}">{self._saving(saves, message, with_contact)}</recv>'
        return self._text(message, lines, self._filler(message.side, of.number, "")), of, receive

    def _contact(self, side: Side) -> str:
        transport = ";transport=tcp" if self._transport == "tcp" else ""
        return f"Contact: <sip:{self._parties[side].user}@{{host}}:{{port}}{transport}>"

    def _route(self, side: Side, of: _Transaction) -> list[str]:
        """What a request has in Route, where there is a proxy: the phone inside names it, the other side was told."""
        if of.in_dialog or (of.method == "ACK" and of.status < 300):
            return ["Route:[$route]"]
        if of.method in ("ACK", "CANCEL"):
            return []  # to the proxy as such
        then = f"<sip:{{peer-host}}:{self._parties[other(side)].port};lr;transport={self._transport}>"
        return [f"Route: <sip:[proxy];lr>, {then}"] if side == "inside" else ["Route:[$path]"]

    @staticmethod
    def _saving(saves: str, message: Message, with_contact: bool) -> str:
        if with_contact and not any(line.startswith(("-Contact", "Contact: *")) for line in message.headers):
            saves += '<ereg regexp="sip:[^&gt;]*" search_in="hdr" header="Contact:" assign_to="contact"/>'
            saves += '<ereg regexp=".*" search_in="hdr" header="Contact:" assign_to="contacts"/>'
        return f"<action>{saves}</action>" if saves else ""

    def _text(self, message: Message, lines: list[str], fill: Callable[[re.Match[str]], str]) -> str:
        given = {line.partition(":")[0].lstrip("-") for line in message.headers}
        lines = [line for line in lines if line.partition(":")[0] not in given]
        lines += [line for line in message.headers if not line.startswith("-")]
        if message.body and "Content-Type" not in given:
            lines.append("Content-Type: application/sdp")
        lines += ["Content-Length: [len]", "", *self._body(message)]
        return "\n".join(_WORD.sub(fill, line) for line in lines) + "\n" + ("" if message.body else "\n")

    def _body(self, message: Message) -> Iterator[str]:
        for line in message.body:
            words = line.split()
            if words[0] == "sdp":
                self._versions[message.side] += 1
                family = "IP6" if ":" in self._parties[message.side].host else "IP4"
                connection = words[1] if len(words) > 1 else "{address}"
                yield "v=0"
                yield f"o=- 1 {self._versions[message.side]} IN {family} {{address}}"
                yield "s=-"
                if connection != "none":
                    yield f"c=IN {family} {connection}"
                yield "t=0 0"
            else:
                yield line.removeprefix("|").removeprefix(" ") if line.startswith("|") else line

    def _filler(self, side: Side, number: int, branch: str) -> Callable[[re.Match[str]], str]:
        own, peer = self._parties[side], self._parties[other(side)]
        words = {
            "host": "[local_ip]" if ":" in own.host else own.host,  # SIPp takes brackets for its own
            "address": own.host,
            "port": str(own.port),
            "peer-host": "[remote_ip]" if ":" in peer.host else peer.host,
            "peer-address": peer.host,
            "router": self._router,
            "contact": "[$contact]",
            "contacts": "[$contacts]",
            "via": f"[$via{number}]",
            "branch": branch,
        }

        def fill(match: re.Match[str]) -> str:
            if match[1] == "m":
                return str(own.media + int(match[2] or 0))
            return words[match[1]]

        return fill


_SAVE_ROUTE = '<ereg regexp=".*" search_in="hdr" header="Record-Route:" assign_to="route"/>'
_SAVE_PATH = '<ereg regexp=".*" search_in="hdr" header="Path:" assign_to="path"/>'
_REASONS = {
    100: "Trying",
    180: "Ringing",
    183: "Session Progress",
    200: "OK",
    202: "Accepted",
    302: "Moved Temporarily",
}


def _header(message: Message, line: str) -> str:
    """The header of the message that stands for `line`, if it has one."""
    name = line.partition(":")[0]
    return next((given for given in message.headers if given.startswith(f"{name}:")), line)


def compile_scenario(
    scenario: Scenario, transport: str, parties: dict[Side, Party], router: str, proxy: bool = False
) -> dict[Side, str]:
    """SIPp's XML for each side. `router`: its public address, where the scenario speaks of it. `proxy`: whether the
    inside phone has an outbound proxy; which one is SIPp's keyword of that name."""
    writer = _Writer(scenario, transport, parties, router, proxy)
    waits = 0
    for step in scenario.steps:
        if isinstance(step, Check):
            waits += step.milliseconds
            continue
        if waits:  # who speaks next is the one who waits: SIPp wants no message during its pauses
            writer.xml[step.side].append(f'<pause milliseconds="{waits}"/>')
            waits = 0
        writer.message(step)
    documents: dict[Side, str] = {}
    for side, parts in writer.xml.items():
        names = sorted(set(re.findall(r'assign_to="([a-z0-9]+)"', "".join(parts))))
        used = f'<Reference variables="{",".join(names)}"/>' if names else ""
        inner = "\n".join([*parts, used])
        documents[side] = (
            f'<?xml version="1.0" encoding="ISO-8859-1" ?>\n<scenario name="{scenario.name}">\n{inner}\n</scenario>\n'
        )
    return documents
