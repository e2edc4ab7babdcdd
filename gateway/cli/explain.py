"""`algate check --explain`: which rule decides on a request, and why those before it do not."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple, get_args

import click
from rich.text import Text

from alg.address import Endpoint
from gateway.cli.output import console, show_json, styled
from gateway.config.rules import policy_of
from gateway.config.schema import Config
from gateway.model.errors import ConfigError
from gateway.model.hosts import read_host
from gateway.model.requests import CommandName, ConnectRequest
from gateway.net.addresses import OwnAddresses
from gateway.policy.decide import Explanation
from gateway.policy.rules import DAYS, Decision

FORM = '"connect 192.168.56.10 -> example.com:443 [user ann] [group staff,ops] [at Mo 08:30]"'
MAP_FORM = '"map 192.168.56.10 -> 3074 [at Mo 08:30]"'  # a mapping leads to a port of the client itself
TOO_MANY = 20  # rules that did not match are told one by one up to here at each end

_REQUEST = re.compile(
    r"(?P<command>\w+)\s+(?P<client>\S+)\s+->\s+(?P<server>\S+)(?P<rest>(?:\s+(?:user|group)\s+\S+)*)"
    r"(?:\s+at\s+(?P<day>[A-Za-z]{2})\s+(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2}))?\s*"
)


class RequestAt(NamedTuple):
    """A request, and the local time for which it is decided; None means now."""

    request: ConnectRequest
    at: datetime | None


def parse_question(text: str) -> RequestAt:
    """Parse the text of --explain. Raises ConfigError, as for any command line that cannot be used."""
    found = _REQUEST.fullmatch(text.strip())
    if not found or found["command"] not in get_args(CommandName):
        raise ConfigError(f"--explain: {text!r} is not of the form {FORM} or {MAP_FORM}")
    host, colon, port = found["server"].rpartition(":")
    if found["command"] == "map" and not colon:
        host, colon = found["client"], ":"
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ConfigError(f"--explain: {found['server']!r} is not HOST:PORT")
    user, groups = None, ()
    words = found["rest"].split()
    for key, value in zip(words[::2], words[1::2], strict=True):
        if key == "user":
            user = value
        else:
            groups = tuple(value.split(","))
    try:
        client = Endpoint.of(found["client"], 0)
    except ValueError:
        raise ConfigError(f"--explain: the client {found['client']!r} is not an address") from None
    command: CommandName = next(name for name in get_args(CommandName) if name == found["command"])
    request = ConnectRequest(command, client, read_host(host), int(port), user, groups=groups)
    return RequestAt(request, _moment(found) if found["day"] else None)


def _moment(found: re.Match[str]) -> datetime:
    day, hour, minute = found["day"].capitalize(), int(found["hour"]), int(found["minute"])
    if day not in DAYS or hour > 23 or minute > 59:
        raise ConfigError(f"--explain: {found['day']} {hour}:{minute:02} is no time of the week ({', '.join(DAYS)})")
    return datetime(2024, 1, 1) + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)  # that was a Monday


def explain(config: Config, source: str, text: str, as_json: bool = False) -> None:
    """Print which rule decides, for each address of the request's host. `source` names the configuration file."""
    question = parse_question(text)
    policy = policy_of(config, lambda: question.at or datetime.now(), OwnAddresses().has)
    request = question.request
    addresses, problem = _addresses(config, request.host)
    answers = [
        (address, policy.explain(request, ipaddress.ip_address(address) if address else None))
        for address in addresses or [""]
    ]
    if as_json:
        show_json([_row(request, address, explanation, source) for address, explanation in answers])
        return
    if problem:
        click.echo(f"{request.host} has no address here ({problem}): decided by its name alone")
    out = console()
    for address, explanation in answers:
        at = f" at {address}" if address and address != request.host else ""
        for line in _passed(explanation.passed, source):
            click.echo(line)
        decision = explanation.decision
        what = f"{request.command} to {request.host}:{request.port}{at}: "
        out.print(Text.assemble(what, styled(_verdict(decision)), _conditions(decision)), soft_wrap=True)
        why = f" ({_place(explanation.place, source)})" if explanation.place else f": {_WORDS.get(decision.rule, '')}"
        click.echo(f"    by {decision.rule}{why}")


def _row(request: ConnectRequest, address: str, explanation: Explanation, source: str) -> dict[str, Any]:
    decision = explanation.decision
    return {
        "command": request.command,
        "host": request.host,
        "port": request.port,
        "address": address or None,
        "decision": _verdict(decision),
        "rule": decision.rule,
        "place": _place(explanation.place, source) if explanation.place else None,
        "passed": [
            {"rule": name, "place": _place(place, source), "why": why} for name, place, why in explanation.passed
        ],
    }


def _addresses(config: Config, host: str) -> tuple[list[str], str]:
    """Return the addresses of the host, or the reason why it has none. Asks the name servers of the configuration."""
    from gateway.net.resolver import ResolveError  # gevent is not for every command
    from gateway.process.service import resolver_of

    try:
        return resolver_of(config.dns).resolve(host), ""
    except ResolveError as error:
        return [], error.detail


def _passed(passed: list[tuple[str, str, str]], source: str) -> Iterator[str]:
    for number, (label, place, why) in enumerate(passed):
        if TOO_MANY <= number < len(passed) - TOO_MANY:
            if number == TOO_MANY:
                yield f"    ... {len(passed) - 2 * TOO_MANY} more rules do not match"
            continue
        yield f"  not {label} ({_place(place, source)}): {why}"


def _place(place: str, source: str) -> str:
    """Return where a rule, or a line of the access file, stands, as FILE:LINE."""
    return place or source


def _verdict(decision: Decision) -> str:
    return "permit" if decision.permit else "deny"


def _conditions(decision: Decision) -> str:
    """Describe through which upstreams, and with which limits, a permitted request is carried out."""
    said = ""
    if decision.via or decision.chain:
        said += " through " + (" then ".join(decision.chain) or " or ".join(decision.via))
    if decision.rate:
        said += f", at most {decision.rate:g} bytes/s"
    return said


_WORDS = {
    "default": "no rule is there, and inside clients may reach the outside",
    "client": "no rule is there, and this client is not inside",
    "none": "no rule matches",
    "loopback": "a loopback address, which no rule names",
    "unspecified": "an unspecified address is no destination",
    "link-local": "a link-local address, which no rule names",
    "multicast": "a multicast address is no destination",
    "own": "an address of this host, which no rule names",
    "inside": "an inside address, which no rule names",
}
