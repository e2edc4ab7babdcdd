"""The command line as a user and as a script see it: exit codes, colour, JSON, completion, status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from gateway.cli.main import cli
from gateway.cli.output import sparkline, table_of
from gateway.cli.reference.commands import below_of
from gateway.cli.status import Samples

ALGATE = Path(sys.executable).parent / "algate"
COLOUR = "\x1b["


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [ALGATE, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=60
    )


def on_a_terminal(
    *arguments: str | Path, env: dict[str, str] | None = None, until: str = "", deadline: float = 20
) -> str:
    """What a terminal of 100 columns shows. With `until` the command is interrupted when that is seen."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **(env or {})}
    environment = {key: value for key, value in environment.items() if value}
    process = subprocess.Popen([ALGATE, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown, end = "", time.monotonic() + 20
    with contextlib.suppress(OSError):  # the terminal is gone when the command has ended
        while time.monotonic() < end and select.select([ours], [], [], end - time.monotonic())[0]:
            shown += os.read(ours, 65536).decode(errors="replace")
            if until and re.search(until, shown):
                process.send_signal(signal.SIGINT)
                until = ""
    os.close(ours)
    assert process.wait(10) == 0, shown
    return shown


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    directory.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = directory / "algate.toml"
    path.write_text(
        f'[socks]\nlisten = ["127.0.0.1:{port}"]\n[process]\nrun_dir = "{directory}/run"\nworkers = 1\n'
        '[dns]\nservers = ["127.0.0.1:1"]\ntimeout = 0.2\n[console]\nlisten = ""\n'
        '[[rule]]\naction = "permit"\nto = ["127.0.0.1"]\n'
    )
    return path


@pytest.fixture(scope="module")
def gateway(config: Path) -> Iterator[tuple[Path, int]]:
    """A gateway for this machine, and its SOCKS port."""
    log = config.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen([ALGATE, "run", "-c", config], stderr=out)
    deadline = time.monotonic() + 20
    while "event=ready" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    port = re.search(r"127\.0\.0\.1:(\d+)", config.read_text())
    assert port
    yield config, int(port[1])
    process.terminate()
    assert process.wait(20) == 0, "SIGTERM ends it with 0"


@pytest.fixture
def flow(gateway: tuple[Path, int]) -> Iterator[socket.socket]:
    """The client's end of a flow whose server sends without end."""
    stop = threading.Event()

    def send() -> None:
        with server.accept()[0] as connection:
            connection.settimeout(1)
            while not stop.wait(0.01):
                with contextlib.suppress(TimeoutError):
                    connection.send(b"x" * 65536)

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("127.0.0.1", gateway[1])) as client,
    ):
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        client.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + server.getsockname()[1].to_bytes(2, "big"))
        answer = b""
        while len(answer) < 12:
            answer += client.recv(12 - len(answer))
        assert answer[:4] == b"\5\0\5\0"
        reader = threading.Thread(target=lambda: _read(client, stop), daemon=True)
        reader.start()
        yield client
        stop.set()
        thread.join(5)
        reader.join(5)


def _read(client: socket.socket, stop: threading.Event) -> None:
    client.settimeout(0.5)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            if not client.recv(65536):
                return


