"""The kernel's counts of the packets process's NFQUEUE, for the metrics. The supervisor reads them."""

from __future__ import annotations

import os
from typing import TextIO

from gateway.config.schema import Config
from gateway.observe.metrics import Sample

_QUEUES = "/proc/net/netfilter/nfnetlink_queue"


class QueueSamples:
    """Reads the counts when asked."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def samples(self, config: Config) -> list[Sample]:
        """Return the counts of this configuration's queue, if it has one."""
        if not config.packets_wanted:
            return []
        try:
            if self._file is None:
                self._file = _opened()
            self._file.seek(0)
            rows = [line.split() for line in self._file]
        except OSError:
            return []
        return [
            sample
            for row in rows
            if row[0] == str(config.queue)
            for sample in (
                (("algate_queue_waiting",), float(row[2])),
                (("algate_queue_dropped_total", "queue"), float(row[5])),
                (("algate_queue_dropped_total", "user"), float(row[6])),
            )
        ]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _opened() -> TextIO:
    """Open the kernel's file. It is root's, and readable for root's group. A service's user that may change groups for
    its children (as the supervisor may) joins that group for the moment of opening; the open file can be read again and
    again."""
    own = os.getegid()
    try:
        return open(_QUEUES)
    except PermissionError:
        os.setegid(0)
        try:
            return open(_QUEUES)
        finally:
            os.setegid(own)
