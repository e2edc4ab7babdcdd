"""Builds a worker's authentication from the configuration and the files that the supervisor hands over."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Mapping

from alg.socks.gssapi import LEVELS
from gateway.config.schema import SocksSection
from gateway.front.auth.guard import GuessGuard
from gateway.front.auth.ident import IdentClient
from gateway.front.auth.passwords import Accounts, PasswordChecker
from gateway.front.socks.authenticate import Authenticator, Gssapi
from gateway.front.socks.gssapi import GssapiAcceptor
from gateway.model.certificates import server_context
from gateway.model.errors import ConfigError
from gateway.observe.log import get_logger
from gateway.policy.shared_counts import SharedCounts
from gateway.policy.users import Users, parse_users

log = get_logger()


class Authentication:
    """The authenticator of a worker and its parts. `files`: descriptors by name ("users", "keytab", "certificate",
    "client_ca").

    `shared`, `identify`: where all workers count failures, and which addresses are one client (see Guard). `before`:
    the authentication of an earlier configuration; bans under the same terms stay.
    """

    def __init__(
        self,
        socks: SocksSection,
        files: Mapping[str, int],
        shared: SharedCounts,
        identify: Callable[[str], str],
        before: Authentication | None = None,
    ) -> None:
        self._fds = dict(files)
        self._terms = socks.guard
        self.accounts = Accounts(_read_users(files["users"]) if "users" in files else {})
        guard = GuessGuard(socks.guard.failures, socks.guard.window, socks.guard.ban, shared=shared, identify=identify)
        if before is not None and before._terms == socks.guard:
            guard = before._guard
        self._guard: GuessGuard = guard
        passwords = gssapi = ident = None
        self._acceptor: GssapiAcceptor | None = None
        if "password" in socks.auth:
            passwords = PasswordChecker(self.accounts, lambda address: guard.banned(address, time.monotonic()))
        if "gssapi" in socks.auth:
            self._acceptor = GssapiAcceptor(socks.gssapi.service, _path(files["keytab"]))
            levels = [LEVELS[name] for name in socks.gssapi.protection]
            gssapi = Gssapi(self._acceptor, levels, socks.gssapi.realm, socks.gssapi.nec)
        self._tls: ssl.SSLContext | None = _tls_context(self._fds)
        if "ident" in socks.auth:
            ident = IdentClient(socks.ident_timeout)
        self.authenticator = Authenticator(
            socks.auth, self.accounts, guard, passwords=passwords, gssapi=gssapi, ident=ident
        )

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what a TLS handshake that begins now needs; None without `socks.tls.listen`."""
        return self._tls

    def close(self) -> None:
        """Free what it holds. It must not be used afterwards."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def update(self, name: str, fd: int) -> None:
        """Use a file that has changed from now on; owns the descriptor."""
        old = self._fds.get(name)
        if name == "users":
            self.accounts.users = _read_users(fd)
        elif name == "keytab" and self._acceptor is not None:
            try:
                self._acceptor.reload(_path(fd))
            except ConfigError as error:
                log.error("file.rejected", key="socks.gssapi.keytab", reason=str(error))
                os.close(fd)
                return
        elif name in ("certificate", "client_ca"):
            try:
                self._tls = _tls_context({**self._fds, name: fd})
            except ValueError as error:  # the supervisor has read the same file
                log.error("file.rejected", key=f"socks.tls.{name}", reason=str(error))
                os.close(fd)
                return
        self._fds[name] = fd
        if old is not None:
            os.close(old)


def _tls_context(fds: Mapping[str, int]) -> ssl.SSLContext | None:
    if "certificate" not in fds:
        return None
    authorities = _text(fds["client_ca"]) if "client_ca" in fds else None
    return server_context(_text(fds["certificate"]), authorities)


def _text(fd: int) -> str:
    with open(_path(fd), encoding="ascii", errors="replace") as file:
        return file.read()


def _path(fd: int) -> str:
    """Return a path of a memfd. A memfd that is opened by it is read from its start, independently of other readers."""
    return f"/proc/self/fd/{fd}"


def _read_users(fd: int) -> Users:
    with open(_path(fd), encoding="utf-8") as file:
        return parse_users(file.read())
