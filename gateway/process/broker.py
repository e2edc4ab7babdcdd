"""The broker's process: `python -m gateway.process.broker BOOT_FD`, with CAP_NET_ADMIN and nothing else."""

from __future__ import annotations

import socket
import sys

from gateway.broker.server import Broker
from gateway.observe.log import setup_logging
from gateway.process.boot import Boot


def main(boot: Boot) -> int:
    """Serve until the supervisor says otherwise; the exit code."""
    setup_logging("broker", boot.config.log)
    config = boot.config
    return Broker(
        workers=[socket.socket(fileno=fd) for fd in boot.workers],
        admin=socket.socket(fileno=boot.admin),
        lifeline=socket.socket(fileno=boot.lifeline),
        inside=config.inside_networks,
        ports=config.pinhole_ports,
        read_ports=config.read_ports,
        per_client=config.pinhole.per_client,
        rate=config.pinhole.rate,
        table=config.instance,
    ).run()


if __name__ == "__main__":
    sys.exit(main(Boot.from_memfd(int(sys.argv[1]))))