# --- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], 0, "algate, version "),
        (["check", "-c", "GOOD"], 0, "[socks]"),
        (["check", "-c", "BAD"], 2, "algate: BAD:2: socks.lisen: unknown key"),
        (["run", "-c", "BAD"], 2, "algate: BAD:2: socks.lisen: unknown key"),
        (["status", "-c", "BAD"], 2, "algate: BAD:2: socks.lisen: unknown key"),
        (["check", "-c", "NOWHERE"], 2, "algate: NOWHERE: cannot be read: No such file or directory"),
        (["status", "-c", "GOOD"], 1, "algate: no gateway is running (there is no socket in "),
        (["kick", "x", "-c", "GOOD"], 1, "algate: no gateway is running"),
        (["reload", "-c", "GOOD"], 1, "algate: no gateway is running"),
        (["nonsense"], 2, "Error: No such command 'nonsense'."),
        (["chek"], 2, "Error: No such command 'chek'. Did you mean 'check'?"),
        (["check", "--nonsense"], 2, "Error: No such option"),
        (["status", "--json", "--watch", "-c", "GOOD"], 2, "--watch is for people"),
        (
            ["check", "-c", "GOOD", "--explain", "connect to nowhere"],
            2,
            "algate: --explain: 'connect to nowhere' is not",
        ),
        (
            ["check", "-c", "GOOD", "--explain", "connect 127.0.0.1 -> 3074"],
            2,
            "algate: --explain: '3074' is not HOST:PORT",
        ),
    ],
)
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    good, bad, nowhere = tmp_path / "good.toml", tmp_path / "bad.toml", tmp_path / "nowhere.toml"
    good.write_text(f'[process]\nrun_dir = "{tmp_path}/run"\n')
    bad.write_text("[socks]\nlisen = []\n")
    names = {"GOOD": str(good), "BAD": str(bad), "NOWHERE": str(nowhere)}
    done = run(*(names.get(argument, argument) for argument in arguments))
    for name, path in names.items():
        said = said.replace(name, path)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stdout == "", "what is for a pipe is not mixed with errors"


def test_every_command_takes_a_configuration() -> None:
    """But those that are clients of a gateway: what they need to know is which one."""
    clients = {"exec", "ftp", "telnet", "finger", "whois"}
    context = click.Context(cli)
    found = below_of(cli, context)
    assert clients <= set(found)
    commands = [command for name, command in found.items() if name not in clients]
    while commands:
        command = commands.pop()
        if isinstance(command, click.Group):
            commands += below_of(command, context).values()
        else:
            assert any("-c" in option.opts for option in command.params), command.name


def test_no_extra_is_needed_to_load_it() -> None:
    """A SOCKS server needs no GSSAPI."""
    absent = "import sys; sys.modules.update(dict.fromkeys(('gssapi',))); "
    code = absent + "import gateway.cli.run, gateway.cli.check, gateway.process.worker"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what is printed --------------------------------------------------------------------------------------------------


def test_colour_is_for_terminals_that_want_it(gateway: tuple[Path, int]) -> None:
    config, _ = gateway
    asked: list[str | Path] = ["check", "-c", config, "--explain", "connect 127.0.0.1 -> 127.0.0.1:1"]
    assert COLOUR in on_a_terminal(*asked, env={"NO_COLOR": ""})
    without = on_a_terminal(*asked, env={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", without), "no colour"
    assert COLOUR not in run(*asked).stdout
    assert COLOUR not in run("status", "-c", config).stdout


def test_a_mapping_is_asked_for_by_the_clients_own_port(tmp_path: Path) -> None:
    """It leads to the client itself, so no host is named."""
    config = tmp_path / "map.toml"
    config.write_text(
        '[network]\ninside = ["192.168.56.0/24"]\n'
        '[[rule]]\nname = "games"\naction = "permit"\ncommand = ["map"]\nport = [3074]\n'
    )
    for port, decision, rule in ((3074, "permit", "games"), (3075, "deny", "none")):
        words: list[str | Path] = ["check", "-c", config, "--json", "--explain", f"map 192.168.56.10 -> {port}"]
        (explained,) = json.loads(run(*words).stdout)
        assert (explained["decision"], explained["rule"]) == (decision, rule)
        assert (explained["host"], explained["port"]) == ("192.168.56.10", port)


def test_json_is_one_array_of_objects(gateway: tuple[Path, int], flow: socket.socket) -> None:
    config, _ = gateway
    asked = ["connect 127.0.0.1 -> 127.0.0.1:1", "--json"]
    commands = [["status"], ["flows"], ["pinholes"], ["calls"], ["trace"], ["doctor"], ["check"]]
    for command in [*([*command, "--json"] for command in commands), ["check", "--explain", *asked]]:
        done = run(*command, "-c", config)
        assert done.returncode == 0 or command[0] == "doctor", done.stderr
        rows = json.loads(done.stdout)
        assert isinstance(rows, list), command
        assert all(isinstance(row, dict) for row in rows), command
    config_of_a_router = config.with_name("router.toml")
    config_of_a_router.write_text('[network]\ninside = ["192.168.56.0/24"]\ninside_interfaces = ["eth1"]\n')
    rows = json.loads(run("rules", "show", "--json", "-c", config_of_a_router).stdout)
    assert [(row["family"], row["rules"] is None) for row in rows] == [("ipv4", False), ("ipv6", True)]
    (row,) = json.loads(run("flows", "--json", "-c", config).stdout)
    assert row["client"].startswith("127.0.0.1:")
    began = datetime.fromisoformat(row["since"])  # in UTC, as the log has it
    assert row["since"].endswith("Z")
    assert timedelta() <= datetime.now(UTC) - began < timedelta(minutes=5)
    (explained,) = json.loads(run("check", "--explain", *asked, "-c", config).stdout)
    assert (explained["decision"], explained["rule"]) == ("permit", "rule[0]")


def test_addresses_of_ipv6_are_no_markup() -> None:
    """rich would read "[fd00::1]" as an instruction."""
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as shown:
        console.print(table_of([{"client": "[fd00:56::10]:5060", "server": None}], ["client", "server"]))
    assert "[fd00:56::10]:5060" in shown.get()


# --- status -----------------------------------------------------------------------------------------------------------


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 7], 6) == "  ▁▂▃█"
    assert sparkline([5, 5], 2) == "██"
    assert sparkline([0, 0], 3) == " ▁▁"
    assert sparkline(range(100), 4) == "████"
    assert sparkline([], 2) == "  "


