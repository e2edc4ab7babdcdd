"""The metrics: a list of all of them, and the values of this process.

The exposition and docs/reference/metrics.md are made from the list. Every metric has the label `process` before its
own.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from gateway import __version__
from gateway.observe.counters import Key, counts, histograms

MetricKind = Literal["counter", "gauge", "histogram"]
Sample = tuple[Key, float]
"""Name and label values, without the label `process`; and the value."""

STARTED = time.time()  # this process; with its name it tells one process from its successor
_PAGE = resource.getpagesize()


class Metric(NamedTuple):
    """One metric. `labels` are its labels in addition to `process`."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric("algate_build_info", "gauge", "Always 1; the label is the version that runs.", ("version",)),
    Metric("algate_ready", "gauge", "1 if the gateway is ready to serve, as /readyz says."),
    Metric("algate_process_up", "gauge", "1 if the process answered the console in time."),
    Metric("algate_process_answer_seconds", "gauge", "Time that the process took to answer the console."),
    Metric("algate_process_start_time_seconds", "gauge", "Unix time of the process's start."),
    Metric("algate_process_ping_seconds", "gauge",
           "Time that a child process took to answer the supervisor's last question whether it lives.", ("child",)),
    Metric("algate_process_restarts_total", "counter", "Number of times that a child process was replaced.",
           ("child",)),
    Metric("algate_process_resident_bytes", "gauge", "Memory of the process."),
    Metric("algate_process_cpu_seconds_total", "counter", "Processor time of the process, user and system."),
    Metric("algate_process_open_descriptors", "gauge", "Open descriptors of the process."),
    Metric("algate_process_descriptor_limit", "gauge", "RLIMIT_NOFILE of the process."),
    Metric("algate_event_loop_lag_seconds", "histogram", "Delay of a timer of the event loop (worker and packets)."),
    Metric("algate_log_events_total", "counter", "Log events, by name, including those that were not written.",
           ("event",)),
    Metric("algate_connections", "gauge",
           "Connections of a worker. handshake: in a handshake, or being connected to the server; flow: relayed.",
           ("stage",)),
    Metric("algate_client_holdings", "gauge", "What clients use of what [limits] limits for each of them.",
           ("kind",)),
    Metric("algate_client_refusals_total", "counter",
           "What clients were refused. most: the client has as many as [limits] allows; share: it has "
           "as many as are left for all others.",
           ("kind", "bound")),
    Metric("algate_shared_counts_missed_total", "counter",
           "What a worker did not count exactly over all workers. lock: another worker, which was stopped, had the "
           "lock, so two may both have refused the last session; room: there were too many clients and rules, so "
           "one was counted in its own worker only.", ("reason",)),
    Metric("algate_flows", "gauge", "Flows that are live.", ("front",)),
    Metric("algate_flows_opened_total", "counter", "Flows that began.", ("front",)),
    Metric("algate_flows_ended_total", "counter", "Flows that ended, by the reason.", ("front", "reason")),
    Metric("algate_flow_bytes_total", "counter", "Bytes of flows. up: from the client to the server.", ("direction",)),
    Metric("algate_kernel_bytes_total", "counter",
           "Bytes of data connections that the kernel carried through pinholes, both directions together."),
    Metric("algate_handshakes_total", "counter",
           "Requests of clients, by their result: granted, denied (by a rule), name, refused, network, "
           "host, timeout, failed (the server), malformed, slow, unauthenticated, loop.", ("front", "result")),
    Metric("algate_permits_total", "counter", "Flows by the rule that permitted them.", ("rule",)),
    Metric("algate_denials_total", "counter",
           "Requests, by the rule that denied them. Targets of a UDP association count once a second at most.",
           ("front", "rule")),
    Metric("algate_pinholes", "gauge", "Pinholes that are open.", ("backend", "kind", "protocol")),
    Metric("algate_pinhole_events_total", "counter", "Pinholes that were opened, used, closed, or expired.",
           ("backend", "kind", "protocol", "result")),
    Metric("algate_pinhole_refusals_total", "counter", "Pinholes that were refused, by the rule of the refusal.",
           ("rule",)),
    Metric("algate_portmap_mappings", "gauge", "Mappings that clients have asked for and that are open."),
    Metric("algate_portmap_requests_total", "counter",
           "Requests of clients for public ports, by protocol and result: granted, deleted, or why they were refused.",
           ("holder", "result")),
    Metric("algate_portmap_dropped_total", "counter",
           "Requests for public ports that were not answered: their host asks too fast, or too many wait."),
    Metric("algate_edits_total", "counter", "Edits of payload. applied is no in mode observe.", ("reason", "applied")),
    Metric("algate_revocations_total", "counter", "Flows that lost their right to pinholes, by the reason.", ("rule",)),
    Metric("algate_notes_total", "counter",
           "What protocol modules noticed (`alg.note`), also where the log says it once a minute only.", ("code",)),
    Metric("algate_udp_dropped_total", "counter", "Datagrams of UDP associations that were dropped.", ("reason",)),
    Metric("algate_resolver_queries_total", "counter",
           "Names that were resolved. hit: answered from the cache; ok, nxdomain, timeout, servfail: "
           "answer of the name servers.", ("result",)),
    Metric("algate_resolver_seconds", "histogram", "Time that name servers took to resolve a name."),
    Metric("algate_broker_seconds", "histogram", "Time that the broker took for an answer (worker and packets)."),
    Metric("algate_broker_table_present", "gauge", "1 if the broker's nft table exists, with all chains and rules."),
    Metric("algate_rules_applied", "gauge",
           "1 if all iptables rules of `algate rules apply` exist. Absent where that cannot be known."),
    Metric("algate_certificate_end_time_seconds", "gauge",
           "Unix time at which a certificate in use ends, by its key in the configuration.", ("key",)),
    Metric("algate_calls", "gauge", "SIP calls under way.", ("state",)),
    Metric("algate_calls_total", "counter", "SIP calls that began, and that were answered (over UDP).", ("result",)),
    Metric("algate_registrations", "gauge", "SIP contacts that are registered (over UDP)."),
    Metric("algate_registrations_total", "counter", "REGISTER and SUBSCRIBE requests that were granted (over UDP)."),
    Metric("algate_messages_unread_total", "counter", "SIP messages that passed because they could not be read."),
    Metric("algate_conversations", "gauge", "UDP conversations that the packets process holds."),
    Metric("algate_packets_total", "counter", "Datagrams that the packets process has read."),
    Metric("algate_packets_edited_total", "counter", "Datagrams whose payload was edited."),
    Metric("algate_packets_held_total", "counter", "Datagrams that waited for a pinhole."),
    Metric("algate_packets_overdue_total", "counter", "Datagrams that waited too long, and passed untouched."),
    Metric("algate_packets_untouched_total", "counter",
           "Datagrams that passed unread, by the reason. long: larger than what the queue hands over.", ("reason",)),
    Metric("algate_datagrams_unread_total", "counter",
           "Datagrams beyond transparent.datagram_rate of their host, which passed unread."),
    Metric("algate_datagrams_early_total", "counter",
           "Datagrams to a conversation's port from hosts that were not let in; they were dropped."),
    Metric("algate_module_errors_total", "counter", "Failures of protocol modules.", ("module",)),
    Metric("algate_packets_waiting", "gauge", "Datagrams that wait for a pinhole at this moment."),
    Metric("algate_queue_waiting", "gauge", "Datagrams in the kernel's queue for the packets process."),
    Metric("algate_queue_dropped_total", "counter",
           "Datagrams that the kernel dropped. queue: the queue was full; user: the process's socket "
           "buffer was full.", ("where",)),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}


def metrics_row(process: str, samples: Iterable[Sample] = ()) -> dict[str, Any]:
    """The answer of a process to the verb "metrics": all that it has counted, and `samples` of this moment."""
    gathered = {**dict(counts), **dict(samples), **dict(_of_process())}
    return {
        "process": process,
        "start": STARTED,
        "samples": [[*key, value] for key, value in gathered.items()],
        "histograms": [
            {"name": name, "bounds": histogram.bounds, "buckets": histogram.buckets, "sum": histogram.sum}
            for name, histogram in dict(histograms).items()
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
    """Return the number of open descriptors of this process."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))  # the size is Linux 6.2 and later
