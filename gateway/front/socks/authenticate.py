"""Authenticates SOCKS clients: the choice of a method and what follows it (RFC 1928 section 3, RFC 1929, RFC 1961, RFC
1413)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import gevent
import structlog

from alg.address import Endpoint
from alg.socks import http, password, socks4, socks5
from alg.socks.gssapi import ABORT, Level, MessageType, choose_level, encode_message, parse_message
from alg.socks.password import Credentials
from alg.socks.socks5 import Method
from gateway.front.auth.guard import GuessGuard
from gateway.front.auth.ident import IdentClient
from gateway.front.auth.passwords import Accounts, Overloaded, PasswordChecker
from gateway.front.socks.gssapi import GssapiAcceptor, GssapiContext, GssapiFailure
from gateway.front.socks.gssapi_stream import DatagramProtection, ProtectedSocket
from gateway.front.socks.request import ANONYMOUS, Identity, Incoming
from gateway.model.requests import AuthName
from gateway.net.slices import slices
from gateway.net.sockets import endpoint
from gateway.net.tls import TlsSocket

log = structlog.get_logger()

_UNKNOWN = http.encode_answer(407)
_WIRE: dict[AuthName, Method] = {
    "gssapi": Method.GSSAPI,
    "password": Method.PASSWORD,
    "ident": Method.NONE,
    "none": Method.NONE,
}


class NotAuthenticated(Exception):
    """The client is rejected. `answer` is sent to it before its connection is closed."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Gssapi:
    """The GSSAPI method. `levels`: levels of protection that are allowed, in the server's order; principals of `realm`
    are known without it; `nec`: accept the choice of a level in an unprotected message, as NEC's code sends it."""

    acceptor: GssapiAcceptor
    levels: Sequence[Level]
    realm: str = ""
    nec: bool = False


