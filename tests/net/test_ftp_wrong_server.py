"""Servers that say a wrong address: `alg.ftp.pasv_address`."""

from __future__ import annotations

import pytest

from tests.lab.lab import SERVER4, Lab


@pytest.mark.parametrize("mode", ["keep", "peer"])
def test_a_server_that_names_a_private_address(strict_lab: Lab, mode: str) -> None:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"pasv_address": mode}}))
    server = strict_lab.vsftpd(pasv_address="10.9.8.7")
    server.put("pub/here", b"x" * 5000)
    argv = ["curl", "-sS", "--disable-epsv", "--no-ftp-skip-pasv-ip", "-m", "3", server.url("pub/here")]
    done = strict_lab.run("inside", argv, check=False)
    if mode == "peer":
        assert done.stdout == "x" * 5000, done.stderr
        gateway.wait_for_log(f"alg.edit.*ftp.pasv.*{SERVER4.replace('.', ',')}")
    else:
        assert done.returncode != 0
        gateway.wait_for_log("ftp.address")
        # Who connects to where it is connected already gets there, and the session has lost nothing: active mode works.
        skips = ["curl", "-sS", "--disable-epsv", "--ftp-skip-pasv-ip", "-m", "10", server.url("pub/here")]
        assert strict_lab.run("inside", skips).stdout == "x" * 5000
        active = ["curl", "-sS", "--ftp-port", "-", server.url("pub/here")]
        assert strict_lab.run("inside", active).stdout == "x" * 5000
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    server.stop()
    assert gateway.stop() == 0
