"""When certificates end: read off the file, and warned of before."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.load import load_config
from gateway.host.checks import _certificates
from gateway.model.certificates import end_of_authorities, end_of_chain, ends
from gateway.supervisor import certificate_watch
from gateway.supervisor.certificate_watch import CertificateWatch
from gateway.supervisor.shared_files import SharedFiles
from tests.lab.certificates import Authority

DAY = 86400


def made(directory: Path, name: str, days: int, *words: str) -> str:
    """A certificate that ends in so many days, with its key."""
    key, file = directory / f"{name}.key", directory / f"{name}.pem"
    kind: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv = [
        "openssl",
        "req",
        "-x509",
        *kind,
        "-days",
        str(days),
        "-subj",
        f"/CN={name}",
        *words,
        "-keyout",
        key,
        "-out",
        file,
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return file.read_text() + key.read_text()


@pytest.mark.parametrize("days", [1, 30, 3650, 36500])
def test_the_end_is_that_of_openssl(tmp_path: Path, days: int) -> None:
    """The last one is after 2049, where the form of the time is another one."""
    text = made(tmp_path, "one", days)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-enddate"], input=text, capture_output=True, text=True, check=True
    )
    assert ends(text) == [ssl.cert_time_to_seconds(shown.stdout.partition("=")[2].strip())]


def test_a_chain_ends_with_its_first_one_and_authorities_with_the_next(tmp_path: Path) -> None:
    texts = [made(tmp_path, f"of-{days}", days) for days in (90, 10, 400)]
    now = time.time()
    first, second, third = (ends(text)[0] for text in texts)
    whole = "a comment\r\n" + "\n".join(texts)
    assert end_of_chain(whole) == second
    assert end_of_authorities(whole, now) == second
    assert end_of_authorities(whole, second + 1) == first, "the old one beside its successors says nothing"
    assert end_of_authorities(whole, third + 1) == third


@given(st.binary(max_size=200))
def test_what_is_no_certificate(der: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong
        ends(ssl.DER_cert_to_PEM_cert(der))


@given(st.data())
def test_a_certificate_with_changed_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """An end, or a ValueError; nothing else."""
    der = bytearray(_some(tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        ends(ssl.DER_cert_to_PEM_cert(bytes(der[: data.draw(st.integers(1, len(der)))])))
    except ValueError:
        pass


_kept: list[bytes] = []


def _some(factory: pytest.TempPathFactory) -> bytes:
    if not _kept:
        text = made(factory.mktemp("certificate"), "some", 30)
        _kept.append(ssl.PEM_cert_to_DER_cert(text[: text.index("-----BEGIN PRIVATE")].strip()))
    return _kept[0]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a listener inside TLS and an upstream inside TLS."""
    authority = Authority(tmp_path)
    (tmp_path / "proxy.pem").write_text(made(tmp_path, "proxy.example", 5))
    (tmp_path / "ours.pem").write_text(made(tmp_path, "ours.example", 400))
    file = tmp_path / "algate.toml"
    file.write_text(
        f"""
[network]
inside = ["192.168.56.0/24"]
[socks]
listen = ["127.0.0.1:1080"]
[socks.tls]
listen = ["127.0.0.1:1443"]
certificate = "{tmp_path}/proxy.pem"
client_ca = "{authority.file}"
[[upstream]]
name = "office"
kind = "socks5"
address = "proxy.example:1443"
tls = true
ca = "{authority.file}"
certificate = "{tmp_path}/ours.pem"
[[rule]]
action = "permit"
via = ["office"]
"""
    )
    return file


def test_the_doctor_says_which_ones_end_soon(config: Path) -> None:
    found = {finding.check: finding for finding in _certificates(load_config(str(config)))}
    assert {name: finding.status for name, finding in found.items()} == {
        "certificate socks.tls.certificate": "warning",
        "certificate socks.tls.client_ca": "warning",
        "certificate upstream[0].ca": "warning",
        "certificate upstream[0].certificate": "ok",
    }
    one = found["certificate socks.tls.certificate"]
    assert one.detail == "ends on " + time.strftime("%Y-%m-%d", time.gmtime(time.time() + 5 * DAY))
    assert one.remedy.endswith("proxy.pem")


def test_the_supervisor_warns_once_a_day(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, object]] = []
    monkeypatch.setattr(certificate_watch.log, "warning", lambda event, **words: said.append({"event": event, **words}))
    loaded = load_config(str(config))
    files = SharedFiles(loaded)
    watch = CertificateWatch()
    watch.tick(1.0, loaded, files)
    assert [words["key"] for words in said] == ["socks.tls.certificate", "socks.tls.client_ca", "upstream[0].ca"]
    assert said[0]["days"] in (4, 5)
    assert {key for (_, key), _ in watch.samples()} == {
        "socks.tls.certificate",
        "socks.tls.client_ca",
        "upstream[0].ca",
        "upstream[0].certificate",
    }
    watch.look_soon()
    watch.tick(2.0, loaded, files)
    assert len(said) == 3, "not again on the same day"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + DAY + 1)
    watch.tick(2.0 + DAY, loaded, files)
    assert len(said) == 6
    Path(loaded.socks.tls.certificate).write_text(made(config.parent, "renewed", 90))
    assert "certificate" in files.refresh()
    watch.look_soon()
    monkeypatch.setattr(time, "time", lambda: now + 2 * DAY + 2)
    watch.tick(3.0 + DAY, loaded, files)
    assert [words["key"] for words in said[6:]] == ["socks.tls.client_ca", "upstream[0].ca"]
    files.close()
