"""What stands in SIP messages, as tests see it: with other eyes than `alg.sip`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stream:
    """An m= line: where its RTP and RTCP are to go to; `rtcp` None where both share a port."""

    host: str
    rtp: int
    rtcp: int | None


def streams(text: str) -> list[Stream] | None:
    """What the session description in a message says; None if there is none."""
    found: list[dict[str, Any]] = []
    session = ""
    body = text.partition("\n\n")[2]
    if not re.search(r"^m=", body, re.MULTILINE):
        return None
    for line in body.splitlines():
        key, _, value = line.partition("=")
        if key == "c":
            if found:
                found[-1]["host"] = value.split()[-1]
            else:
                session = value.split()[-1]
        elif key == "m":
            port = int(value.split()[1])
            paired = "RTP/" in value.split()[2]
            found.append({"host": session, "rtp": port, "rtcp": port + 1 if paired else None})
        elif value.startswith("rtcp:") and found:
            found[-1]["rtcp"] = int(value[5:].split()[0])
        elif value == "rtcp-mux" and found:
            found[-1]["rtcp"] = None
    return [Stream(**stream) for stream in found]


def leg_of(text: str) -> tuple[str, ...]:
    """What tells the leg of a call: its Call-ID and tags."""
    return tuple(sorted(re.findall(r"^Call-ID: .*|^(?:From|To): .*;tag=(.*)", text, re.MULTILINE)))


_HEAD = (
    (re.compile(r"\A((?!SIP/)[A-Z]+ sip:[^@\s]+@)[^\s;]+"), r"\1@"),
    (re.compile(r"\A((?:.*\n)*?(?:Via|v) *: SIP/2\.0/[A-Z]+ )[^;\s]+"), r"\1@"),
    (re.compile(r"(;received=)[^;\s]+"), r"\1@"),
    (re.compile(r"(;rport=)[0-9]+"), r"\1@"),
    (re.compile(r"^(Content-Length:).*", re.MULTILINE), r"\1"),
)
_BODY = (
    (re.compile(r"^(o=.* |c=.* )\S+$", re.MULTILINE), r"\1@"),
    (re.compile(r"^(m=\S+ )[0-9]+", re.MULTILINE), r"\1@"),
    (re.compile(r"^(a=rtcp:)[0-9]+(.*)$", re.MULTILINE), r"\1@"),
)
_CONTACTS = re.compile(r"^(?:Contact|m|Route|Record-Route|Path): .*$", re.MULTILINE)
_DESCRIPTION = re.compile(r"v=0\n(?:[a-z]=.*\n)*")


def skeleton(text: str) -> str:
    """A message without the places that may be edited."""
    head, gap, body = text.partition("\n\n")
    for pattern, put in _HEAD:
        head = pattern.sub(put, head)
    head = _CONTACTS.sub(lambda line: re.sub(r"(<sip:[^@>]*@?)[^;>]+", r"\1@", line[0]), head)

    def of_description(match: re.Match[str]) -> str:
        found = match[0]
        for pattern, put in _BODY:
            found = pattern.sub(put, found)
        return found

    return head + gap + _DESCRIPTION.sub(of_description, body)


def shows(text: str, own: str, with_description: bool) -> list[str]:
    """The lines of a message from inside that the far side uses to answer, and in which the address `own` stands."""
    head, _, body = text.partition("\n\n")
    lines = [] if text.startswith("SIP/") else [line for line in head.splitlines() if line.startswith("Via:")][:1]
    lines += [contacts[0] for contacts in _CONTACTS.finditer(head)]
    if with_description:
        description = _DESCRIPTION.search(body)
        lines += description[0].splitlines() if description else []
    return [line for line in lines if own in line]


def judge_inbound(text: str, wrote: str, own: str, router: str) -> None:
    """AssertionError unless the phone reads its own Via and Contact as in `wrote`, and nothing of the router."""
    head = text.partition("\n\n")[0]
    lines = head.splitlines()
    if head.startswith("SIP/"):
        via = next(line for line in lines if line.startswith("Via:"))
        bare = re.sub(r";received=[^;]*|(;rport)=[0-9]+", r"\1", via)
        assert bare in wrote, f"{via} is not the phone's own"
    elif own in lines[0]:
        assert f"<{lines[0].split()[1]}>" in wrote, f"{lines[0]} is not the phone's own contact"
    untouchable = ("From:", "To:", "X-", "Warning:", "Call-ID:", "Refer-To:", "Replaces:")
    assert [line for line in lines if router in line and not line.startswith(untouchable)] == [], text
