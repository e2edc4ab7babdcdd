"""A module of another package on a router: that of docs/how-to/add-a-protocol.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab

MODULE = Path(__file__).parents[1] / "modules" / "callback_alg.py"
PORT = 7099


@pytest.fixture
def gateway(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway with the package installed, as pip would leave it."""
    site = lab.tmp / "site"
    info = site / "callback-1.0.dist-info"
    info.mkdir(parents=True)
    for folder in (lab.tmp, site, info):
        folder.chmod(0o755)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: callback\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[algate.alg]\ncallback = callback_alg:CallbackModule\n")
    (site / "callback_alg.py").write_text(MODULE.read_text())
    monkeypatch.setenv("PYTHONPATH", str(site))
    gateway = lab.start_gateway(lab.write_config(alg={"callback": {"ports": [PORT]}}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def test_on_a_router(lab: Lab, gateway: Gateway) -> None:
    rows = {row["name"]: row for row in json.loads(gateway.algate("modules", "--json").stdout)}
    assert rows["callback"]["ports"] == [PORT]
    with lab.listen("outside", SERVER4, PORT) as listener, lab.listen("inside", CLIENT4, 7100) as waiting:
        control = lab.connect("inside", SERVER4, PORT)
        server, _ = listener.accept()
        control.sendall(f"CALL {CLIENT4}:7100\r\n".encode())
        found = re.fullmatch(rb"CALL ([0-9.]+):([0-9]+)\r\n", server.recv(100))
        assert found is not None
        assert found[1].decode() != CLIENT4, lab.tail_of_logs()
        with lab.connect("outside", found[1].decode(), int(found[2])) as called, waiting.accept()[0] as answered:
            called.sendall(b"here I am")
            assert answered.recv(100) == b"here I am"
        control.close()
        server.close()
