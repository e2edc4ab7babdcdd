"""Modules of another package on a router (tests/modules/odd_alg.py, as docs/how-to/add-a-protocol.md has them) that
fail in every call that is made to them. What they read goes on as it came, and no other module suffers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.observe.admin import ask
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.lab.udp import Udp
from tests.net.udp_client import associate

MODULE = Path(__file__).parents[1] / "modules" / "odd_alg.py"
DATAGRAMS = {
    "unmade": 7001,
    "raises": 7002,
    "loops": 7003,
    "elsewhere": 7004,
    "mute": 7005,
    "talks": 7006,
    "late": 7007,
}
CLASSES = {
    "unmade": "Unmade",
    "raises": "Raises",
    "loops": "Loops",
    "mute": "Mute",
    "talks": "Talks",
    "late": "LateClock",
}
EDITED = frozenset({"mute", "talks"})
WANTS, LOCKED = 7010, 7011


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    site = lab.tmp / "odd"
    info = site / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    for folder in (lab.tmp, site, info):
        folder.chmod(0o755)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    entries = "\n".join(f"{name} = odd_alg:{made_by}" for name, made_by in CLASSES.items())
    streams = "[algate.alg]\nwants = odd_alg:Wants\nlocked = locked_alg:Wants\n"
    (info / "entry_points.txt").write_text(f"{streams}[algate.datagram]\n{entries}\nelsewhere = locked_alg:Plain\n")
    for name in ("odd", "locked"):
        (site / f"{name}_alg.py").write_text(MODULE.read_text())
    (site / "locked_alg.py").chmod(0o600)  # the supervisor is root, and no other process is
    alg = {name: {"ports": [port], "transports": ["udp"]} for name, port in DATAGRAMS.items()}
    alg |= {"wants": {"ports": [WANTS], "greeting": "good day"}, "locked": {"ports": [LOCKED]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        gateway = lab.start_gateway(
            lab.write_config(alg=alg, process={"workers": 1, "run_dir": str(lab.tmp / "odd-run")})
        )
        yield gateway
        assert gateway.stop() == 0, lab.tail_of_logs()


def passed(name: str, sent: bytes) -> list[bytes]:
    """What may come of a datagram. The module whose clock hangs serves until it is out."""
    edited = b"!" + sent[1:]
    return [edited] if name in EDITED else [edited, sent] if name == "late" else [sent]


def broken(gateway: Gateway, name: str) -> list[str]:
    return [line for line in gateway.log_lines() if "alg.broken" in line and f"module={name}" in line]


def packets_pid(gateway: Gateway) -> int:
    [pid] = [row["pid"] for row in json.loads(gateway.algate("status", "--json").stdout) if row["process"] == "packets"]
    return int(pid)


@pytest.mark.parametrize("name", DATAGRAMS)
def test_datagrams_go_on_as_they_came(lab: Lab, gateway: Gateway, name: str) -> None:
    pid, port = packets_pid(gateway), DATAGRAMS[name]
    with Udp(lab, "inside", CLIENT4) as client, Udp(lab, "outside", SERVER4, port) as server:
        for number in range(5):
            sent = b"%d: \0\xff as it came" % number
            client.send(sent, (SERVER4, port))
            data, public = server.receive()
            assert data in passed(name, sent), lab.tail_of_logs()
            server.send(sent, public)
            assert client.receive()[0] == data
    assert packets_pid(gateway) == pid, lab.tail_of_logs()
    if name not in EDITED:
        gateway.wait_for_log(f"alg.broken.*module={name}")
        assert len(broken(gateway, name)) <= 2, "once for each process that has it"


@pytest.mark.parametrize("name", DATAGRAMS)
def test_those_of_a_socks_client_too(lab: Lab, gateway: Gateway, name: str) -> None:
    port = DATAGRAMS[name]
    client = associate(lab)
    with Udp(lab, "outside", SERVER4, port) as server:
        for number in range(3):
            sent = b"%d: over SOCKS" % number
            client.send(SERVER4, port, sent)
            data, public = server.receive()
            assert data in passed(name, sent), lab.tail_of_logs()
            server.send(sent, public)
            assert client.receive() == (SERVER4, port, data)
    client.close()


def test_what_people_ask_is_answered(lab: Lab, gateway: Gateway) -> None:
    """Status, metrics and calls of all other modules, though some of these cannot be asked."""
    pid = packets_pid(gateway)
    assert gateway.algate("calls").returncode == 0
    for child in ("packets", "worker-0"):
        [row] = ask(str(lab.tmp / "odd-run" / f"{child}.sock"), "metrics", 5)
        assert row["samples"]
    assert gateway.algate("kick", "nothing-has-this-id", check=False).returncode != 0
    assert packets_pid(gateway) == pid


def test_a_module_declares_what_it_wants(lab: Lab, gateway: Gateway) -> None:
    with lab.listen("outside", SERVER4, WANTS) as listener, lab.listen("inside", CLIENT4, 7100) as waiting:
        client = lab.connect("inside", SERVER4, WANTS)
        server, peer = listener.accept()
        server.settimeout(5)
        client.sendall(b"open\n")
        assert server.recv(100) == b"open\n"
        found = re.fullmatch(rb"opened ([0-9]+)\n", client.recv(100))
        assert found is not None, lab.tail_of_logs()
        with lab.connect("outside", peer[0], int(found[1])) as called, waiting.accept()[0] as answered:
            called.sendall(b"here I am")
            assert answered.recv(100) == b"here I am"
        client.sendall(b"anybody\n")
        assert server.recv(100) == b"anybody\n"
        assert re.fullmatch(rb"refused [a-z.-]+\n", client.recv(100)), "it has not declared that kind"
        client.sendall(b"my secret\n")
        assert server.recv(100) == b"my secret\n"
        assert client.recv(100) == b"good day\n"
        shown = gateway.algate("trace", "--json").stdout
        assert "my ******" in shown
        assert "my secret" not in shown
        for piece in (b"hold\n", b"x" * 200):  # no more than it may hold back
            client.sendall(piece)
        client.close()
        server.close()


def test_a_stream_module_that_only_the_supervisor_can_import(lab: Lab, gateway: Gateway) -> None:
    with lab.listen("outside", SERVER4, LOCKED) as listener:
        client = lab.connect("inside", SERVER4, LOCKED)
        server, _ = listener.accept()
        client.sendall(b"my secret\n")
        assert server.recv(100) == b"my secret\n"
        client.close()
        server.close()
    gateway.wait_for_log("alg.broken.*module=locked.*PermissionError")
