"""The servers and the settings that the scenarios of vagrant/scenarios expect, in the namespaces as in the machines."""

from __future__ import annotations

import os
from pathlib import Path

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, SERVER6, Lab
from tests.lab.sip_peers import SCENARIOS, Kamailio

EXAMPLE_SIZE = 4 * 1024 * 1024
GREETING = "hello from outside"
NAME = "www.example"


def serve(lab: Lab) -> None:
    """Start the servers: FTP on both sides, web, DNS, TFTP and SIP outside."""
    for server in (lab.vsftpd(), servers.vsftpd(lab, {}, "inside")):
        server.put("pub/example.bin", os.urandom(EXAMPLE_SIZE))
    site = lab.tmp / "www"
    site.mkdir()
    (site / "index.html").write_text(GREETING)
    web: list[str | Path] = ["python3", "-m", "http.server", "--directory", site, "--bind", SERVER4, "80"]
    lab.popen("outside", web, log=lab.logs / "web.log")

    def serves() -> bool:
        try:
            lab.connect("outside", SERVER4, 80, timeout=1).close()
        except OSError:
            return False
        return True

    lab.wait_for(serves, 10, "the web server")
    lab.dns({NAME: [SERVER4]})
    boot = lab.tmp / "boot"
    boot.mkdir()
    (boot / "boot.bin").write_bytes(os.urandom(EXAMPLE_SIZE // 4))
    for path, mode in ((boot, 0o755), (boot / "boot.bin", 0o644)):
        path.chmod(mode)
    servers.tftp(lab, boot, SERVER4)
    Kamailio(lab, "outside", SERVER4)


def config(lab: Lab) -> Path:
    """The gateway's configuration."""
    return lab.write_config(
        network={"outside": ROUTER_OUT4},
        publish=[{"outside": f"{ROUTER_OUT4}:21", "inside": f"{CLIENT4}:21"}],
        portmap={"protocols": ["pcp", "natpmp"]},
        alg={"bittorrent": {"mode": "rewrite"}, "pptp": {"mode": "rewrite"}},
    )


def environment(lab: Lab, gateway: Gateway) -> dict[str, str]:
    """What scenarios are told of where they run."""
    return {
        "INSIDE": CLIENT4,
        "OUTSIDE": SERVER4,
        "OUTSIDE6": SERVER6,
        "SOCKS": f"{ROUTER_IN4}:1080",
        "NAME": NAME,
        "SIPP_FILES": str(SCENARIOS),
        "ROUTER": f"ip netns exec {lab.ns('router')}",
        "OUTSIDER": f"ip netns exec {lab.ns('outside')}",
        "CONFIG": str(gateway.config),
        "LOG": str(gateway.log),
        "ALGATE": str(gateway.command),
    }
