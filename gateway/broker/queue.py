"""What the kernel says of the NFQUEUE that the packets process reads. Only root may see it, so the supervisor looks."""

from __future__ import annotations

from gateway.observe.metrics import Sample

_FILE = "/proc/net/netfilter/nfnetlink_queue"


def queue_samples(number: int) -> list[Sample]:
    """Datagrams that wait in the queue and that were dropped; nothing where there is no such queue."""
    try:
        with open(_FILE) as file:
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
