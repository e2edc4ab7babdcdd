"""alg.ftp.state: the table, and the page that draws it."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.ftp.state import MEANINGS, TABLE, Control, ControlStep, after, diagram

PAGE = Path(__file__).parents[4] / "docs" / "protocols" / "ftp.md"


def test_the_page_draws_the_table() -> None:
    text = PAGE.read_text().partition("<!-- states: made by python -m alg.ftp.state -->")[2]
    assert text.partition("<!-- end of states -->")[0].strip() == diagram().strip()


def test_every_state_can_be_reached_and_given_up() -> None:
    reached = {Control.GREETING}
    while new := {to for (state, _), to in TABLE.items() if state in reached} - reached:
        reached |= new
    assert reached == set(Control)
    assert all(after(state, ControlStep.GIVEN_UP) is Control.UNREAD for state in Control)
    assert set(MEANINGS) == {*Control, *ControlStep}


def test_what_is_not_in_the_table_cannot_happen() -> None:
    with pytest.raises(KeyError):
        after(Control.UNREAD, ControlStep.PROVED)
