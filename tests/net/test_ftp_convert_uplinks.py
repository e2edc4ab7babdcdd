"""`[alg.ftp] convert = "active"` on routers of all kinds: routed, with pools, with several uplinks. The data come from
where the control connection comes from, or servers refuse them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import uplinks
from tests.lab.lab import SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer
from tests.net.test_uplinks import SETUPS, TEXT, Router


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def router(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    setup = SETUPS[request.param]
    with Lab(logs=tmp_path_factory.mktemp("lab"), nat4=setup.nat4, nat6=setup.nat6) as lab:
        setup.prepare(lab)
        uplinks.rebase(lab)
        config = lab.write_config(
            network={"inside": list(setup.inside)}, process={"workers": 1}, alg={"ftp": {"convert": "active"}}
        )
        gateway = lab.start_gateway(config)
        yield Router(lab, gateway, setup)
        assert gateway.stop() == 0, lab.tail_of_logs()
        assert lab.leftovers() == []


@pytest.fixture(scope="module", params=["vsftpd", "pure_ftpd"])
def server(request: pytest.FixtureRequest, router: Router) -> Iterator[FtpServer]:
    options = {"port_enable": "NO"} if request.param == "vsftpd" else {}
    server: FtpServer = getattr(router.lab, request.param)(**options)
    (server.root / "pub/file").write_text(TEXT)
    yield server
    server.stop()


@pytest.mark.parametrize("version", [4, 6])
def test_an_active_client(router: Router, server: FtpServer, version: int) -> None:
    setup = router.setup
    host = setup.server if version == 4 else setup.server6
    if host is None:
        pytest.skip("this router is about IPv4")
    url = server.url("pub/file", version).replace(SERVER4 if version == 4 else SERVER6, host)
    argv = ["curl", "-sS", "--max-time", "20", "--ftp-port", "-", url]
    assert router.lab.run("inside", argv).stdout == TEXT
    router.gateway.wait_for_log("alg.edit.*ftp.convert")
