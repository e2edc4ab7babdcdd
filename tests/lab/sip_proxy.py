"""A proxy for phones: Kamailio with rtpengine on the router, in place of anything in the packet path.

Phones have to be told of it (`ADDRESS` is their outbound proxy). Every message of a dialog goes through Kamailio, by
Record-Route, and all media through rtpengine, which relays in userspace here: its kernel module is none of Debian's
kernels'.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, ROUTER_OUT4, ROUTER_OUT6
from tests.lab.peers import LIBRARIES, unpacked

if TYPE_CHECKING:
    from tests.lab.lab import Lab

ADDRESS = ROUTER_IN4
RTPENGINE = shutil.which("rtpengine")
CHILDREN = 4  # receivers of each of the two sockets: they wait for rtpengine's answers
CONTROL = ("127.0.0.1", 2223)
EDITS = "replace-origin replace-session-connection asymmetric strict-source"  # nobody is behind a further NAT

_KAMAILIO = """
debug=0
log_stderror=yes
fork=yes
children={children}
tcp_children=2
auto_aliases=no
listen=udp:{inside}:5060
listen=udp:{outside}:5060
listen=tcp:{inside}:5060
listen=tcp:{outside}:5060
listen=udp:[{inside6}]:5060
listen=udp:[{outside6}]:5060
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "path.so"
loadmodule "pv.so"
loadmodule "htable.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "rtpengine.so"
modparam("tm", "auto_inv_100", {trying})
modparam("htable", "htable", "registrars=>size=8;autoexpire=3600;")
modparam("rtpengine", "rtpengine_sock", "udp:{control[0]}:{control[1]}")
request_route {{
    if (!mf_process_maxfwd_header("10")) {{ sl_send_reply("483", "Too Many Hops"); exit; }}
    $var(inside) = 0;
    if (dst_ip == {inside} || dst_ip == [{inside6}]) $var(inside) = 1;
    if (is_method("CANCEL")) {{
        if (t_check_trans()) {{ rtpengine_manage(); t_relay(); }}
        exit;
    }}
    if (has_totag()) {{
        if (!loose_route()) {{
            if (is_method("ACK") && t_check_trans()) t_relay();
            else if (!is_method("ACK")) sl_send_reply("404", "Not Here");
            exit;
        }}
    }} else {{
        t_check_trans();
        loose_route();
        if (!$var(inside)) {{
            if ($sht(registrars=>$rd) == $null
                || ($sht(registrars=>$rd) != $si && $sht(registrars=>$rd) != "[" + $si + "]")) {{
                sl_send_reply("403", "Not From There"); exit;
            }}
        }} else if (is_method("REGISTER")) {{
            $sht(registrars=>$(ct{{nameaddr.uri}}{{uri.host}})) = $nh(d);
            add_path();
        }}
        if (is_method("INVITE|SUBSCRIBE|REFER")) record_route();
    }}
    if (af == INET6) {{
        if ($var(inside)) $fs = $pr + ":[{outside6}]:5060"; else $fs = $pr + ":[{inside6}]:5060";
    }} else {{
        if ($var(inside)) $fs = $pr + ":{outside}:5060"; else $fs = $pr + ":{inside}:5060";
    }}
    if (is_method("BYE") || (is_method("INVITE|ACK|PRACK|UPDATE") && has_body())) route(MEDIA);
    if (is_method("INVITE|PRACK|UPDATE")) t_on_reply("MEDIA");
    if (is_method("INVITE")) t_on_failure("MEDIA");
    t_relay();
}}
route[MEDIA] {{
    if (dst_ip == {inside} || dst_ip == [{inside6}]) rtpengine_manage("{edits} direction=internal direction=external");
    else rtpengine_manage("{edits} direction=external direction=internal");
}}
onreply_route[MEDIA] {{
    if (has_body()) route(MEDIA);
}}
failure_route[MEDIA] {{
    if (!has_totag()) rtpengine_delete();
    if (t_check_status("503")) t_reply("503", "Service Unavailable");
}}
"""


class OutboundProxy:
    """Both, running on the router; UDP. AssertionError where they do not start."""

    def __init__(self, lab: Lab, children: int = CHILDREN, trying: bool = True, timeout: int = 60) -> None:
        """`trying`: whether Kamailio answers INVITE with 100; `timeout`: seconds without media that end a call."""
        assert RTPENGINE, "rtpengine is not on PATH"
        self.lab = lab
        self.address = ADDRESS
        # Of its defaults only what limits a town of phones is changed: a call's ports are free when it has ended, not
        # 30 seconds later, there are more than 10,000 of them, and it does not log every call.
        argv: list[str | Path] = [RTPENGINE, "--config-file=none", "--foreground", "--table=-1", "--log-stderr"]
        argv += ["--log-level=3", f"--listen-ng={CONTROL[0]}:{CONTROL[1]}", "--delete-delay=0"]
        argv += [f"--interface=internal/{ROUTER_IN4}", f"--interface=external/{ROUTER_OUT4}"]
        argv += [f"--interface=internal/{ROUTER_IN6}", f"--interface=external/{ROUTER_OUT6}", f"--timeout={timeout}"]
        argv += ["--port-min=10000", "--port-max=60000"]
        self.rtpengine = lab.popen("router", argv, log=lab.logs / "rtpengine.log")
        lab.wait_for(self._pongs, 15, "rtpengine to answer" + lab.tail_of_logs())
        home = lab.tmp / "kamailio-proxy"
        home.mkdir(exist_ok=True)
        libraries = LIBRARIES / "kamailio"
        config = home / "kamailio.cfg"
        config.write_text(
            _KAMAILIO.format(
                children=children,
                inside=ROUTER_IN4,
                outside=ROUTER_OUT4,
                inside6=ROUTER_IN6,
                outside6=ROUTER_OUT6,
                trying=int(trying),
                modules=libraries / "modules",
                control=CONTROL,
                edits=EDITS,
            )
        )
        program = unpacked("kamailio", "usr/sbin/kamailio")
        # Transactions stay for five seconds after their end: that is what the memory is for.
        argv = [program, "-f", config, "-DD", "-Y", home, "-m", "1024", "-M", "16", "-w", home]
        environment = {"LD_LIBRARY_PATH": str(libraries)}
        self.kamailio = lab.popen("router", argv, log=lab.logs / "kamailio-proxy.log", env=environment)
        lab.wait_for(self._serves, 15, "kamailio to answer" + lab.tail_of_logs())

    def _pongs(self) -> bool:
        assert self.rtpengine.poll() is None, "rtpengine ended" + self.lab.tail_of_logs()
        return b"pong" in self._asked(CONTROL, b"1 d7:command4:pinge")

    def _serves(self) -> bool:
        assert self.kamailio.poll() is None, "kamailio ended" + self.lab.tail_of_logs()
        options = (
            f"OPTIONS sip:{ADDRESS} SIP/2.0\r\nVia: SIP/2.0/UDP {ADDRESS};rport;branch=z9hG4bKup\r\nMax-Forwards: 0\r\n"
            f"From: <sip:lab@{ADDRESS}>;tag=1\r\nTo: <sip:{ADDRESS}>\r\nCall-ID: up\r\nCSeq: 1 OPTIONS\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        return self._asked((ADDRESS, 5060), options.encode()).startswith(b"SIP/2.0 483")

    def _asked(self, to: tuple[str, int], question: bytes) -> bytes:
        """What comes back for a datagram; nothing if nothing does."""
        with self.lab.enter("router"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            try:
                sock.sendto(question, to)
                return sock.recv(4096)
            except OSError:
                return b""

    def stop(self) -> None:
        """End both."""
        self.lab.stop(self.kamailio)
        self.lab.stop(self.rtpengine)
