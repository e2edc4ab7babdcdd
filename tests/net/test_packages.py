"""What `make dist` and `make deb` build, installed where nothing else of algate is."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import namespaces

ROOT = Path(__file__).parents[2]
PAGE = "a page of this host\n"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def sources() -> list[str]:
    """The files of this tree that somebody wrote: what git knows, or in an unpacked source distribution all but what is
    made there."""
    if (ROOT / ".git").exists():
        names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
        return [name for name in names if (ROOT / name).is_file()]
    made = {".venv", "build", "dist", "__pycache__"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".so")
    return [str(path) for path in paths if not made.intersection(path.parts) and not path.parts[0].endswith("_cache")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def dist(directory: Path) -> Path:
    """What `make dist` leaves, made from a copy of what git knows: others may be at work in this very tree."""
    source, made = directory / "source", directory / "dist"
    for name in sources():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", made, source)
    return made


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@contextmanager
def web_server(netns: str, directory: Path) -> Iterator[None]:
    """Serves PAGE at 127.0.0.1:8000 of a new network namespace."""
    directory.mkdir()
    (directory / "index.html").write_text(PAGE)
    namespaces.add(netns)
    server = None
    try:
        server = subprocess.Popen(
            ["ip", "netns", "exec", netns, sys.executable, "-m", "http.server", "-b", "127.0.0.1", "8000"],
            cwd=directory,
            stderr=subprocess.DEVNULL,
        )
        yield
    finally:
        if server is not None:
            server.kill()
            server.wait()
        namespaces.remove(netns)


def is_served(netns: str, command: list[str | Path], log: Path, env: dict[str, str] | None = None) -> None:
    """Run a gateway in the namespace until it has fetched PAGE for a SOCKS client, and end it: exit code 0."""
    with log.open("w") as out:
        argv = ["ip", "netns", "exec", netns, *command]
        gateway = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        try:
            deadline = time.monotonic() + 30
            while "event=ready" not in log.read_text():
                assert gateway.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            client = ["curl", "-sS", "--retry", "20", "--retry-delay", "1", "--retry-all-errors"]
            fetch = [*client, "--socks5-hostname", "127.0.0.1:1080", "http://127.0.0.1:8000/"]
            assert run("ip", "netns", "exec", netns, *fetch) == PAGE
        finally:
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(20) == 0, log.read_text()


RULE = '[[rule]]\naction = "permit"\nto = ["127.0.0.1"]\nport = [8000]\n'


def test_the_wheel_has_what_is_no_python(wheel: Path, dist: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "iptables/algate.nft",
        "iptables/ipv4.rules",
        "iptables/ipv6.rules",
        "gateway/console/static/index.html",
        "gateway/supervisor/install/systemd/algate.service",
        "gateway/supervisor/install/systemd/algate.sysusers",
    ):
        assert name in names
    assert {name for name in sources() if re.fullmatch(r"(gateway|alg)/.*\.py", name)} <= names
    (sdist,) = dist.glob("*.tar.gz")
    inside = run("tar", "tf", sdist)
    assert "/tests/unit/test_config.py" in inside
    assert "/docs/reference/configuration.md" in inside


def test_the_wheel_in_a_fresh_environment(wheel: Path, directory: Path) -> None:
    venv = directory / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--quiet", "--no-compile", wheel)
    algate = venv / "bin" / "algate"
    assert "[socks]" in run(algate, "check", cwd=directory)
    config = directory / "algate.toml"
    config.write_text(f'[process]\nrun_dir = "{directory}/run"\nworkers = 1\n[console]\nlisten = ""\n{RULE}')
    netns = f"{namespaces.new_prefix()}wheel"
    with web_server(netns, directory / "www"):
        is_served(netns, [algate, "run", "-c", config], directory / "wheel.log")


@contextmanager
def throw_away_root(directory: Path) -> Iterator[Path]:
    """This host's files below a layer that takes all changes; skips where there can be no such layer."""
    upper, work, root = (directory / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir()
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    mounted = [root]
    try:
        for kind, name in (("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run"), ("tmpfs", "tmp")):
            run("mount", "-t", kind, kind, root / name)
            mounted.append(root / name)
        run("mount", "--bind", "/dev", root / "dev")
        mounted.append(root / "dev")
        yield root
    finally:
        for path in reversed(mounted):
            run("umount", "-l", path)


def files_of(upper: Path) -> set[str]:
    """What is in the layer but for what dpkg, ldconfig and the passwd programs write about themselves."""
    ours = (
        "etc/algate",
        "usr/lib/algate",
        "lib/systemd",
        "usr/bin",
        "usr/lib/sysusers",
        "usr/share",
        "etc/systemd",
        "run",
    )
    found = (str(path.relative_to(upper)) for path in upper.rglob("*") if path.is_file() and not path.is_symlink())
    return {name for name in found if name.startswith(ours) and "mandb" not in name}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")
def test_the_debian_package(wheel: Path, directory: Path) -> None:
    build = ROOT / "gateway/supervisor/install/debian/build"
    # Not compressed: that takes ten seconds.
    run(build, wheel, directory, env={"PYTHON": sys.executable, "DPKG_DEB_COMPRESSOR_TYPE": "none"})
    (package,) = directory.glob("*.deb")
    with throw_away_root(directory) as root:
        shutil.copy(package, root / "run" / "algate.deb")
        # No daemon of this host is to be touched: nothing is started, and there is no systemd in /run.
        chroot = ["unshare", "--net", "chroot", str(root)]
        run(*chroot, "dpkg", "--force-unsafe-io", "-i", "/run/algate.deb")
        assert "algate-worker" in run(*chroot, "algate", "check")
        for page in ("man1/algate.1.gz", "man1/algate-status.1.gz", "man5/algate.toml.5.gz"):
            assert (root / "usr/share/man" / page).exists()
        passwd = (root / "etc/passwd").read_text()
        assert all(f"\n{user}:" in passwd for user in ("algate", "algate-broker", "algate-worker"))

        with (root / "etc/algate/algate.toml").open("a") as config:
            config.write(RULE)
        unit = (root / "usr/lib/systemd/system/algate.service").read_text()
        capabilities = re.findall(r"CAP_(\w+)", re.findall(r"(?m)^AmbientCapabilities=(.*)$", unit)[0])
        given = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
        run(*chroot, "install", "-d", "-o", "algate", "-g", "algate", "/run/algate")
        as_service = ["setpriv", "--reuid=algate", "--regid=algate", "--clear-groups", "--no-new-privs"]
        as_service += [f"--inh-caps={given}", f"--ambient-caps={given}", f"--bounding-set={given}"]
        netns = f"{namespaces.new_prefix()}deb"
        with web_server(netns, directory / "www-deb"):
            command: list[str | Path] = ["chroot", root, *as_service, "algate", "run"]
            is_served(netns, command, directory / "deb.log", env={"RUNTIME_DIRECTORY": "/run/algate"})

        run(*chroot, "dpkg", "-r", "algate")
        assert (root / "etc/algate/algate.toml").exists(), "the configuration is the operator's until it is purged"
        assert not (root / "usr/lib/algate").exists()
        run(*chroot, "dpkg", "-P", "algate")
        assert not (root / "etc/algate").exists()
        assert files_of(directory / "upper") == set()
