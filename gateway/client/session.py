"""The steps of a client through a chain of proxies, without a socket. A caller that has one carries the steps out
(`blocking`, `aio`) and reports the result of each."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from alg.socks.dialogue import Account, Dialogue, Granted, ask, second_reply
from alg.socks.errors import Failure, ProxyError
from alg.socks.gssapi import Level
from alg.socks.socks5 import Command
from gateway.client.codec import Codec, GssapiCodec
from gateway.client.kerberos import context_for
from gateway.client.proxy import KINDS, Chain, Proxy

_LEVELS = {"none": Level.NONE, "integrity": Level.INTEGRITY, "confidentiality": Level.CONFIDENTIALITY}


class TcpDial(NamedTuple):
    """Connect to a host by TCP. The answer is None."""

    host: str
    port: int


class Send(NamedTuple):
    """Send all of the data. The answer is None."""

    data: bytes


class Receive(NamedTuple):
    """Receive at least one byte and at most `size` bytes; the bytes behind those are not for the session. The answer is
    these bytes; b"" at the end of the stream."""

    size: int


class Protect(NamedTuple):
    """Use `codec` on the wire from now on. `early` was decoded already. The answer is None."""

    codec: Codec
    early: bytes


Step = TcpDial | Send | Receive | Protect
SessionSteps = Generator[Step, Any, Granted]


def tunnel(chain: Chain, host: str, port: int) -> SessionSteps:
    """Connect through all proxies of a chain. Raises ProxyError."""
    return request(chain, Command.CONNECT, host, port)


def request(chain: Chain, command: Command, host: str, port: int) -> SessionSteps:
    """Let the last proxy of a chain carry out a command. Raises ProxyError."""
    granted = Granted("", 0)
    yield TcpDial(chain.proxies[0].host, chain.proxies[0].port)
    for number, proxy in enumerate(chain.proxies):
        last = number == len(chain.proxies) - 1
        what, target = (command, (host, port)) if last else (Command.CONNECT, _place(chain.proxies[number + 1]))
        try:
            if proxy.tls:
                from gateway.client.tls import handshake  # few proxies need it, and ssl takes long to load

                yield from handshake(proxy)
            granted = yield from _converse(ask(KINDS[proxy.kind], what, *target, _account(proxy)))
        except ProxyError as error:
            # That a proxy refuses says nothing of the server.
            failure = "failed" if error.failure == "refused" and not last else error.failure
            raise _of(proxy, error, failure) from error
        except ValueError as error:
            raise ProxyError("failed", f"{proxy}: {error}") from error
        if granted.mechanism is not None and granted.level is not Level.NONE and what is Command.CONNECT:
            yield Protect(GssapiCodec(granted.mechanism, granted.level), granted.early)
    return granted


def second(proxy: Proxy, first: Granted) -> SessionSteps:
    """Wait for the peer of a BIND. Raises ProxyError."""
    try:
        granted = yield from _converse(second_reply(KINDS[proxy.kind], first))
    except ProxyError as error:
        raise _of(proxy, error, error.failure) from error
    if granted.mechanism is not None and granted.level is not Level.NONE:
        yield Protect(GssapiCodec(granted.mechanism, granted.level), granted.early)
    return granted


def broken(error: OSError) -> ProxyError:
    """Return the error of a session for an error of the connection to a proxy. The session adds the proxy's name."""
    if isinstance(error, ProxyError):
        return error
    made = ProxyError("failed", error.strerror or str(error))
    made.closed = isinstance(error, ConnectionResetError | BrokenPipeError)
    return made


def _of(proxy: Proxy, error: ProxyError, failure: Failure) -> ProxyError:
    """The error with the name of its proxy."""
    named = ProxyError(failure, f"{proxy}: {error}", error.reply)
    named.closed = error.closed
    return named


def _place(proxy: Proxy) -> tuple[str, int]:
    return proxy.host, proxy.port


def _account(proxy: Proxy) -> Account:
    if proxy.gssapi is None:
        return Account(proxy.user, proxy.password)
    return Account(proxy.user, proxy.password, context_for(proxy.service, proxy.host), _LEVELS[proxy.gssapi])


def _converse(dialogue: Dialogue) -> SessionSteps:
    data, parse = next(dialogue)
    held = bytearray()
    while True:
        if data:
            yield Send(data)
        while isinstance(result := parse(held), int):
            received = yield Receive(result)
            if not received:
                closed = ProxyError("failed", "it closed the connection")
                closed.closed = True
                raise closed
            held += received
        held.clear()
        try:
            data, parse = dialogue.send(result[0])
        except StopIteration as stop:
            granted: Granted = stop.value
            return granted
