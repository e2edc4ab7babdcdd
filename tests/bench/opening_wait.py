"""What one opening waits for the broker: `.venv/bin/python -m tests.bench.opening_wait [SECONDS]`, as root.

Pairs of ports opened one after the other, about a hundred a second, so that the broker also looks at connection
tracking as often as it ever does. Prints a Markdown row.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from alg.address import Endpoint
from gateway.lease.messages import Close
from tests.net.broker_rig import CLIENT, SERVER, Rig, inbound

PAUSE = 0.009  # seconds between two openings
SOCKETS = 500  # inside ones, in turns


def waits(rig: Rig, seconds: float) -> list[float]:
    """Seconds that each opening took, in order of size."""
    found: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        port = 4000 + 2 * (len(found) % SOCKETS)
        request = inbound(
            transport="udp",
            kind="conversation",
            peer=None,
            peers=(SERVER,),
            reason="sip.rtp",
            target=Endpoint(CLIENT, port),
            second=port + 1,
        )
        begun = time.monotonic()
        lease = rig.open(request)
        found.append(time.monotonic() - begun)
        rig.send(Close(lease.id))
        time.sleep(PAUSE)
    return sorted(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        with Rig(Path(directory), per_client=4096, ports="20000-60000", log=Path(directory, "log")) as rig:
            found = waits(rig, float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
    at = (f"p{part} {1000 * found[len(found) * part // 100]:.2f} ms" for part in (50, 90, 95, 99))
    print(f"| {len(found)} openings | {' | '.join(at)} |")


if __name__ == "__main__":
    main()
