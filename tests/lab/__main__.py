"""`python -m tests.lab [SCENARIO]`: the lab by hand. `make lab` calls it.

Without a scenario: a shell of the inside client, with the gateway and vsftpd running. With one: runs
vagrant/scenarios/SCENARIO.sh there and ends with its exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gateway.model.errors import AlgateError
from tests.lab import stage
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, SERVER6, Lab, LabError
from tests.lab.namespaces import remove_stale

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "vagrant" / "scenarios"


def main(arguments: list[str]) -> int:
    """Run the shell, a scenario or `--remove-stale`; the exit code."""
    if arguments == ["--remove-stale"]:
        if os.geteuid() == 0:
            for name in remove_stale():
                print(f"removed namespace {name}")
        return 0
    scenario = SCENARIOS / f"{arguments[0]}.sh" if arguments else None
    if scenario and not scenario.exists():
        known = ", ".join(sorted(path.stem for path in SCENARIOS.glob("*.sh")))
        print(f"no scenario {arguments[0]!r}; there are: {known}", file=sys.stderr)
        return 2
    with Lab() as lab:
        stage.serve(lab)
        gateway = lab.start_gateway(stage.config(lab))
        try:
            argv = ["sh", str(scenario)] if scenario else _shell(lab, gateway)
            return _interactive(lab, argv, stage.environment(lab, gateway))
        finally:
            gateway.stop()


def _shell(lab: Lab, gateway: Gateway) -> list[str]:
    print(f"""
You are {CLIENT4}, a client behind a NAT router that runs algate. Outside, {SERVER4} and {SERVER6} are an FTP server.

  curl -P - ftp://$OUTSIDE/pub/example.bin -o /dev/null                    active, straight: algate does it unasked
  curl --socks5-hostname $SOCKS ftp://$OUTSIDE/pub/                        passive, through SOCKS
  lftp -e 'set ftp:passive-mode no; ls pub; bye' $OUTSIDE                  another client
  $ROUTER $ALGATE pinholes -c $CONFIG                                      what is open now (status, flows likewise)
  $ROUTER nft list ruleset                                                 what netfilter has
  tail -f $LOG                                                             what the gateway says
  exit                                                                     ends it; nothing is left
""")
    return ["env", "PS1=inside# ", "bash", "--norc"]


def _interactive(lab: Lab, argv: list[str], environment: dict[str, str]) -> int:
    """Run a program in `inside` on this terminal; Ctrl-C is the program's."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # a handler, which exec resets, and not SIG_IGN
    try:
        return subprocess.run(
            ["ip", "netns", "exec", lab.ns("inside"), *argv],
            env={**os.environ, **environment},
            check=False,
        ).returncode
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (LabError, AlgateError) as error:
        print(f"lab: {error}", file=sys.stderr)
        sys.exit(1)
