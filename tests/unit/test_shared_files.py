"""The files that only the supervisor may read: what is handed over, and what never is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.config.load import parse_config
from gateway.model.errors import ConfigError
from gateway.policy.users import HASHER
from gateway.supervisor.shared_files import SharedFiles

LINE = f"ann:{HASHER.hash('secret')}\n"


def shared(users: Path, auth: str = '["password"]', keytab: Path = Path("/none")) -> SharedFiles:
    text = f'[socks]\nauth = {auth}\nusers = "{users}"\n[socks.gssapi]\nkeytab = "{keytab}"\n'
    return SharedFiles(parse_config(text, "f.toml"))


def content(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").read_text()


def test_a_change_is_seen_once_and_a_mistake_is_not_handed_over(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(LINE)
    files = shared(file)
    try:
        assert content(files.fds()["users"]) == LINE
        assert files.refresh() == {}
        file.write_text(LINE + "# more\n")
        assert content(files.refresh()["users"]) == LINE + "# more\n"
        assert files.refresh() == {}
        file.write_text("broken")
        assert files.refresh() == {}
        file.unlink()
        assert files.refresh() == {}
        assert content(files.fds()["users"]) == LINE + "# more\n"
        file.write_text(LINE)
        assert content(files.refresh()["users"]) == LINE
    finally:
        files.close()


def test_refreshing_leaks_no_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(LINE)
    files = shared(file)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        file.write_text(LINE + "#" * number + "\n")
        files.refresh()
    assert len(os.listdir("/proc/self/fd")) == before
    files.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "socks.users: .*/users: cannot be read: No such file"),
        ("ann", "socks.users: .*/users: line 1: is not NAME:HASH"),
        ("x" * 5_000_000, "is larger than"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_the_configuration(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "users"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        shared(file)


def test_without_passwords_the_users_file_may_be_absent(tmp_path: Path) -> None:
    assert not shared(tmp_path / "users", '["ident"]')
    assert not shared(tmp_path / "users", '["none"]')
    (tmp_path / "users").write_text("ann:*:staff\n")
    assert not shared(tmp_path / "users", '["none"]')
    files = shared(tmp_path / "users", '["ident"]')
    assert files.fds()
    files.close()


def test_a_keytab_is_needed_for_gssapi(tmp_path: Path) -> None:
    pytest.importorskip("gssapi")
    keytab = tmp_path / "keytab"
    with pytest.raises(ConfigError, match=r"socks\.gssapi\.keytab: .*cannot be read"):
        shared(tmp_path / "users", '["gssapi"]', keytab)
    keytab.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is not a keytab"):
        shared(tmp_path / "users", '["gssapi"]', keytab)
