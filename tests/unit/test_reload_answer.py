"""What a reload says has changed, and what becomes of the documents that it sends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.config.load import parse_config
from gateway.config.schema import Config
from gateway.model.errors import ConfigError
from gateway.process.boot import Boot
from gateway.supervisor.reload import changes
from gateway.supervisor.requests import REMEMBERED, Requests


def config(text: str = "") -> Config:
    return parse_config(text, "f.toml")


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("", "", []),
        ("", "[pinhole]\nper_client = 3", ["pinhole.per_client: 1024 -> 3"]),
        ('[dns]\nservers = ["192.0.2.1"]', "", ['dns.servers: ["192.0.2.1"] -> []']),
        ("", '[[rule]]\naction = "deny"', ["rule: [] -> 1 of them"]),
        ('[[rule]]\naction = "deny"', '[[rule]]\naction = "permit"', ["rule: 1 of them, changed"]),
        ("", '[alg.ftp]\nmode = "off"', ['alg.ftp.mode: "rewrite" -> "off"']),
    ],
)
def test_changes(before: str, after: str, lines: list[str]) -> None:
    assert changes(config(before), config(after)) == lines


def test_passwords_are_not_told(tmp_path: Path) -> None:
    file = tmp_path / "password"
    text = f"""
        [[upstream]]
        name = "a"
        kind = "socks5"
        address = "192.0.2.1:1080"
        user = "me"
        password_file = "{file}"
    """
    file.write_text("first secret\n")
    before = config(text)
    file.write_text("second secret\n")
    assert changes(before, config(text)) == ["upstream: other passwords"]


def test_a_document_is_renumbered_in_the_order_in_which_it_is_sent() -> None:
    boot = Boot(
        role="worker", slot=1, config=config(), lifeline=10, admin=11, broker=12, workers={3: 13}, journal=[14, 15],
        socks=[16], transparent=[17, 18], console=19, files={"users": 20},
    )  # fmt: skip
    there = boot.renumbered([fd + 100 for fd in boot.descriptors()])
    assert sorted(boot.descriptors()) == list(range(10, 21))
    assert there.descriptors() == [fd + 100 for fd in boot.descriptors()]
    assert (there.broker, there.console, there.workers, there.files) == (112, 119, {3: 113}, {"users": 120})
    memfd = there.to_memfd()
    assert Boot.from_memfd(memfd).descriptors() == there.descriptors()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memfd)


def test_requests() -> None:
    requests = Requests()
    (ticket,) = requests.add("reload")
    assert requests.outcome(ticket["ticket"]) == []

    def refuse(_ticket: str) -> dict[str, object]:
        raise ConfigError("f.toml: no")

    assert requests.carry_out({"reload": refuse})
    assert not requests.carry_out({"reload": refuse})
    assert requests.outcome(ticket["ticket"]) == [{"error": "f.toml: no", "usage": True}]
    requests.remember("40", {"pid": 7})  # of an earlier version
    assert requests.outcome("40") == [{"pid": 7}]
    for _ in range(REMEMBERED):
        (last,) = requests.add("reload")
        assert requests.carry_out({"reload": lambda number: {"ticket": number}})
    assert requests.outcome(last["ticket"]) == [last]
    assert "error" in requests.outcome(ticket["ticket"])[0]  # nobody waits for ever


def test_while_a_request_is_carried_out_there_is_no_outcome_and_further_ones_wait() -> None:
    requests = Requests()
    (first,), (second,) = requests.add("upgrade"), requests.add("reload")

    def upgrade(ticket: str) -> dict[str, object]:
        assert ticket == first["ticket"]
        assert requests.outcome(ticket) == []
        return {"pid": 7}

    assert requests.carry_out({"upgrade": upgrade})
    assert requests.outcome(first["ticket"]) == [{"pid": 7}]
    assert requests.outcome(second["ticket"]) == []


def test_signals_that_come_faster_than_reloads_are_done() -> None:
    """A hundred of them while one is under way are one more: a line of them would never end, nor be bounded."""
    requests, done = Requests(), 0

    def reload(_ticket: str) -> dict[str, object]:
        nonlocal done
        done += 1
        if done == 1:
            for _ in range(100):
                requests.add_by_signal("reload")
            requests.add_by_signal("upgrade")
        return {}

    requests.add_by_signal("reload")
    while requests.carry_out({"reload": reload, "upgrade": lambda _ticket: {}}):
        pass
    assert done == 2
    requests.add("reload")  # whoever asks for the outcome of one gets one
    requests.add("reload")
    while requests.carry_out({"reload": reload}):
        pass
    assert done == 4
