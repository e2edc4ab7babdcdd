"""Our rendering of log lines is structlog's, only quicker and without control characters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway.observe.log import KEY_ORDER
from gateway.observe.logfmt import Logfmt, Stamp

keys = st.one_of(st.sampled_from(KEY_ORDER), st.from_regex(r"[a-z_]{1,8}", fullmatch=True))
values = st.one_of(
    st.text(alphabet='ab\\"= \n\t\r.:é', max_size=12), st.text(), st.none(), st.booleans(), st.integers()
)
ESCAPED = str.maketrans(
    {chr(code): f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
    | {chr(code): f"\\u{code:04x}" for code in (0x2028, 0x2029)}
)


@given(event=st.dictionaries(keys, values))
def test_the_same_as_structlog(event: dict[str, object]) -> None:
    theirs = structlog.processors.LogfmtRenderer(key_order=KEY_ORDER, drop_missing=True, bool_as_flag=False)
    line = Logfmt(KEY_ORDER)(None, "", dict(event))
    assert line == theirs(None, "", dict(event)).translate(ESCAPED)
    assert len(line.splitlines()) <= 1


def test_a_key_that_would_break_the_line() -> None:
    with pytest.raises(ValueError, match="Invalid key"):
        Logfmt(KEY_ORDER)(None, "", {"a b": 1})


def test_the_time() -> None:
    stamp = Stamp()
    for _ in range(3):
        before = datetime.now(UTC)
        text = stamp(None, "", {})["timestamp"]
        assert text.endswith("Z")
        assert abs(datetime.fromisoformat(text) - before) < timedelta(seconds=1)
