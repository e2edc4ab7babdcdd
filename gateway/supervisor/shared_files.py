"""Files that only the supervisor may read (users, keytab, the key of TLS): handed to the workers as memfds, again when
they change."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config.schema import Config
from gateway.model.certificates import load_authorities, load_chain
from gateway.model.errors import ConfigError
from gateway.observe.log import get_logger
from gateway.policy.users import BadUsers, parse_users

log = get_logger()

LARGEST_FILE = 4 * 1024 * 1024
CHECK_INTERVAL = 1.0  # seconds between looks at the files

_Stamp = tuple[int, int, int]


@dataclass(slots=True)
class SharedFile:
    """One file. `key` is its key in the configuration, `fd` a memfd with its last valid contents."""

    name: str
    key: str
    path: Path
    check: Callable[[bytes], None]
    fd: int = -1
    _seen: _Stamp | None = field(default=None)

    def load(self) -> None:
        """Read the file. Raises ConfigError, and then keeps the last valid contents."""
        try:
            self._seen = _stamp(self.path)
            with self.path.open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise ConfigError(f"{self.key}: {self.path}: cannot be read: {error.strerror}") from None
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{self.key}: {self.path}: is larger than {LARGEST_FILE} bytes")
        try:
            self.check(content)
        except ValueError as error:
            raise ConfigError(f"{self.key}: {self.path}: {error}") from None
        memfd = os.memfd_create(f"algate-{self.name}")
        with open(memfd, "wb", closefd=False) as copy:
            copy.write(content)
        self.close()
        self.fd = memfd

    def changed(self) -> bool:
        """Whether the file differs from the version that was read. A file that is missing for a moment does not count
        as changed."""
        try:
            return _stamp(self.path) != self._seen
        except OSError:
            return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SharedFiles:
    """All such files of a configuration. Raises ConfigError for one that is needed and cannot be used."""

    def __init__(self, config: Config) -> None:
        socks = config.socks
        self._files: list[SharedFile] = []
        users = SharedFile("users", "socks.users", Path(socks.users), _check_users)
        # Without passwords it is only asked for groups, and need not be there.
        if "password" in socks.auth or ({"ident", "gssapi"} & set(socks.auth) and os.path.lexists(users.path)):
            self._files.append(users)
        if "gssapi" in socks.auth:
            self._files.append(SharedFile("keytab", "socks.gssapi.keytab", Path(socks.gssapi.keytab), _check_keytab))
        if socks.tls.listen:
            path = Path(socks.tls.certificate)
            self._files.append(SharedFile("certificate", "socks.tls.certificate", path, _check_certificate))
        if socks.tls.client_ca:
            path = Path(socks.tls.client_ca)
            self._files.append(SharedFile("client_ca", "socks.tls.client_ca", path, _check_authorities))
        for file in self._files:
            file.load()

    def __bool__(self) -> bool:
        return bool(self._files)

    def fds(self) -> dict[str, int]:
        """Return the descriptors by name, for a process that is to be started now."""
        return {file.name: file.fd for file in self._files}

    def texts(self) -> dict[str, tuple[Path, str]]:
        """Return the certificates and authorities that are in use, by their keys, with their files."""
        found = {}
        for file in self._files:
            if file.name in ("certificate", "client_ca"):
                content = os.pread(file.fd, os.fstat(file.fd).st_size, 0)
                found[file.key] = file.path, content.decode("ascii", "replace")
        return found

    def refresh(self) -> dict[str, int]:
        """Check the files, and return the descriptors of those that have changed and are valid. An invalid one is
        logged."""
        fresh = {}
        for file in self._files:
            if not file.changed():
                continue
            try:
                file.load()
            except ConfigError as error:
                log.error("file.rejected", key=file.key, reason=str(error), hint="the one before stays in use")
                continue
            log.info("file.loaded", key=file.key, path=str(file.path))
            fresh[file.name] = file.fd
        return fresh

    def close(self) -> None:
        for file in self._files:
            file.close()


def _check_users(content: bytes) -> None:
    try:
        parse_users(content.decode())
    except UnicodeDecodeError as error:
        raise BadUsers(f"is not UTF-8 text (byte {error.start})") from None


def _check_keytab(content: bytes) -> None:
    if not content.startswith(b"\x05"):
        raise ValueError("is not a keytab")


def _check_certificate(content: bytes) -> None:
    load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), content.decode("ascii", "replace"))


def _check_authorities(content: bytes) -> None:
    load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), content.decode("ascii", "replace"))


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
