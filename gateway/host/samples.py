"""What only root may see of this host, for the metrics: the NFQUEUE of the packets process, and whether the rules are
applied. So the supervisor looks."""

from __future__ import annotations

import os
import time

from gateway.config.schema import Config
from gateway.host import rules
from gateway.model.errors import AlgateError
from gateway.observe.metrics import Sample

_QUEUES = "/proc/net/netfilter/nfnetlink_queue"
RULES_AGE = 15.0  # seconds that an answer of iptables-save is believed: it takes some milliseconds


class HostSamples:
    """Looks when it is asked."""

    def __init__(self) -> None:
        self._rules: list[Sample] = []
        self._next_look = 0.0

    def samples(self, config: Config) -> list[Sample]:
        """Those that this configuration has: of a queue if it has one, of rules if it wants any."""
        if os.geteuid() != 0 or not config.transparent_enabled:
            return []
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + RULES_AGE
            try:
                self._rules = [(("algate_rules_applied",), rules.applied(config))]
            except AlgateError:
                self._rules = []
        return [*self._rules, *_queue(config.queue)]


def _queue(number: int) -> list[Sample]:
    try:
        with open(_QUEUES) as file:
            rows = [line.split() for line in file]
    except OSError:
        return []
    return [
        sample
        for row in rows
        if row[0] == str(number)
        for sample in (
            (("algate_queue_waiting",), float(row[2])),
            (("algate_queue_dropped_total", "queue"), float(row[5])),
            (("algate_queue_dropped_total", "user"), float(row[6])),
        )
    ]
