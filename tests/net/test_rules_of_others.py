"""Datagrams that a module has read go through the operator's rules of the same table, as all others do."""

from __future__ import annotations

import socket

from tests.lab.lab import CLIENT4, SERVER4, Lab

OPTIONS = f"""OPTIONS sip:{SERVER4} SIP/2.0\r
Via: SIP/2.0/UDP {CLIENT4}:5066;branch=z9hG4bKseen\r
From: <sip:ann@example.test>;tag=near\r
To: <sip:bob@example.test>\r
Call-ID: priority\r
CSeq: 1 OPTIONS\r
Contact: <sip:ann@{CLIENT4}:5066>\r
Content-Length: 0\r
\r
""".encode()


def test_the_rules_of_others_see_what_modules_have_read(lab: Lab) -> None:
    """A phone's priority (DSCP) by the operator's rule in mangle FORWARD, behind ours. No mark of ours goes out."""
    phones = ["-p", "udp", "--dport", "5060"]
    others = [
        ["FORWARD", *phones, "-j", "DSCP", "--set-dscp-class", "EF"],
        ["POSTROUTING", *phones, "-m", "mark", "!", "--mark", "0", "-j", "TOS", "--set-tos", "4"],
    ]
    for rule in others:
        lab.run("router", ["iptables", "-t", "mangle", "-A", *rule])
    gateway = lab.start_gateway(lab.write_config())
    with lab.enter("inside"):
        near_end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near_end.bind((CLIENT4, 5066))
    with lab.enter("outside"):
        far_end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far_end.bind((SERVER4, 5060))
    far_end.settimeout(5)
    far_end.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    try:
        for data in (b"\r\n\r\n", OPTIONS):
            near_end.sendto(data, (SERVER4, 5060))
            got, ancillary, _, _ = far_end.recvmsg(2000, 100)
            assert (got[:3], ancillary[0][2][0]) == (data[:3], 0xB8)
        (status,) = [row for row in gateway.admin("status") if row["process"] == "packets"]
        assert status["edited"] > 0
    finally:
        assert gateway.stop() == 0
        for rule in others:
            lab.run("router", ["iptables", "-t", "mangle", "-D", *rule])
        lab.run("router", ["nft", "delete", "table", "ip", "mangle"], check=False)  # as the next test expects it
        near_end.close()
        far_end.close()
