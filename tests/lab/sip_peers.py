"""Real SIP peers: Kamailio (registrar and proxy), SIPp (scenarios), baresip and linphone (phones)."""

from __future__ import annotations

import math
import os
import re
import socket
import struct
import subprocess
import wave
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.peers import LIBRARIES, installed, unpacked

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
{tcp}
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
        if (loose_route()) {{
            if (uri == myself && $rU != $null) lookup("location"); # a GRUU (RFC 5627), as linphone's Contact is
            t_relay();
            exit;
        }}
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
    """A running Kamailio, in the role's namespace, on UDP and (unless `tcp` is False) TCP port 5060 of `address`."""

    def __init__(self, lab: Lab, role: Role, address: str, tcp: bool = True) -> None:
        home = lab.tmp / f"kamailio-{role}"
        home.mkdir(exist_ok=True)
        config = home / "kamailio.cfg"
        modules = LIBRARIES / "kamailio/modules"
        listen = f"listen=tcp:{address}:5060" if tcp else "disable_tcp=yes"
        config.write_text(_KAMAILIO.format(domain=DOMAIN, address=address, modules=modules, tcp=listen))
        program = unpacked("kamailio", "usr/sbin/kamailio")
        self.lab = lab
        self.log = lab.logs / f"kamailio-{role}.log"
        argv: list[str | Path] = [program, "-f", config, "-DD", "-Y", home, "-m", "32", "-M", "8", "-w", home]
        libraries = LIBRARIES / "kamailio"
        self.process = lab.popen(role, argv, log=self.log, env={"LD_LIBRARY_PATH": str(libraries)})

        def serves() -> bool:
            assert self.process.poll() is None, f"kamailio ended:\n{self.log.read_text()}"
            if not tcp:
                return ":5060 " in lab.run(role, ["ss", "-Hnlu"]).stdout
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
    socks: str | None = None,
) -> Sipp:
    """Start SIPp with `tests/net/sip/SCENARIO.xml` from `local` (HOST:PORT) towards `remote` (HOST:PORT), UDP.

    `audio` is the port that its SDP names; SIPp itself does not use it. It ends with 0 if every call went as the
    scenario says. Its messages are in a log beside the others. `socks`: a SOCKS server's address, to which dante's
    library takes what goes to `remote`.
    """
    host, _, port = local.rpartition(":")
    lab._counter += 1
    log = lab.logs / f"sipp-{lab._counter:02}-{scenario}"
    argv: list[str | Path] = [installed("sip-tester", "/usr/bin/sipp")]
    argv += ["-sf", SCENARIOS / f"{scenario}.xml", "-i", host, "-p", port]
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
    environment = {"TERM": "dumb", "HOME": os.fspath(lab.tmp)}
    if socks is not None and remote is not None:
        conf = lab.tmp / "sipp-socks.conf"
        conf.write_text(_DANTE.format(*remote.rsplit(":", 1), socks))
        argv.insert(0, installed("dante-client", "/usr/bin/socksify"))
        environment["SOCKS_CONF"] = os.fspath(conf)
    process = lab.popen(role, argv, log=log.with_suffix(".log"), env=environment)
    return Sipp(process, log.with_suffix(".messages.log"))


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def succeeds(lab: Lab, *running: Sipp, deadline: float = 30) -> Sipp:
    """Wait for SIPp processes to end, each with success; the last one."""
    for sipp in running:
        process = sipp.process
        lab.wait_for(partial(_ended, process), deadline, "sipp to end" + lab.tail_of_logs(40))
        assert process.returncode == 0, f"sipp: {process.returncode}" + lab.tail_of_logs(60)
    return running[-1]


