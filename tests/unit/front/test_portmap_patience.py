"""How much is borne of a router above that does not answer, or that says something else each time."""

from __future__ import annotations

from gateway.front.portmap.patience import MOST_UNANSWERED, MUTE, WATCH, Patience


def test_one_unanswered_question_keeps_clients_from_waiting_for_a_while() -> None:
    patience = Patience()
    assert patience.may_ask(0.0)
    patience.unanswered(0.0)
    assert not patience.may_ask(MUTE - 0.1)
    patience.answered()  # a look at it, which says nothing of mappings
    assert not patience.may_ask(MUTE - 0.1)
    assert patience.may_ask(MUTE)


def test_it_is_gone_when_it_was_silent_often_enough_in_a_row() -> None:
    patience = Patience()
    for _ in range(2):
        assert [patience.is_gone() for _ in range(MOST_UNANSWERED - 1)] == [False] * (MOST_UNANSWERED - 1)
        patience.answered()
    assert [patience.is_gone() for _ in range(MOST_UNANSWERED)][-1]


def test_another_address_each_time_is_followed_and_told_once_in_a_while() -> None:
    patience, followed, told = Patience(), [], []
    for tenth in range(10 * 60):
        now = tenth / 10
        patience.moved = True  # each answer names another one
        if patience.may_follow(now):
            followed.append(now)
        patience.news = True  # so does each mapping
        if patience.may_tell(now):
            told.append(now)
    assert followed == told == [0.0, WATCH, 2 * WATCH, 3 * WATCH]
    patience.moved = patience.news = False
    assert not patience.may_follow(1000.0)
    assert not patience.may_tell(1000.0)
    patience.moved = True
    assert patience.may_follow(1000.0)
    assert patience.may_tell(1000.0)  # who follows has news
