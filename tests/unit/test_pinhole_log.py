"""The audit lines of pinholes: by the short way they are the same, and are counted the same."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.config.schema import LogSection
from gateway.model.requests import Lease
from gateway.observe.counters import counts
from gateway.observe.log import setup_logging
from gateway.observe.pinhole_log import PINHOLES

LEASE = Lease(
    "0" * 16, "f", "sip.rtp", "192.0.2.1", "in", "udp", Endpoint("203.0.113.2", 40000), Endpoint("192.0.2.1", 4000),
    None, 1.5, "kernel", "conversation",
)  # fmt: skip


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    PINHOLES.configure("", None)


leases = st.builds(
    lambda **changes: msgspec.structs.replace(LEASE, **changes),
    flow=st.text(),
    reason=st.text(),
    peers=st.none() | st.tuples() | st.tuples(st.just("203.0.113.5"), st.just("2001:db8::5")),
    peer=st.none() | st.just("203.0.113.5"),
    kind=st.sampled_from(["once", "conversation", "read", "local"]),
    second=st.none() | st.integers(1, 65535),
    target=st.builds(Endpoint, st.sampled_from(["192.0.2.1", "fd00::1"]), st.integers(0, 65535)),
    backend=st.sampled_from(["kernel", "userspace"]),
    expires=st.floats(0, 2e9),
)


@given(leases, st.sampled_from(["pinhole.open", "pinhole.update", "pinhole.close"]), st.text(), st.integers())
def test_both_ways_give_the_same_lines_and_counts(lease: Lease, event: str, by: str, slot: int) -> None:
    said = []
    for quick in (False, True):
        stream = io.StringIO(newline="")
        structlog.reset_defaults()
        setup_logging("broker", LogSection().settings, stream)
        if not quick:
            PINHOLES.configure("broker", None)
        counts.clear()
        PINHOLES.info(event, lease, slot=slot, by=by)
        said.append((re.sub(r"timestamp=\S+Z", "", stream.getvalue()), dict(counts)))
    assert said[0] == said[1]
    assert said[0][0].count(f"event={event} slot={slot} by=") == 1


@pytest.mark.parametrize("form", ["json", "console"])
def test_other_forms_have_them_too(form: str) -> None:
    stream = io.StringIO()
    setup_logging("broker", LogSection(format="json" if form == "json" else "console").settings, stream)
    PINHOLES.info("pinhole.open", LEASE, slot=0)
    (line,) = stream.getvalue().splitlines()
    assert "203.0.113.2:40000" in line
