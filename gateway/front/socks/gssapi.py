"""Security contexts of GSSAPI. The only module that knows python-gssapi, an optional package that is loaded when
needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

from alg.socks.gssapi import MAX_TOKEN, Level
from gateway.model.errors import ConfigError

if TYPE_CHECKING:
    import gssapi

LARGEST_PIECE = 32768  # bytes that one message carries at the most


class GssapiFailure(Exception):
    """The client's tokens do not authenticate it. The message is for the log."""


class GssapiAcceptor:
    """Accepts contexts for a service such as "rcmd", with the keys of a keytab (a path), whatever the name of this
    host.

    Raises ConfigError if the package is missing or the keytab has no such key.
    """

    def __init__(self, service: str, keytab: str) -> None:
        try:
            import gssapi
        except ImportError as error:
            raise ConfigError(f"socks.auth: gssapi needs the Python package gssapi (extra gssapi): {error}") from None
        self._service = service
        self._gssapi = gssapi
        self._error: type[Exception] = gssapi.raw.GSSError
        self.reload(keytab)

    def reload(self, keytab: str) -> None:
        """Use another keytab. Raises ConfigError, and then goes on with the old keys."""
        name = self._gssapi.Name(self._service, self._gssapi.NameType.hostbased_service)
        try:
            self._credentials = self._gssapi.Credentials(name=name, usage="accept", store={"keytab": keytab})
        except self._error as error:
            reason = f"no key for the service {self._service!r}: {_reason(error)}"
            raise ConfigError(f"socks.gssapi.keytab: {reason}") from None

    def context(self) -> GssapiContext:
        """Return a new context, for one client."""
        return GssapiContext(self._gssapi.SecurityContext(creds=self._credentials, usage="accept"), self._gssapi)


class GssapiContext:
    """The security context of one client, and the protection of its messages once `level` is set."""

    def __init__(self, context: gssapi.SecurityContext, library: Any) -> None:
        self._context = context
        self._error: type[Exception] = library.raw.GSSError
        self.level = Level.NONE

    def step(self, token: bytes) -> bytes:
        """Handle a token of the client, and return the answer. Raises GssapiFailure.

        Runs in a thread, because the library writes its replay cache to the disk.
        """
        try:
            answer: bytes | None = gevent.get_hub().threadpool.apply(lambda: self._context.step(token))
        except self._error as error:
            raise GssapiFailure(_reason(error)) from None
        return answer or b""

    @property
    def complete(self) -> bool:
        return bool(self._context.complete)

    @property
    def principal(self) -> str:
        """Return the client's principal, such as "ann@EXAMPLE.ORG". Raises GssapiFailure if it has no name."""
        try:
            name = self._context.initiator_name
        except self._error as error:
            raise GssapiFailure(_reason(error)) from None
        if name is None:
            raise GssapiFailure("the client has no name")
        return str(name)

    def wrap_level(self, level: int) -> bytes:
        """Wrap the server's answer to the choice of a level, with integrity only (RFC 1961 section 4.2)."""
        return bytes(self._context.wrap(bytes([level]), False).message)

    def wrap(self, data: bytes) -> bytes:
        """Return a token that holds `data` with the protection of `level`."""
        return bytes(self._context.wrap(data, self.level is not Level.INTEGRITY).message)

    def unwrap(self, token: bytes, level: Level | None = None) -> bytes:
        """Return the contents of a token. Raises ValueError if it was changed, repeated, or not encrypted although
        `level` demands that."""
        try:
            result = self._context.unwrap(token)
        except self._error as error:
            raise ValueError(_reason(error)) from None
        if (self.level if level is None else level) is Level.CONFIDENTIALITY and not result.encrypted:
            raise ValueError("a message that is not encrypted")
        return bytes(result.message)

    def piece(self) -> int:
        """Return how many bytes fit into a message."""
        limit: int = self._context.get_wrap_size_limit(MAX_TOKEN, self.level is not Level.INTEGRITY)
        return min(LARGEST_PIECE, limit)


def _reason(error: Exception) -> str:
    """Return the library's message in one line."""
    return " ".join(str(error).split())
