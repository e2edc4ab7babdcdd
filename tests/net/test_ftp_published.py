"""Published FTP servers where it is hard: an INPUT policy of DROP, and clients that are inside themselves (hairpin)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_OUT4, ROUTER_OUT6, Lab, Role
from tests.lab.servers import FtpServer

PORT = 2121
WAYS = {
    "eprt": ["--ftp-port", "-"],
    "port": ["--ftp-port", "-", "--disable-eprt"],
    "epsv": [],
    "pasv": ["--disable-epsv", "--no-ftp-skip-pasv-ip"],
}


@pytest.fixture(scope="module", params=[True, False], ids=["input-drop", "input-accept"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(strict=True, input_drop=request.param, logs=tmp_path_factory.mktemp("lab")) as lab:
        yield lab
        assert lab.leftovers() == []


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    publish = [
        {"outside": f"{ROUTER_OUT4}:{PORT}", "inside": f"{CLIENT4}:21"},
        {"outside": f"[{ROUTER_OUT6}]:{PORT}", "inside": f"[{CLIENT6}]:21"},
    ]
    gateway = lab.start_gateway(lab.write_config(publish=publish))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[FtpServer]:
    server = servers.vsftpd(lab, {}, "inside")
    server.put("pub/here", b"x" * 50000)
    yield server
    server.stop()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("role", ["outside", "client2"])
def test_from_everywhere(lab: Lab, gateway: Gateway, server: FtpServer, role: Role, version: int, way: str) -> None:
    if version == 6 and way in ("port", "pasv"):
        pytest.skip("PORT and PASV are IPv4's")
    host = f"{ROUTER_OUT4 if version == 4 else f'[{ROUTER_OUT6}]'}:{PORT}"
    argv = ["curl", "-sS", "-m", "6", *WAYS[way], server.url("pub/here", host=host)]
    assert lab.run(role, argv).stdout == "x" * 50000
    lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    assert gateway.admin("pinholes") == []
