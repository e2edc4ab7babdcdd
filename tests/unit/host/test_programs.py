"""Programs of the system that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.host import programs
from gateway.model.errors import AlgateError


@pytest.mark.parametrize(
    ("program", "package"),
    [("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack"), ("ip6tables-save", "iptables")],
)
def test_the_package_of_a_missing_program_is_named(
    program: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_SBIN", "")
    with pytest.raises(AlgateError, match=f"^{program} is not installed: install the package {package}$"):
        programs.run_program([program])
