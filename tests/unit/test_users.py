"""The users file and the command that writes it."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.pretty import pretty_repr

from gateway.cli.main import cli
from gateway.model.errors import AlgateError
from gateway.policy.users import HASHER, BadUsers, User, parse_users, with_user

HASH = HASHER.hash("secret")


def test_a_users_file() -> None:
    users = parse_users(f"# people\n\nann:{HASH}:staff,admin\nbob:{HASH}\neve:*:guests\n")
    assert users == {
        "ann": User("ann", HASH, ("staff", "admin")),
        "bob": User("bob", HASH),
        "eve": User("eve", "*", ("guests",)),
    }
    assert HASH not in repr(users) + pretty_repr(users["ann"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann", "line 1: is not NAME:HASH"),
        (f"\nann:{HASH}:a:b", "line 2: is not NAME:HASH"),
        ("ann:secret", "line 1: the second field is not an argon2id hash"),
        (f"ann:{HASH}\nann:{HASH}", "line 2: ann was there already"),
        (f"a b:{HASH}", "line 1: 'a b' is not a user name"),
        (f"{'x' * 256}:{HASH}", "is not a user name"),
        (f"ann:{HASH}:a b", "line 1: 'a b' is not the name of a group"),
        ("ann:" + HASH.replace("argon2id", "argon2i"), "line 1: the hash is not argon2id"),
        ("ann:" + HASH.replace("m=19456", "m=4000000"), "line 1: the hash takes more memory"),
    ],
    ids=map(str, range(9)),  # the hash is another one in each process that collects the tests
)
def test_a_bad_line_is_named_and_a_hash_is_not_repeated(text: str, message: str) -> None:
    with pytest.raises(BadUsers) as caught:
        parse_users(text)
    assert message in str(caught.value)
    assert "$argon2" not in str(caught.value)


def test_changing_one_user_leaves_the_rest() -> None:
    text = f"# people\nann:{HASH}:staff\nbob:{HASH}\n"
    assert with_user(text, "ann", "X") == f"# people\nann:X:staff\nbob:{HASH}\n"
    assert with_user(text, "eve", "X") == f"{text}eve:X\n"
    assert with_user("", "eve", "X") == "eve:X\n"


def passwd(file: Path, user: str, line: str) -> None:
    result = CliRunner().invoke(cli, ["passwd", str(file), user], input=line, catch_exceptions=False)
    assert result.exit_code == 0
    assert line.strip() not in result.output


def test_passwd_makes_and_changes_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "users"
    passwd(file, "ann", "first\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.stat().st_ino
    passwd(file, "ann", "second\n")
    assert file.stat().st_ino != before  # replaced as a whole
    users = parse_users(file.read_text())
    assert HASHER.verify(users["ann"].hash, "second")
    assert os.listdir(tmp_path) == ["users"]


@pytest.mark.parametrize(
    ("user", "line", "message"),
    [("ann", "\n", "1 to 255 bytes"), ("ann", "x" * 256 + "\n", "1 to 255 bytes"), ("a:b", "secret\n", "user name")],
)
def test_passwd_refuses(tmp_path: Path, user: str, line: str, message: str) -> None:
    with pytest.raises(AlgateError, match=message):
        CliRunner().invoke(cli, ["passwd", str(tmp_path / "users"), user], input=line, catch_exceptions=False)
    assert not os.listdir(tmp_path)


def test_passwd_does_not_spoil_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("not a users file\n")
    with pytest.raises(AlgateError, match="line 1"):
        CliRunner().invoke(cli, ["passwd", str(file), "ann"], input="secret\n", catch_exceptions=False)
    assert file.read_text() == "not a users file\n"


def test_passwd_asks_twice_at_a_terminal_and_echoes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "users"
    ours, theirs = pty.openpty()
    command = [Path(sys.executable).parent / "algate", "passwd", file, "ann"]
    argv = ["setsid", "--ctty", "--wait", *map(str, command)]  # as getpass opens the controlling terminal
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        for prompt in (b"Password: ", b"confirmation: "):
            while prompt not in seen:
                seen += os.read(ours, 1024)
            os.write(ours, b"hidden\n")
        assert process.wait(10) == 0
    try:
        while data := os.read(ours, 1024):
            seen += data
    except OSError:  # the terminal is gone
        pass
    os.close(ours)
    assert b"hidden" not in seen
    assert HASHER.verify(parse_users(file.read_text())["ann"].hash, "hidden")
