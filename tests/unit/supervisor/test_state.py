"""gateway.supervisor.state: the table, and the page that draws it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.supervisor.state import FIRST, MEANINGS, TABLE, State, Step, after, diagram

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"


def test_the_page_draws_the_table() -> None:
    text = PAGE.read_text().partition("<!-- states: made by python -m gateway.supervisor.state -->")[2]
    assert text.partition("<!-- end of states -->")[0].strip() == diagram().strip()


def test_every_state_can_be_reached_and_has_a_meaning() -> None:
    reached = set(FIRST)
    while new := {to for (state, _), to in TABLE.items() if state in reached} - reached:
        reached |= new
    assert reached == set(State)
    assert set(MEANINGS) == {*State, *Step}


@pytest.mark.parametrize("state", list(State))
def test_every_loop_ends_in_one_of_the_four_ends(state: State) -> None:
    assert after(state, Step.END) in (State.DRAINING, State.EMPTYING, State.RETIRED, State.ABANDONING)
    assert after(state, Step.STOP) is not State.RUNNING


@pytest.mark.parametrize(
    ("state", "step", "before", "then"),
    [
        (State.SUCCEEDING, Step.TOOK_OVER, False, True),
        (State.ABANDONING, Step.TOOK_OVER, False, True),
        (State.RUNNING, Step.HANDED_OVER, True, False),
        (State.STOPPING, Step.HANDED_OVER, True, False),
    ],
)
def test_being_in_charge_changes_with_a_hand_over_only(state: State, step: Step, before: bool, then: bool) -> None:
    assert (state.in_charge, after(state, step).in_charge) == (before, then)
    others = [(at, by) for at, by in TABLE if at.in_charge != TABLE[at, by].in_charge]
    assert {by for _, by in others} == {Step.TOOK_OVER, Step.HANDED_OVER}


def test_a_new_version_that_is_asked_to_stop_while_it_takes_over_stops_all_that_it_is_in_charge_of() -> None:
    """Before, being ready undid the request: the gateway went on as if no SIGTERM had come."""
    state = after(after(State.SUCCEEDING, Step.STOP), Step.TOOK_OVER)
    assert after(state, Step.READY) is State.STOPPING
    assert after(state, Step.END) is State.DRAINING


def test_draining_without_a_limit_is_shown_as_draining() -> None:
    assert State.EMPTYING.shown == State.DRAINING.shown == "draining"
    assert State.RUNNING.shown == "running"
