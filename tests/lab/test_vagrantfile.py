"""The Vagrantfile, as far as it can be judged without starting machines."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

VAGRANT = Path(__file__).parents[2] / "vagrant"


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed")
@pytest.mark.parametrize("provider", ["virtualbox", "libvirt"])
def test_it_is_valid_for(provider: str, tmp_path: Path) -> None:
    copy = tmp_path / "vagrant"
    shutil.copytree(VAGRANT, copy, ignore=shutil.ignore_patterns(".vagrant", ".lab", "wheelhouse"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALGATE_")}
    environment |= {"VAGRANT_DEFAULT_PROVIDER": provider, "HOME": str(tmp_path)}
    if provider == "virtualbox":
        # Not in Debian. Vagrant asks it for its version and no more before it validates what is configured for it.
        manage = tmp_path / "bin" / "VBoxManage"
        manage.parent.mkdir()
        manage.write_text("#!/bin/sh\necho 7.0.20r163906\n")
        manage.chmod(0o755)
        environment["PATH"] = f"{manage.parent}:{environment['PATH']}"
    command = ["vagrant", "validate"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", sorted(VAGRANT.glob("*/*.sh")), ids=lambda path: path.name)
def test_a_script_is_valid_shell(script: Path) -> None:
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
