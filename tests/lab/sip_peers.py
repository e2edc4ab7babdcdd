"""Real SIP peers: Kamailio (registrar and proxy), SIPp (scenarios), baresip (a phone)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.servers import PEERS

if TYPE_CHECKING:
    from tests.lab.lab import Lab, Role

SCENARIOS = Path(__file__).parents[1] / "net" / "sip"
DOMAIN = "example.test"

# A plain registrar and record-routing proxy which does nothing about NAT: it sends where a Contact says.
_KAMAILIO = """
debug=1
log_stderror=yes
fork=yes
children=1
tcp_children=1
auto_aliases=no
alias="{domain}"
listen=udp:{address}:5060
listen=tcp:{address}:5060
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
modparam("usrloc", "db_mode", 0)
modparam("registrar", "max_expires", 3600)
modparam("rr", "append_fromtag", 1)
request_route {{
    if (!mf_process_maxfwd_header("10")) {{ sl_send_reply("483", "Too Many Hops"); exit; }}
    if (is_method("CANCEL")) {{ if (t_check_trans()) t_relay(); exit; }}
    if (has_totag()) {{
        if (loose_route()) {{ t_relay(); exit; }}
        if (is_method("ACK") && t_check_trans()) {{ t_relay(); exit; }}
        if (!is_method("ACK")) sl_send_reply("404", "Not Here");
        exit;
    }}
    t_check_trans();
    if (is_method("INVITE|SUBSCRIBE|MESSAGE|REFER|OPTIONS")) record_route();
    if (is_method("REGISTER")) {{ save("location"); exit; }}
    if (is_method("OPTIONS") && uri == myself && $rU == $null) {{ sl_send_reply("200", "OK"); exit; }}
    if (uri == myself && !lookup("location")) {{ sl_send_reply("404", "Not Found"); exit; }}
    t_relay();
}}
"""


class Kamailio:
    """A running Kamailio, in the role's namespace, on UDP and TCP port 5060 of `address`."""

    def __init__(self, lab: Lab, role: Role, address: str) -> None:
        home = lab.tmp / f"kamailio-{role}"
        home.mkdir(exist_ok=True)
        config = home / "kamailio.cfg"
        modules = PEERS / "usr/lib/x86_64-linux-gnu/kamailio/modules"
        config.write_text(_KAMAILIO.format(domain=DOMAIN, address=address, modules=modules))
        program = PEERS / "usr/sbin/kamailio"
        assert program.exists(), f"{program} is missing: run `make setup`"
        self.lab = lab
        self.log = lab.logs / f"kamailio-{role}.log"
        argv: list[str | Path] = [program, "-f", config, "-DD", "-Y", home, "-m", "32", "-M", "8", "-w", home]
        libraries = PEERS / "usr/lib/x86_64-linux-gnu/kamailio"
        self.process = lab.popen(role, argv, log=self.log, env={"LD_LIBRARY_PATH": str(libraries)})

        def serves() -> bool:
            assert self.process.poll() is None, f"kamailio ended:\n{self.log.read_text()}"
            with lab.enter(role):
                try:
                    socket.create_connection((address, 5060), 0.2).close()
                except OSError:
                    return False
            return True

        lab.wait_for(serves, 15, "kamailio to listen")

    def stop(self) -> None:
        self.lab.stop(self.process)


class Sipp:
    """A running SIPp."""

    def __init__(self, process: subprocess.Popen[bytes], messages: Path) -> None:
        self.process = process
        self._messages = messages

    def received(self, beginning: str) -> list[str]:
        """The messages that it got and that begin so, as far as they are written."""
        parts = re.split(r"^-{20,} .*\n", self._messages.read_text(errors="replace"), flags=re.MULTILINE)
        got = [part.partition("\n\n")[2] for part in parts if "message received" in part.partition("\n")[0]]
        return [text for text in got if text.startswith(beginning)]


def sipp(
    lab: Lab,
    role: Role,
    scenario: str,
    *,
    local: str,
    remote: str | None = None,
    calls: int = 1,
    audio: int = 9000,
    options: Sequence[str] = (),
) -> Sipp:
    """Start SIPp with `tests/net/sip/SCENARIO.xml` from `local` (HOST:PORT) towards `remote` (HOST:PORT), UDP.

    `audio` is the port that its SDP names; SIPp itself does not use it. It ends with 0 if every call went as the
    scenario says. Its messages are in a log beside the others.
    """
    host, _, port = local.rpartition(":")
    lab._counter += 1
    log = lab.logs / f"sipp-{lab._counter:02}-{scenario}"
    argv: list[str | Path] = ["/usr/bin/sipp", "-sf", SCENARIOS / f"{scenario}.xml", "-i", host, "-p", port]
    argv += [
        "-m",
        str(calls),
        "-key",
        "audio",
        str(audio),
        "-nostdin",
        "-nd",
        "-timeout",
        "20",
        "-timeout_error",
        "-recv_timeout",
        "8000",
    ]
    argv += ["-trace_msg", "-message_file", log.with_suffix(".messages.log"), "-trace_err"]
    argv += ["-error_file", log.with_suffix(".errors.log"), "-default_behaviors", "all,-bye", *options]
    if remote is not None:
        argv.append(remote)
    process = lab.popen(role, argv, log=log.with_suffix(".log"), env={"TERM": "dumb", "HOME": os.fspath(lab.tmp)})
    return Sipp(process, log.with_suffix(".messages.log"))


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def succeeds(lab: Lab, *running: Sipp, deadline: float = 30) -> Sipp:
    """Wait for SIPp processes to end, each with success; the last one."""
    for one in running:
        process = one.process
        lab.wait_for(partial(_ended, process), deadline, "sipp to end" + lab.tail_of_logs(40))
        assert process.returncode == 0, f"sipp: {process.returncode}" + lab.tail_of_logs(60)
    return running[-1]
