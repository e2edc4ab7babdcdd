"""Certificates of authorities that exist for a test only, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """An authority below `directory`. `file`: its own certificate."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = directory / f"{name}.key"
        self.file = directory / f"{name}.pem"
        subject = f"/CN=The {name} of this test"
        self._openssl(
            "req", "-x509", *_CURVE, "-days", "2", "-subj", subject, "-keyout", self._key, "-out", self.file,
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str, subject: str = "", hosts: tuple[str, ...] = ()) -> Path:
        """A file with a certificate and its key. `hosts`: names and addresses of a server; without them it is a
        client's. `subject`: as "/O=example/CN=ann"; default: the name."""
        key, request, file = (self._directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
        self._openssl("req", *_CURVE, "-subj", subject or f"/CN={name}", "-keyout", key, "-out", request)
        names = ",".join(
            f"IP:{host}" if host.replace(".", "").isdigit() or ":" in host else f"DNS:{host}" for host in hosts
        )
        usage = f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n" if hosts else "extendedKeyUsage=clientAuth\n"
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(usage)
        made = self._openssl(
            "x509", "-req", "-in", request, "-days", "2", "-CA", self.file, "-CAkey", self._key, "-CAcreateserial",
            "-extfile", extensions,
        )  # fmt: skip
        whole = self._directory / f"{name}.whole"
        whole.write_bytes(made + key.read_bytes())
        whole.replace(file)
        return file

    @staticmethod
    def _openssl(*words: str | Path) -> bytes:
        return subprocess.run(["openssl", *words], capture_output=True, check=True).stdout
