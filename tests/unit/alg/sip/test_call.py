"""alg.sip.call: the table of a call's states, and its drawing in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.address import Endpoint
from alg.sip.call import TRANSITIONS, Call, CallState, Happening, drawing

DOCS = Path(__file__).parents[4] / "docs" / "protocols" / "sip.md"


@pytest.mark.parametrize("state", list(CallState))
@pytest.mark.parametrize("what", list(Happening))
def test_what_is_not_in_the_table_changes_nothing(state: CallState, what: Happening) -> None:
    call = Call(("c", b"1"), Endpoint("192.0.2.1", 5060), "s", "", "", 1.0, 1.0, {"s"}, state)
    following = TRANSITIONS.get((state, what))
    assert call.happens(what, 2.0) is (following is not None)
    assert (call.state, call.since) == ((following, 2.0) if following else (state, 1.0))


def test_an_answered_call_stays_answered() -> None:
    assert not [what for state, what in TRANSITIONS if state is CallState.CONFIRMED]


def test_the_docs_draw_this_table() -> None:
    assert f"```mermaid\n{drawing()}\n```" in DOCS.read_text()
