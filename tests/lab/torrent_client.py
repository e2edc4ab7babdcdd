"""A torrent client (Debian's python3-libtorrent) that asks its router for a public port, for the system's Python.

`python3 tests/lab/torrent_client.py PORT [upnp]`: prints each mapping or its error as a line; ends when its input does.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import libtorrent


def main() -> None:
    """Ask by PCP and NAT-PMP, whichever libtorrent likes, and by UPnP."""
    settings: dict[str, Any] = {
        "listen_interfaces": f"0.0.0.0:{sys.argv[1]}",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_natpmp": True,
        "enable_upnp": "upnp" in sys.argv[2:],
        "alert_mask": libtorrent.alert.category_t.port_mapping_notification
        | libtorrent.alert.category_t.error_notification
        | libtorrent.alert.category_t.port_mapping_log_notification,
    }
    make: Any = libtorrent.session
    session = make(settings)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    while not ended.is_set():
        if session.wait_for_alert(200):
            for alert in session.pop_alerts():
                print(f"{alert.what()}: {alert.message()}", flush=True)


if __name__ == "__main__":
    main()
