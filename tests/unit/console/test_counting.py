"""What the lines of the log count, and what of calls is remembered."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import Edit, Side
from alg.sip.ladder import unread_rung
from gateway.config.schema import LogSection
from gateway.observe import counters
from gateway.observe.counters import Histogram, counts, recent_rows
from gateway.observe.ladders import MOST_BYTES, MOST_CALLS, MOST_MESSAGES, Ladders
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import BY_NAME, METRICS, metrics_row

PHONE, PROXY = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.10", 5060)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    structlog.reset_defaults()
    counts.clear()
    counters.recent.clear()
    setup_logging("worker-0", LogSection().settings, io.StringIO())
    yield
    structlog.reset_defaults()
    counts.clear()
    counters.recent.clear()


def counted() -> dict[tuple[str, ...], int]:
    return {key: value for key, value in counts.items() if key[0] != "algate_log_events_total"}


def test_a_denial_is_a_handshake_and_its_rules() -> None:
    get_logger().info("socks.denied", client="192.0.2.1:5", failure="denied", rule="no-smtp")
    assert counted() == {
        ("algate_handshakes_total", "socks", "denied"): 1,
        ("algate_denials_total", "socks", "no-smtp"): 1,
    }


def test_a_target_of_an_association_is_no_handshake() -> None:
    get_logger().info("socks.denied", flow="w0-1", client="192.0.2.1:5", failure="denied", rule="no-dns")
    assert counted() == {("algate_denials_total", "socks", "no-dns"): 1}


def test_a_pinhole_is_counted_by_whoever_has_it() -> None:
    log = get_logger()
    log.info("pinhole.open", pinhole="1", protocol="tcp")  # of a worker
    log.info("pinhole.open", pinhole="2", protocol="udp", slot=0, backend="kernel", kind="read")
    # let through for a worker
    log.info("pinhole.open", pinhole="3", protocol="udp", slot=0, backend="userspace", kind="local")
    log.info("pinhole.close", pinhole="1", protocol="tcp", reason="expired")
    log.warning("pinhole.refused", flow="w0-1", rule="quota")
    log.warning("pinhole.refused", slot=0, client="192.0.2.1", rule="quota")  # the broker's line about the same
    assert counted() == {
        ("algate_pinhole_events_total", "userspace", "local", "tcp", "opened"): 1,
        ("algate_pinhole_events_total", "kernel", "read", "udp", "opened"): 1,
        ("algate_pinhole_events_total", "userspace", "local", "tcp", "expired"): 1,
        ("algate_pinhole_refusals_total", "quota"): 1,
    }


def test_what_is_counted_is_a_metric_with_its_labels() -> None:
    log = get_logger()
    log.info("alg.edit", flow="w0-1", reason="ftp.port", applied=True, before="a", after="b")
    log.warning("alg.revoke", flow="w0-1", rule="target")
    log.info("socks.udp_dropped", flow="w0-1", stranger=3)
    log.info("socks.timeout", client="192.0.2.1:5", seconds=10)
    log.warning("transparent.loop", client="192.0.2.1:5", target="192.0.2.2:5")
    for name, *labels in counts:
        assert len(labels) == len(BY_NAME[name].labels), name


def test_noteworthy_lines_are_remembered_and_the_others_not() -> None:
    log = get_logger()
    log.info("flow.open", flow="w0-1", front="socks")
    log.warning("pinhole.refused", flow="w0-1", rule="quota")
    log.info("socks.denied", client="192.0.2.1:5", failure="denied", rule="r")
    assert [(row["event"], row["level"]) for row in recent_rows()] == [
        ("pinhole.refused", "warning"),
        ("socks.denied", "info"),
    ]


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
    assert len(BY_NAME) == len(METRICS)


def test_a_process_says_who_it_is() -> None:
    row = metrics_row("worker-0", [(("algate_flows", "socks"), 3)])
    names = {sample[0] for sample in row["samples"]}
    assert {"algate_flows", "algate_process_resident_bytes", "algate_process_cpu_seconds_total"} <= names


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_has_every_observation_once(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert sum(histogram.buckets) == len(values)
    for bound, at_most in zip(histogram.bounds, range(1, len(histogram.buckets)), strict=True):
        assert sum(histogram.buckets[:at_most]) == sum(value <= bound for value in values)


def message(start: str, call: str = "c1", *headers: str, body: str = "") -> bytes:
    return "\r\n".join([start, f"Call-ID: {call}", "CSeq: 1 INVITE", *headers, "", body]).encode()


def add(
    ladders: Ladders, when: float, side: Side, source: Endpoint, to: Endpoint, data: bytes, edits: Sequence[Edit]
) -> None:
    rung = unread_rung(data)
    assert rung is not None
    ladders.add(when, side, source, to, data, edits, rung)


def test_a_ladder_has_the_steps_of_one_call() -> None:
    ladders = Ladders()
    add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, message("INVITE sip:bob@x SIP/2.0"), ())
    add(ladders, 2.0, Side.CLIENT, PHONE, PROXY, message("OPTIONS sip:x SIP/2.0", "other"), ())
    add(ladders, 3.0, Side.SERVER, PROXY, PHONE, message("SIP/2.0 200 OK"), ())
    assert [(row["title"], row["from"], row["cseq"]) for row in ladders.rows("c1")] == [
        ("INVITE sip:bob@x SIP/2.0", "client", "1 INVITE"),
        ("SIP/2.0 200 OK", "server", "1 INVITE"),
    ]
    assert ladders.rows("other") == []


def test_an_edit_is_shown_within_its_line() -> None:
    data = message("INVITE sip:bob@x SIP/2.0", "c1", "Contact: <sip:ann@192.168.56.10>")
    at = data.index(b"192.168")
    ladders = Ladders()
    add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, data, [Edit(at, at + 13, b"203.0.113.2", "sip.contact")])
    ((edit,),) = (row["edits"] for row in ladders.rows("c1"))
    assert edit == {
        "reason": "sip.contact",
        "head": "Contact: <sip:ann@",
        "before": "192.168.56.10",
        "after": "203.0.113.2",
        "tail": ">",
    }


def test_no_body_and_no_secret_is_remembered() -> None:
    secret = 'Authorization: Digest username="ann", uri="sip:192.168.56.10", response="5ecre7"'
    data = message("INVITE sip:bob@x SIP/2.0", "c1", secret, body="a secret message")
    at = data.index(b"192.168")
    ladders = Ladders()
    add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, data, [Edit(at, at + 13, b"203.0.113.2", "sip.uri")])
    assert "5ecre7" not in str(ladders.rows("c1"))
    assert "secret" not in str(ladders.rows("c1"))


def test_ladders_end() -> None:
    ladders = Ladders()
    for number in range(MOST_CALLS + 10):
        add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, message("INVITE sip:bob@x SIP/2.0", f"c{number}"), ())
    assert ladders.rows("c0") == []
    for number in range(MOST_MESSAGES + 10):
        add(ladders, number, Side.CLIENT, PHONE, PROXY, message("INFO sip:bob@x SIP/2.0", f"c{MOST_CALLS}"), ())
    assert len(ladders.rows(f"c{MOST_CALLS}")) == MOST_MESSAGES


def test_ladders_are_not_larger_than_said() -> None:
    ladders = Ladders()
    big = message("INFO sip:bob@x SIP/2.0", "{}", "X: " + "y" * 60_000)
    for number in range(MOST_CALLS - 1):
        add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, message("INVITE sip:bob@x SIP/2.0", f"c{number}"), ())
        add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, big.replace(b"{}", b"c%d" % number), ())
    kept = [number for number in range(MOST_CALLS - 1) if ladders.rows(f"c{number}")]
    assert kept == list(range(kept[0], MOST_CALLS - 1))  # the latest ones
    assert MOST_BYTES * 0.9 < len(kept) * len(big) <= MOST_BYTES


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 300))
def test_whatever_came_it_is_text_in_the_end(data: bytes, first: int, second: int) -> None:
    start, end = sorted((min(first, len(data)), min(second, len(data))))
    ladders = Ladders()
    whole = b"INVITE x\r\nCall-ID: c1\r\n" + data
    add(ladders, 1.0, Side.CLIENT, PHONE, PROXY, whole, [Edit(start, end, data[:5], "r")])
    for row in ladders.rows("c1"):
        for edit in row["edits"]:
            assert all(text.isprintable() for text in edit.values())
