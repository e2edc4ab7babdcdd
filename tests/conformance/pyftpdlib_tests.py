"""`python -m tests.conformance.pyftpdlib_tests DIRECTORY [--direct] [PYTEST ARGUMENTS]`: pyftpdlib's functional tests.

DIRECTORY is a checkout of pyftpdlib, whose tests need psutil. Their server runs outside and their client, ftplib,
inside: through the transparent front on a router that forwards nothing but TCP to port 21; with --direct both are
outside, which says what fails anyway. Needs root. The exit code is pytest's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.lab.lab import SERVER4, SERVER6, Lab


def main(arguments: list[str]) -> int:
    """Run them; pytest's exit code."""
    directory, *rest = arguments
    direct = "--direct" in rest
    options = [argument for argument in rest if argument != "--direct"]
    with Lab(strict=True) as lab:
        gateway = None if direct else lab.start_gateway()
        environment = {
            "PYTHONPATH": str(Path(__file__).parent),
            "ALGATE_OUTSIDE": f"/run/netns/{lab.ns('outside')}",
            "ALGATE_SERVER4": SERVER4,
            "ALGATE_SERVER6": SERVER6,
        }
        os.chdir(directory)
        argv = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", ".", "-p", "pyftpdlib_plugin", "-q"]
        argv += ["tests/test_functional.py", *options]
        done = lab.run("stranger" if direct else "inside", argv, timeout=600, check=False, env=environment)
        os.chdir("/")
        if gateway is not None:
            gateway.stop()
    print(done.stdout, done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
