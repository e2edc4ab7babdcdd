"""The keeper of the rules, and the loop that calls it."""

from __future__ import annotations

import select
import threading
import time
from concurrent.futures import Future

import pytest

from gateway.config.load import parse_config
from gateway.host import keeper
from gateway.host.keeper import Look, RulesKeeper
from gateway.host.rules import RulesSnapshot

CONFIG = parse_config('[network]\ninside = ["192.168.56.0/24"]\n', "test")


def test_a_check_whose_result_is_found_before_it_says_so_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, may_say = threading.Event(), threading.Event()
    say = Future.add_done_callback

    def later(job: Future[Look], callback: object) -> None:
        def called(done: Future[Look]) -> None:
            assert may_say.wait(10)
            callback(done)  # type: ignore[operator]

        say(job, called)
        heard.set()

    def look_at(_: object, _before: object = None) -> Look:
        assert heard.wait(10)
        return Look("applied")

    monkeypatch.setattr(Future, "add_done_callback", later)
    monkeypatch.setattr(keeper, "look_at", look_at)
    rules = RulesKeeper()
    try:
        rules.tick(time.monotonic(), CONFIG, may_restore=False)
        deadline = time.monotonic() + 10
        while rules.next == float("inf"):
            assert time.monotonic() < deadline
            rules.tick(time.monotonic(), CONFIG, may_restore=False)
        may_say.set()
        assert select.select([rules.wake], [], [], 10)[0]
        rules.woken()
        assert not select.select([rules.wake], [], [], 0)[0]
    finally:
        rules.close()


def test_a_look_that_began_before_the_rules_were_applied_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    known: list[object] = []

    def look_at(_: object, before: object = None) -> Look:
        known.append(before)
        begun.set()
        assert may_end.wait(10)
        return Look("applied", rules=RulesSnapshot({}))

    monkeypatch.setattr(keeper, "look_at", look_at)
    rules = RulesKeeper()
    try:
        rules.tick(time.monotonic(), CONFIG, may_restore=True)
        assert begun.wait(10)
        rules.applied()
        may_end.set()
        deadline = time.monotonic() + 10
        while len(known) < 2:
            assert time.monotonic() < deadline
            rules.tick(time.monotonic(), CONFIG, may_restore=True)
        assert known == [None, None]
    finally:
        rules.close()
