"""Handshakes of random bytes, in random pieces, with every method: a clean end each time, and nobody is let in."""

from __future__ import annotations

import time
from collections.abc import Sequence

import gevent
import gevent.socket as gsocket
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.socks.socks5 import SocksError
from gateway.front.auth.guard import GuessGuard
from gateway.front.auth.passwords import Accounts, PasswordChecker
from gateway.front.socks.authenticate import Authenticator, NotAuthenticated
from gateway.front.socks.request import ClientGone, Identity, Incoming
from gateway.model.requests import AuthName
from gateway.policy.users import HASHER, User

CLIENT = Endpoint("192.0.2.1", 1000)
ACCOUNTS = Accounts({"ann": User("ann", HASHER.hash("secret"), ("staff",))})
LOGIN = b"\5\2\0\2" + b"\1\3ann\6secret"


class Patient(GuessGuard):
    """Counts, but lets nobody wait: the waiting has its own tests."""

    def failed(self, address: str, now: float):  # type: ignore[no-untyped-def]
        verdict = super().failed(address, now)
        return type(verdict)(verdict.failures, 0.0, verdict.banned)


def authenticator(*methods: AuthName) -> Authenticator:
    return Authenticator(methods, ACCOUNTS, Patient(0, 60, 60), passwords=PasswordChecker(ACCOUNTS, lambda _: False))


PASSWORDS = authenticator("password")


def handshake(it: Authenticator, pieces: Sequence[bytes]) -> tuple[Identity | None, bytes]:
    """Who the client turned out to be, if anybody, and all that it was told."""
    ours, theirs = gsocket.socketpair()

    def send() -> None:
        try:
            for piece in pieces:
                theirs.sendall(piece)
                gevent.sleep(0)
            theirs.shutdown(gsocket.SHUT_WR)
        except OSError:
            pass

    sending = gevent.spawn(send)
    identity = None
    with ours, theirs:
        try:
            identity = it.version5(Incoming(ours), CLIENT)
        except NotAuthenticated as refusal:
            ours.sendall(refusal.answer)
        except (SocksError, ClientGone, OSError):
            pass
        sending.join()
        ours.close()
        said = b""
        theirs.settimeout(5)
        try:
            while part := theirs.recv(64):
                said += part
        except ConnectionResetError:
            pass
    return identity, said


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
def test_random_bytes_let_nobody_in(pieces: list[bytes]) -> None:
    identity, said = handshake(PASSWORDS, pieces)
    assert identity is None
    assert said in (b"", b"\5\xff", b"\5\2", b"\5\2\1\1")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(LOGIN) - 1), st.integers(1, 255))
def test_one_wrong_byte_lets_nobody_in(at: int, flip: int) -> None:
    wire = bytearray(LOGIN)
    wire[at] ^= flip
    identity, said = handshake(PASSWORDS, [bytes(wire)])
    # The other method that is offered may be any.
    assert (identity is None and b"\1\0" not in said) or at == 2


@pytest.mark.parametrize("size", [1, 2, 3, len(LOGIN)])
def test_the_right_bytes_in_any_pieces(size: int) -> None:
    pieces = [LOGIN[i : i + size] for i in range(0, len(LOGIN), size)]
    assert handshake(PASSWORDS, pieces) == (Identity("ann", ("staff",)), b"\5\2\1\0")


@pytest.mark.parametrize(
    ("methods", "offered", "chosen"),
    [
        (("password", "none"), b"\0\2", 2),  # the strongest that both have
        (("password", "none"), b"\2\0", 2),
        (("none", "password"), b"\2\0", 0),
        (("password", "none"), b"\0", 0),
        (("password",), b"\0\1\3", 255),
        (("none",), b"\2", 255),
        (("none",), b"", 255),
    ],
)
def test_the_choice_of_a_method(methods: tuple[AuthName, ...], offered: bytes, chosen: int) -> None:
    _, said = handshake(authenticator(*methods), [bytes([5, len(offered)]) + offered])
    assert said == bytes([5, chosen])  # two bytes


def test_a_banned_client_is_offered_no_method_with_a_secret() -> None:
    guard = GuessGuard(1, 60, 60)
    guard.failed(CLIENT.host, time.monotonic())
    it = Authenticator(["password"], ACCOUNTS, guard, passwords=PasswordChecker(ACCOUNTS, lambda _: False))
    assert handshake(it, [LOGIN]) == (None, b"\5\xff")
