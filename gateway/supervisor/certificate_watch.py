"""Warns before a certificate ends that this gateway uses: towards clients, and towards upstreams."""

from __future__ import annotations

import time

from gateway.config.schema import Config
from gateway.model.certificates import SOON, end_of_authorities, end_of_chain
from gateway.observe.log import get_logger
from gateway.observe.metrics import Sample
from gateway.supervisor.shared_files import SharedFiles

log = get_logger()

INTERVAL = 3600.0  # seconds between looks
AGAIN = 86400.0  # seconds between two warnings of the same certificate


class CertificateWatch:
    """Knows when each certificate in use ends."""

    def __init__(self) -> None:
        self._next = 0.0
        self._config: Config | None = None
        self._ends: dict[str, float] = {}
        self._warned: dict[str, tuple[float, float]] = {}  # by the key: of which end, and when

    def look_soon(self) -> None:
        """Look at the next tick: files have changed."""
        self._next = 0.0

    def tick(self, now: float, config: Config, files: SharedFiles) -> None:
        """Look if that is due, or another configuration is in use, and warn. `now`: monotonic seconds."""
        if now < self._next and config is self._config:
            return
        self._next, self._config = now + INTERVAL, config
        unix = time.time()
        self._ends = {}
        for key, (path, text) in _in_use(config, files).items():
            try:
                end = end_of_chain(text) if key.endswith("certificate") else end_of_authorities(text, unix)
            except ValueError:  # OpenSSL has read it, so this is ours
                continue
            self._ends[key] = end
            before, when = self._warned.get(key, (0.0, 0.0))
            if end - unix < SOON and (end != before or unix - when >= AGAIN):
                self._warned[key] = end, unix
                days = int((end - unix) // 86400)
                date = time.strftime("%Y-%m-%d", time.gmtime(end))
                log.warning("certificate.expires", key=key, path=path, days=days, date=date)

    def samples(self) -> list[Sample]:
        """Return when they end, for the metrics."""
        return [(("algate_certificate_end_time_seconds", key), end) for key, end in self._ends.items()]


def _in_use(config: Config, files: SharedFiles) -> dict[str, tuple[str, str]]:
    """Return file and text of each certificate or authority by its key."""
    found = {key: (str(path), text) for key, (path, text) in files.texts().items()}
    for i, upstream in enumerate(config.upstream):
        for key, path, texts in (
            ("ca", upstream.ca, config.loaded.authorities),
            ("certificate", upstream.certificate, config.loaded.certificates),
        ):
            if upstream.name in texts:
                found[f"upstream[{i}].{key}"] = path, texts[upstream.name]
    return found