def test_a_replaced_process_gives_no_negative_rate() -> None:
    samples = Samples([{"process": "worker-0", "flows": 2, "finished": 100, "up": 5000, "down": 7000}])
    samples.add([{"process": "worker-0", "flows": 1, "finished": 0, "up": 10, "down": 10}])
    assert samples.line() == "flows=1 new/s=0 up_bytes/s=0 down_bytes/s=0"


def test_status_draws_on_a_terminal(gateway: tuple[Path, int], flow: socket.socket) -> None:
    shown = on_a_terminal("status", "-c", gateway[0])
    assert "worker-0" in shown
    assert re.search(r"to clients\s+(?:\x1b\[[0-9;]*m)*[▁-█]{2,}", shown)
    assert re.search(r"[0-9.]+ [kMG]B/s", shown)


def test_status_watches_until_interrupted(gateway: tuple[Path, int], flow: socket.socket) -> None:
    shown = on_a_terminal("status", "--watch", "-c", gateway[0], until=r"[0-9.]+ [kMG]B/s")
    assert re.search(r"[▁-█]", shown)


def test_status_watches_in_a_pipe(gateway: tuple[Path, int], flow: socket.socket) -> None:
    with subprocess.Popen(
        [ALGATE, "status", "--watch", "-c", gateway[0]], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    found = re.fullmatch(r"flows=1 new/s=0 up_bytes/s=0 down_bytes/s=(\d+)\n", line)
    assert found, line
    assert int(found[1]) > 1000


# --- completion -------------------------------------------------------------------------------------------------------


def test_bash_completes_commands_and_options() -> None:
    script = run("completion", "bash").stdout
    ask = """
        COMP_WORDS=({words}); COMP_CWORD={index}; _algate_completion algate; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{ALGATE.parent}:{os.environ['PATH']}"}

    def complete(words: str, index: int) -> list[str]:
        code = script + ask.format(words=words, index=index)
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert set(complete("algate p", 1)) == {"pinholes", "passwd"}
    assert "--watch" in complete("algate status --", 2)
    assert set(complete("algate rules ''", 2)) == {"show", "apply", "remove"}


def test_the_other_shells_have_a_script() -> None:
    assert run("completion", "zsh").stdout.startswith("#compdef algate")
    assert "complete --no-files --command algate" in run("completion", "fish").stdout
