"""What is nobody's business is in no line of the log, and in nothing that a command shows."""

from __future__ import annotations

import json

from tests.lab.lab import SERVER4, Lab

SECRET = "hunter2-Zwiebel"


def test_an_ftp_password_and_an_upstreams_are_nowhere(lab: Lab) -> None:
    server = lab.vsftpd()
    password = lab.tmp / "upstream.password"
    password.write_text(f"{SECRET}-upstream\n")
    upstream = {"name": "office", "kind": "socks5", "address": "203.0.113.10:1080", "user": "ann"}
    config = lab.write_config(
        upstream=[{**upstream, "password_file": str(password)}],
        rule=[
            {"action": "permit", "port": [21], "log": "info"},
            {"action": "permit", "via": "office", "command": ["connect"]},
        ],
        log={"format": "json"},
    )
    gateway = lab.start_gateway(config)
    with lab.connect("inside", SERVER4, 21) as control, control.makefile("rwb") as lines:
        assert lines.readline().startswith(b"220")
        for line in (
            b"USER ann",
            b"PASS " + SECRET.encode(),
            b"PASS  " + SECRET.encode() + b"\xff",
            b"ACCT x",
            b"PORT 1,2",
        ):
            lines.write(line + b"\r\n")
            lines.flush()
            lines.readline()
        shown = "".join(gateway.algate(what, "--json").stdout for what in ("status", "flows", "pinholes", "trace"))
        assert SERVER4 in shown
        lines.write(b"QUIT\r\n")
    gateway.wait_for_log('"event": "flow.end"')
    shown += gateway.algate("check").stdout + gateway.algate("check", "--json").stdout
    assert gateway.stop() == 0
    server.stop()
    said = gateway.log.read_text()
    assert SECRET not in said
    assert SECRET not in shown
    assert str(password) in shown
    events = {json.loads(line)["event"] for line in said.splitlines()}
    assert {"rule.permit", "flow.open", "flow.end"} <= events, "the log is there, and this is not vacuous"
