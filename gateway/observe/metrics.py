"""The metrics: what there is, and what a process answers when it is asked for its own.

One list, from which the exposition and docs/reference/metrics.md are made. Every metric has the
label `process` before its own.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from gateway import __version__
from gateway.observe.counters import Key, counts, histograms

Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[Key, float]
"""Name and label values, without the process; and the value."""

STARTED = time.time()  # this process; with its name it tells one process from its successor
_PAGE = resource.getpagesize()


class Metric(NamedTuple):
    """One metric; `labels` beside `process`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric("algate_build_info", "gauge", "1; the version that runs.", ("version",)),
    Metric("algate_ready", "gauge", "1 if the gateway is ready to serve, as /readyz says."),
    Metric("algate_process_up", "gauge", "1 if the process answered in time."),
    Metric("algate_process_answer_seconds", "gauge", "How long the process took to answer."),
    Metric("algate_process_start_time_seconds", "gauge", "Unix time of the process's start."),
    Metric("algate_process_restarts_total", "counter", "How often a child process was replaced.", ("child",)),
    Metric("algate_process_resident_bytes", "gauge", "Memory of the process."),
    Metric("algate_process_cpu_seconds_total", "counter", "Processor time of the process, user and system."),
    Metric("algate_process_open_descriptors", "gauge", "Open descriptors of the process."),
    Metric("algate_process_descriptor_limit", "gauge", "RLIMIT_NOFILE of the process."),
    Metric("algate_event_loop_lag_seconds", "histogram", "How late a timer of the event loop was; worker and packets."),
    Metric("algate_log_events_total", "counter", "Lines of the log, by event.", ("event",)),
    Metric("algate_connections", "gauge", "Connections of a worker; handshake: in it, or being connected; flow: live.",
           ("stage",)),
    Metric("algate_client_holdings", "gauge", "What clients have of what is limited for each of them (limits.*).",
           ("kind",)),
    Metric("algate_client_refusals_total", "counter",
           "What clients could not have. most: they have as many as limits.* says; share: as are left for others.",
           ("kind", "bound")),
    Metric("algate_flows", "gauge", "Flows that are live.", ("front",)),
    Metric("algate_flows_opened_total", "counter", "Flows that began.", ("front",)),
    Metric("algate_flows_ended_total", "counter", "Flows that ended, by how.", ("front", "reason")),
    Metric("algate_flow_bytes_total", "counter", "Bytes of flows; up: from the client to the server.", ("direction",)),
    Metric("algate_kernel_bytes_total", "counter",
           "Bytes of data connections that the kernel carried through pinholes, both directions together."),
    Metric("algate_handshakes_total", "counter",
           "Requests of clients, by what became of them: granted, denied (by a rule), name, refused, network, host, "
           "timeout, failed (the server), malformed, slow, unauthenticated, loop.", ("front", "result")),
    Metric("algate_permits_total", "counter", "Flows by the rule that permitted them.", ("rule",)),
    Metric("algate_denials_total", "counter",
           "Requests by the rule that denied them. Of a UDP association's targets at most one a second.",
           ("front", "rule")),
    Metric("algate_pinholes", "gauge", "Pinholes that are open.", ("backend", "protocol")),
    Metric("algate_pinhole_events_total", "counter", "Pinholes that were opened, used, closed, or expired.",
           ("backend", "protocol", "result")),
    Metric("algate_pinhole_refusals_total", "counter", "Pinholes that were not opened, by the rule.", ("rule",)),
    Metric("algate_edits_total", "counter", "Edits of payload; applied is no in mode observe.", ("reason", "applied")),
    Metric("algate_revocations_total", "counter", "Flows that may open no pinholes any more, by why.", ("rule",)),
    Metric("algate_udp_dropped_total", "counter", "Datagrams of UDP associations that were dropped.", ("reason",)),
    Metric("algate_resolver_queries_total", "counter",
           "Names that were resolved: hit (of the cache), ok, nxdomain, timeout, servfail.", ("result",)),
    Metric("algate_resolver_seconds", "histogram", "How long name servers took for a name."),
    Metric("algate_broker_seconds", "histogram", "How long the broker took for an answer; worker and packets."),
    Metric("algate_broker_table_present", "gauge", "1 if the broker's nft table is there, with all chains and rules."),
    Metric("algate_rules_applied", "gauge",
           "1 if all iptables rules are there that `algate rules apply` makes. None where that cannot be known."),
    Metric("algate_calls", "gauge", "SIP calls under way.", ("state",)),
    Metric("algate_calls_total", "counter", "SIP calls that began, and that were answered (over UDP).", ("result",)),
    Metric("algate_registrations", "gauge", "SIP contacts that are registered (over UDP)."),
    Metric("algate_registrations_total", "counter", "REGISTER and SUBSCRIBE requests that were granted (over UDP)."),
    Metric("algate_messages_unread_total", "counter", "SIP messages that could not be read: they passed unread (UDP)."),
    Metric("algate_conversations", "gauge", "UDP conversations that the packets process holds."),
    Metric("algate_packets_total", "counter", "Datagrams that the packets process has read."),
    Metric("algate_packets_edited_total", "counter", "Datagrams whose payload was edited."),
    Metric("algate_packets_held_total", "counter", "Datagrams that waited for a pinhole."),
    Metric("algate_packets_overdue_total", "counter", "Datagrams that waited too long, and passed untouched."),
    Metric("algate_packets_untouched_total", "counter",
           "Datagrams that passed unread, by why; long: more than the queue hands over.", ("reason",)),
    Metric("algate_datagrams_unread_total", "counter",
           "Datagrams that a host sent beyond transparent.datagram_rate; they passed unread."),
    Metric("algate_datagrams_early_total", "counter",
           "Datagrams that came to a conversation's port from somebody who was not let in; they were dropped."),
    Metric("algate_module_errors_total", "counter", "Mistakes of protocol modules.", ("module",)),
    Metric("algate_packets_waiting", "gauge", "Datagrams that wait for a pinhole now."),
    Metric("algate_queue_waiting", "gauge", "Datagrams that wait in the kernel for the packets process."),
    Metric("algate_queue_dropped_total", "counter",
           "Datagrams that the kernel dropped: queue: it was full; user: the process's socket was.", ("where",)),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}


def metrics_row(process: str, samples: Iterable[Sample] = ()) -> dict[str, Any]:
    """What a process answers to the verb "metrics": all that it has counted, and `samples` of the moment."""
    gathered = {**dict(counts), **dict(samples), **dict(_of_process())}
    return {
        "process": process,
        "start": STARTED,
        "samples": [[*key, value] for key, value in gathered.items()],
        "histograms": [
            {"name": name, "bounds": one.bounds, "buckets": one.buckets, "sum": one.sum}
            for name, one in dict(histograms).items()
        ],
    }


def _of_process() -> list[Sample]:
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * _PAGE
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return [
        (("algate_build_info", __version__), 1),
        (("algate_process_start_time_seconds",), STARTED),
        (("algate_process_resident_bytes",), resident),
        (("algate_process_cpu_seconds_total",), usage.ru_utime + usage.ru_stime),
        (("algate_process_open_descriptors",), open_descriptors()),
        (("algate_process_descriptor_limit",), resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))  # the size is Linux 6.2 and later