class Baresip:
    """A running baresip: a phone with a tone for a microphone, which writes what it hears to a file.

    It registers `user` with `proxy` (HOST:PORT) from `local` (HOST:PORT), answers every call, and first of all calls
    `dial` (a user). `tone` in Hz.
    """

    def __init__(
        self, lab: Lab, role: Role, user: str, *, local: str, proxy: str, tone: int, dial: str | None = None
    ) -> None:
        self._lab = lab
        lab._counter += 1
        self.home = lab.tmp / f"baresip-{user}-{lab._counter}"
        self.home.mkdir()
        _write_tone(self.home / "tone.wav", tone)
        (self.home / "config").write_text(_BARESIP.format(home=self.home, local=local))
        (self.home / "accounts").write_text(
            f'<sip:{user}@{DOMAIN}>;auth_pass=none;outbound="sip:{proxy};transport=udp";regint=60;answermode=auto\n'
        )
        (self.home / "contacts").write_text("")
        command = [str(installed("baresip-core", "/usr/bin/baresip")), "-4", "-f", str(self.home), "-v"]
        self.log = lab.logs / f"baresip-{lab._counter:02}-{user}.log"
        if dial is not None:
            command += ["-e", f"/dial sip:{dial}@{DOMAIN}"]
        self.process = lab.popen(role, command, log=self.log, env={"HOME": os.fspath(self.home)})

    def wait_for(self, text: str, deadline: float = 15) -> None:
        """Wait until it says `text`."""
        self._lab.wait_for(lambda: text in self.log.read_text(errors="replace"), deadline, f"{text!r} in {self.log}")

    def heard(self) -> list[int]:
        """The samples that it has decoded up to now, of its latest call; 8,000 a second."""
        files = sorted(self.home.glob("dump-*-dec.wav"))
        data = files[-1].read_bytes()[44:] if files else b""
        return [sample for (sample,) in struct.iter_unpack("<h", data[: len(data) // 2 * 2])]

    def stop(self) -> None:
        self._lab.stop(self.process)


class Linphone:
    """A running linphonec: a phone that plays a tone and writes what it hears to a file.

    It registers `user` with `proxy` (HOST:PORT) by UDP from port 5060, and answers every call. `tone` in Hz.
    """

    def __init__(self, lab: Lab, role: Role, user: str, *, proxy: str, tone: int) -> None:
        self._lab = lab
        lab._counter += 1
        self.home = lab.tmp / f"linphone-{user}-{lab._counter}"
        (self.home / ".local/share/linphone").mkdir(parents=True)
        _write_tone(self.home / "tone.wav", tone)
        (self.home / "linphonerc").write_text(_LINPHONE.format(user=user, domain=DOMAIN, proxy=proxy))
        program = installed("linphone-cli", "/usr/bin/linphonec")
        command: list[str | Path] = [program, "-a", "-c", self.home / "linphonerc", "-d", "0"]
        self.log = lab.logs / f"linphone-{lab._counter:02}-{user}.log"
        self._given = 0  # prompts when the last command was given
        environment = {"HOME": os.fspath(self.home), "TERM": "dumb"}
        self.process = lab.popen(role, command, log=self.log, env=environment, stdin=subprocess.PIPE)
        self.do("soundcard use files", f"play {self.home}/tone.wav", f"record {self.home}/heard.wav")

    def do(self, *commands: str) -> None:
        """Give it commands, as a user does: each at its prompt. Linphone 5.3 reads no more than one when there are
        several."""
        for command in commands:
            self._lab.wait_for(lambda: self._prompts() > self._given, 15, f"a prompt in {self.log}")
            self._say(command)

    def _prompts(self) -> int:
        return self.log.read_text(errors="replace").count("linphonec>")

    def _say(self, command: str) -> None:
        assert self.process.stdin is not None
        self._given = self._prompts()
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()

    def wait_until_registered(self) -> None:
        """Ask it, as it does not say so by itself."""

        def is_registered() -> bool:
            self.do("status register")
            return "registered, identity=" in self.log.read_text(errors="replace")

        self._lab.wait_for(is_registered, 15, f"a registration in {self.log}")

    def heard(self) -> list[int]:
        """The samples that it has decoded up to now; 8,000 a second."""
        file = self.home / "heard.wav"
        data = file.read_bytes()[44:] if file.exists() else b""
        return [sample for (sample,) in struct.iter_unpack("<h", data[: len(data) // 2 * 2])]

    def stop(self) -> None:
        """End it as a user does: it takes back its registration."""
        self.do("quit")
        assert self.process.stdin is not None
        self.process.stdin.close()  # Linphone 5.3 waits for that
        self._lab.wait_for(partial(_ended, self.process), 10, "linphonec to end")


# Nothing of what newer phones do about NAT: no rport, no ICE, no outbound, no keep-alives.
_LINPHONE = """
[sip]
sip_port=5060
sip_tcp_port=0
sip_tls_port=0
default_proxy=0
use_rport=0
keepalive_period=0
[rtp]
audio_rtp_port=7078
[proxy_0]
reg_proxy=<sip:{proxy};transport=udp>
reg_route=<sip:{proxy};transport=udp;lr>
reg_identity=<sip:{user}@{domain}>
reg_expires=60
reg_sendregister=1
publish=0
[audio_codec_0]
mime=PCMU
rate=8000
channels=1
enabled=1
"""

_DANTE = """
resolveprotocol: fake
route {{
  from: 0.0.0.0/0 to: {0}/32 port = {1} via: {2} port = 1080
  proxyprotocol: socks_v5
  command: udpassociate
  protocol: udp
  method: none
}}
"""

_BARESIP = """
poll_method epoll
sip_listen {local}
audio_path {home}
audio_source aufile,{home}/tone.wav
audio_player aubridge,nobody
audio_alert aubridge,nobody
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
ausrc_format s16
auplay_format s16
auenc_format s16
audec_format s16
rtp_timeout 0
jitter_buffer_delay 2-5
rtp_ports 10000-10100
snd_path {home}
module_path /usr/lib/baresip/modules
module stdio.so
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module_tmp account.so
module_app menu.so
"""


def _write_tone(path: Path, frequency: int) -> None:
    """A minute of a tone, 8,000 samples a second."""
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        step = 2 * math.pi * frequency / 8000
        second = b"".join(struct.pack("<h", int(12000 * math.sin(step * n))) for n in range(8000))
        file.writeframes(second * 60)


def loudness(samples: Sequence[int], frequency: int) -> float:
    """How loud a tone is within samples at 8,000 a second (Goertzel), of their whole power: 0 to 1."""
    step = 2 * math.pi * frequency / 8000
    real = sum(sample * math.cos(step * n) for n, sample in enumerate(samples))
    imaginary = sum(sample * math.sin(step * n) for n, sample in enumerate(samples))
    power = sum(sample * sample for sample in samples)
    return 2 * (real * real + imaginary * imaginary) / len(samples) / power if power else 0.0
