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
from gateway.supervisor.wishes import REMEMBERED, Wishes


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


def test_wishes() -> None:
    wishes = Wishes()
    (ticket,) = wishes.add("reload")
    assert wishes.outcome(ticket["ticket"]) == []

    def refuse(_ticket: str) -> dict[str, object]:
        raise ConfigError("f.toml: no")

    assert wishes.grant({"reload": refuse})
    assert not wishes.grant({"reload": refuse})
    assert wishes.outcome(ticket["ticket"]) == [{"error": "f.toml: no", "usage": True}]
    wishes.remember("40", {"pid": 7})  # of an earlier version
    assert wishes.outcome("40") == [{"pid": 7}]
    for _ in range(REMEMBERED):
        (last,) = wishes.add("reload")
        assert wishes.grant({"reload": lambda number: {"ticket": number}})
    assert wishes.outcome(last["ticket"]) == [last]
    assert "error" in wishes.outcome(ticket["ticket"])[0]  # nobody waits for ever


def test_while_a_wish_is_done_there_is_no_outcome_and_further_ones_wait() -> None:
    wishes = Wishes()
    (first,), (second,) = wishes.add("upgrade"), wishes.add("reload")

    def upgrade(ticket: str) -> dict[str, object]:
        assert ticket == first["ticket"]
        assert wishes.outcome(ticket) == []
        return {"pid": 7}

    assert wishes.grant({"upgrade": upgrade})
    assert wishes.outcome(first["ticket"]) == [{"pid": 7}]
    assert wishes.outcome(second["ticket"]) == []
