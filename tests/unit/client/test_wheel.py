"""The wheel of the client's side alone, and the gateway without it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path: Path) -> None:
    build = [ROOT / "gateway/client/wheel/build", tmp_path]
    done = subprocess.run(build, capture_output=True, text=True, timeout=100, env={"PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        archive.extractall(tmp_path / "site")
    files = "address api bucket datagrams lines registry"
    own: tuple[str, ...] = (
        "alg/socks/",
        "alg/ftp/",
        "alg/text/",
        "gateway/client/",
        "alg/__init__.py",
        "gateway/__init__.py",
    )
    own += tuple(f"alg/{name}.py" for name in files.split())
    assert names
    assert all(name.startswith(own) and name.endswith(".py") for name in names)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import gateway.client as client, gateway.client.engine.program\n"
        "try:\n"
        "    client.connect('socks5://127.0.0.1:9', 'a.test', 80, 2)\n"
        "except client.ProxyError as error:\n"
        "    print('127.0.0.1' in str(error))\n"
        "from alg.address import Endpoint\n"
        "from gateway.client.engine.reader import module_for\n"
        "print(type(module_for('ftp', {}, Endpoint('10.0.2.100', 4000), Endpoint('192.0.2.1', 21))).__module__)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "site")]
    assert subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout == "True\nalg.ftp.session\n"


@pytest.mark.parametrize("module", ["gateway.process.worker", "gateway.process.broker", "gateway.supervisor.crew"])
def test_the_gateway_runs_without_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('gateway.client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
