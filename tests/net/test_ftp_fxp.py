"""Transfers between two servers (FXP): off, unless a rule of the command "fxp" names both.

Which rules do is in tests/unit/policy/test_transfers.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, STRANGER4, Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_control import Control
from tests.net.socks_wire import ask5

DATA = b"from server to server\n" * 10_000
REST = {"action": "permit", "command": ["connect", "transparent"]}
FXP = {"name": "mirrors", "action": "permit", "command": ["fxp"], "from": [CLIENT4]}
PROMISCUOUS = {"pasv_promiscuous": "YES", "port_promiscuous": "YES", "connect_from_port_20": "NO"}


@pytest.fixture(scope="module")
def pair(strict_lab: Lab) -> Iterator[tuple[FtpServer, FtpServer]]:
    """Two servers outside that would do it."""
    pair = strict_lab.vsftpd(**PROMISCUOUS), servers.vsftpd(strict_lab, PROMISCUOUS, "stranger")
    pair[0].put("pub/file", DATA)
    yield pair
    for server in pair:
        server.stop()


def control(lab: Lab, front: str, host: str) -> Control:
    """A control connection by one of the fronts, logged in."""
    if front == "transparent":
        connection = Control(lab, host)
    else:
        connection = Control(lab, ROUTER_IN4, 1080)
        assert ask5(connection.socket, host, 21)[0] == 0
    connection.login("anonymous", "guest")
    return connection


def started(lab: Lab, *rules: dict[str, Any]) -> Gateway:
    return lab.start_gateway(lab.write_config(rule=[*rules, REST]))


@pytest.mark.parametrize("front", ["transparent", "socks"])
def test_a_rule_that_names_both_servers(strict_lab: Lab, pair: tuple[FtpServer, FtpServer], front: str) -> None:
    gateway = started(strict_lab, {**FXP, "to": [SERVER4, STRANGER4]})
    source, sink = (control(strict_lab, front, host) for host in (SERVER4, STRANGER4))
    passive = sink.command("PASV")
    there = passive.partition("(")[2].partition(")")[0]
    assert there.startswith(STRANGER4.replace(".", ",")), passive
    assert source.command(f"PORT {there}").startswith("200")
    gateway.wait_for_log("alg.transfer .*permitted=true")
    assert {row["reason"] for row in gateway.admin("pinholes")} <= {"ftp.passive"}  # of PASV, not of PORT
    name = f"upload/{front}"
    sink.send(f"STOR {name}\r\n".encode())
    source.send(b"RETR pub/file\r\n")
    for connection in (source, sink):
        assert connection.reply().startswith("150")
        assert connection.reply().startswith("226")
    assert (pair[1].root / name).read_bytes() == DATA
    # Its own transfers are as ever, in the same session.
    listener = strict_lab.listen("inside", CLIENT4)
    numbers = f"{CLIENT4.replace('.', ',')},{listener.getsockname()[1] >> 8},{listener.getsockname()[1] & 255}"
    assert source.command(f"PORT {numbers}").startswith("200")
    source.send(b"RETR pub/file\r\n")
    data, _ = listener.accept()
    with data, data.makefile("rb") as file:
        assert file.read() == DATA
    for each in (listener, source, sink):
        each.close()
    assert gateway.stop() == 0


@pytest.mark.parametrize(
    ("rules", "third"),
    [
        ([], STRANGER4),
        ([{**FXP, "to": [SERVER4, "192.0.2.1"]}], STRANGER4),
        ([{**FXP, "to": ["0.0.0.0/0"]}], ROUTER_IN4),
    ],
    ids=["no rule", "one end", "the router"],
)
def test_off_without_such_a_rule(
    strict_lab: Lab, pair: tuple[FtpServer, FtpServer], rules: list[dict[str, Any]], third: str
) -> None:
    gateway = started(strict_lab, *rules)
    source = control(strict_lab, "transparent", SERVER4)
    source.command(f"PORT {third.replace('.', ',')},200,10")
    gateway.wait_for_log("alg.revoke .*rule=ftp.address")
    source.command(f"PORT {CLIENT4.replace('.', ',')},200,10")
    assert gateway.admin("pinholes") == []  # nor for itself any more
    source.close()
    assert gateway.stop() == 0