class Authenticator:
    """Authenticates clients by `methods`, in the server's order of preference. What a method needs must be given."""

    def __init__(
        self,
        methods: Sequence[AuthName],
        accounts: Accounts,
        guard: GuessGuard,
        *,
        passwords: PasswordChecker | None = None,
        gssapi: Gssapi | None = None,
        ident: IdentClient | None = None,
    ) -> None:
        self._methods = methods
        self._accounts = accounts
        self._guard = guard
        self._passwords = passwords
        self._gssapi = gssapi
        self._ident = ident

    def version4(self, incoming: Incoming, client: Endpoint, userid: bytes) -> Identity:
        """Authenticate a SOCKS 4 request, which has a user id and nothing to prove it, by ident or not at all.

        Raises NotAuthenticated: reply 92 if no ident server answers, 93 if it names another user, 91 if the methods
        demand what version 4 does not have.
        """
        if incoming.proved is not None:
            return incoming.proved
        for method in self._methods:
            if method == "none":
                return ANONYMOUS
            if method != "ident":
                continue
            name = self._ask_ident(incoming, client)
            if name is not None:
                if name.encode() != userid:
                    self._log_failure(client, "ident", userid)
                    raise NotAuthenticated(socks4.encode_reply(socks4.Reply.USERID_DIFFERS))
                return self._identity(name)
        if "ident" in self._methods:
            self._log_failure(client, "ident", userid)
            raise NotAuthenticated(socks4.encode_reply(socks4.Reply.NO_IDENTD))
        log.info("auth.no_method", address=client.host, client=str(client), offered="version 4")
        raise NotAuthenticated(socks4.encode_reply(socks4.Reply.REJECTED))

    def version5(self, incoming: Incoming, client: Endpoint) -> Identity:
        """Read the greeting, choose the first method that both sides have, and carry it out. Raises NotAuthenticated,
        SocksError, Gone, OSError. The client is told that it succeeded only after it did.

        After GSSAPI with protection `incoming` has another socket, which protects what goes over it.
        """
        offered = incoming.read(socks5.parse_greeting).methods
        if incoming.proved is not None and Method.NONE in offered:
            incoming.sock.sendall(socks5.encode_method(Method.NONE))
            return incoming.proved
        banned = self._guard.banned(client.host, time.monotonic())
        for method in self._methods:
            wire = _WIRE[method]
            if wire not in offered or (banned and wire is not Method.NONE):
                continue
            if method == "gssapi" and isinstance(incoming.sock, TlsSocket):
                continue  # two protections of one stream: TLS is enough
            if method == "ident":
                name = self._ask_ident(incoming, client)
                if name is None:
                    continue
                incoming.sock.sendall(socks5.encode_method(wire))
                return self._identity(name)
            incoming.sock.sendall(socks5.encode_method(wire))
            match method:
                case "password":
                    return self._password(incoming, client)
                case "gssapi":
                    return self._gssapi_method(incoming, client)
                case "none":
                    return ANONYMOUS
        if banned:
            log.info("auth.banned", address=client.host, client=str(client))
        else:
            log.info("auth.no_method", address=client.host, client=str(client), offered=list(offered))
        raise NotAuthenticated(socks5.encode_method(Method.NO_ACCEPTABLE))

    def http(self, incoming: Incoming, client: Endpoint, claim: Credentials | None) -> Identity:
        """Return the identity of an HTTP client, by the methods "password" (Basic), "ident" and "none". Raises
        NotAuthenticated: 407 if a password is wrong or missing, 403 if only methods are allowed that HTTP does not
        have."""
        if incoming.proved is not None:
            return incoming.proved
        banned = self._guard.banned(client.host, time.monotonic())
        for method in self._methods:
            if method == "password" and claim is not None and not banned:
                return self._by_password(claim, client, _UNKNOWN)
            if method == "ident" and (name := self._ask_ident(incoming, client)) is not None:
                return self._identity(name)
            if method == "none":
                return ANONYMOUS
        if banned:
            log.info("auth.banned", address=client.host, client=str(client))
        elif "password" in self._methods:
            raise NotAuthenticated(_UNKNOWN)  # it is asked: a client says its password when it is asked for it
        log.info("auth.no_method", address=client.host, client=str(client), offered="HTTP")
        raise NotAuthenticated(http.encode_answer(403))

    def _identity(self, name: str) -> Identity:
        return Identity(name, self._accounts.groups(name))

    def _ask_ident(self, incoming: Incoming, client: Endpoint) -> str | None:
        assert self._ident is not None
        return self._ident.ask(client, endpoint(incoming.sock.getsockname()))

    def _password(self, incoming: Incoming, client: Endpoint) -> Identity:
        identity = self._by_password(incoming.read(password.parse_credentials), client, password.FAILURE)
        incoming.sock.sendall(password.SUCCESS)
        return identity

    def _by_password(self, claim: Credentials, client: Endpoint, refusal: bytes) -> Identity:
        """Return the user whose password this is. Raises NotAuthenticated with `refusal`."""
        assert self._passwords is not None
        try:
            user = self._passwords.check(claim.user, claim.password, client.host)
        except Overloaded:
            log.error("auth.overloaded", client=str(client))
            raise NotAuthenticated(refusal) from None
        if user is None:
            self._failed(client, "password", claim.user, refusal)
        return Identity(user.name, user.groups)

    def _gssapi_method(self, incoming: Incoming, client: Endpoint) -> Identity:
        assert self._gssapi is not None
        context = self._gssapi.acceptor.context()
        try:
            while not context.complete:
                token = incoming.read(lambda buffer: parse_message(buffer, MessageType.AUTHENTICATION))
                slices().wait()  # a step takes a millisecond, and a client may have many of them ready
                answer = context.step(token)
                incoming.sock.sendall(encode_message(MessageType.AUTHENTICATION, answer))
            principal = context.principal
        except GssapiFailure as failure:
            self._failed(client, "gssapi", b"", ABORT, str(failure))
        name, _, realm = principal.rpartition("@")
        user = self._identity(name if realm and realm == self._gssapi.realm else principal)
        if not self._choose_level(self._gssapi, incoming, context):
            log.warning("auth.protection", address=client.host, client=str(client), user=user.user)
            raise NotAuthenticated(ABORT)
        if context.level is Level.NONE:
            return user
        incoming.sock = ProtectedSocket(incoming.sock, context, bytes(incoming.buffer))
        incoming.buffer.clear()
        return Identity(user.user, user.groups, DatagramProtection(context))

    def _choose_level(self, method: Gssapi, incoming: Incoming, context: GssapiContext) -> bool:
        """Agree on a level of protection (RFC 1961 section 4.2). Returns whether there is one."""
        token = incoming.read(lambda buffer: parse_message(buffer, MessageType.PROTECTION_LEVEL))
        bare = len(token) == 1
        try:
            if bare and not method.nec:
                return False
            offered = token if bare else context.unwrap(token, Level.INTEGRITY)
        except ValueError:
            return False
        level = choose_level(offered[0], method.levels) if len(offered) == 1 else None
        if level is None:
            return False
        answer = bytes([level]) if bare else context.wrap_level(level)
        incoming.sock.sendall(encode_message(MessageType.PROTECTION_LEVEL, answer))
        context.level = level
        return True

    def _failed(self, client: Endpoint, method: str, user: bytes, answer: bytes, reason: str = "") -> NoReturn:
        """Count and log a failure, and delay its answer. A client that leaves before that is counted too."""
        verdict = self._guard.failed(client.host, time.monotonic())
        self._log_failure(client, method, user, failures=verdict.failures, **({"reason": reason} if reason else {}))
        if verdict.banned:
            log.warning("auth.ban", address=client.host, client=str(client), failures=verdict.failures)
        gevent.sleep(verdict.delay)
        raise NotAuthenticated(answer)

    @staticmethod
    def _log_failure(client: Endpoint, method: str, user: bytes, **more: object) -> None:
        """Write the line that fail2ban reads (docs/how-to/socks-authentication.md), never with a password."""
        text = user.decode(errors="backslashreplace")
        name = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
        log.warning("auth.failed", address=client.host, client=str(client), method=method, user=name, **more)
