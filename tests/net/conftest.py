"""Fixtures of the tests in namespaces.

A lab takes about 0.1 s, a gateway about a second: so one lab a module, and a gateway a module where a test does not
kill or change it. After every test the labs in use are searched for what the test left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.kerberos import Kerberos
from tests.lab.lab import ROUTER_IN4, Lab
from tests.lab.servers import FtpServer
from tests.net.broker_rig import Phones, Rig
from tests.net.steady_load import Greeter

HERE = Path(__file__).parent
_labs: list[Lab] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.net)


def _lab(logs: Path, strict: bool) -> Iterator[Lab]:
    with Lab(strict=strict, logs=logs) as lab:
        _labs.append(lab)
        try:
            yield lab
        finally:
            _labs.remove(lab)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A router as most homes have it: FORWARD policy DROP, inside to outside accepted."""
    yield from _lab(tmp_path_factory.mktemp("lab"), strict=False)


@pytest.fixture(scope="module")
def strict_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A router that forwards nothing but TCP to port 21: all data has to be admitted by the gateway."""
    yield from _lab(tmp_path_factory.mktemp("strict-lab"), strict=True)


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """A gateway with the lab's own configuration, for tests that neither kill nor change it."""
    gateway = lab.start_gateway()
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[FtpServer]:
    """An FTP server outside."""
    server = lab.vsftpd()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def kerberos(lab: Lab) -> Iterator[Kerberos]:
    """A realm whose service is the router's SOCKS server."""
    kerberos = Kerberos(lab, ROUTER_IN4)
    yield kerberos
    kerberos.stop()


@pytest.fixture(scope="module")
def greeter(lab: Lab) -> Iterator[Greeter]:
    """A server outside that says hello."""
    greeter = Greeter(lab)
    yield greeter
    greeter.close()


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A broker in a router of its own. `@pytest.mark.rig(...)`: options of `Rig`. Its log is `tmp_path / "log"`."""
    marker = request.node.get_closest_marker("rig")
    with Rig(tmp_path, log=tmp_path / "log", **(marker.kwargs if marker is not None else {})) as rig:
        yield rig


@pytest.fixture
def phones(rig: Rig) -> Iterator[Phones]:
    """UDP sockets in the rig's namespaces."""
    phones = Phones(rig)
    yield phones
    phones.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Processes, rules, tables and sockets that nobody is meant to have, after each test."""
    yield
    for lab in _labs:
        assert lab.leftovers() == [], lab.tail_of_logs()
