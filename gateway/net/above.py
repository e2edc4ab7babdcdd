"""Asks the router above this one, if there is one, for public ports: by PCP, NAT-PMP or UPnP, as a client does. `find`
returns the first protocol that is answered. The sockets are plain ones; in a process with gevent, others go on
meanwhile. Only answers from the router's own address are read, in pieces of bounded size, and within bounded time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import math
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

from alg.pcp import client as asking
from alg.pcp import natpmp, pcp
from alg.upnp import client as igd
from alg.upnp.errors import ActionError, HttpError

Transport = Literal["tcp", "udp"]
Because = Literal["denied", "full", "quota", "taken", "outside"]
T = TypeVar("T")

PAUSES = (0.25, 0.5, 1.25)
"""Seconds until a question is asked again, and at last given up. RFC 6887 (8.1.1) waits longer; here a client waits."""
SEARCH = 1.5  # seconds in which a gateway of UPnP has to answer a search that gives it one
TIMEOUT = 4.0  # seconds for an action of UPnP
PATIENCE = 8.0  # seconds for a search of UPnP with all that it finds, and for all actions of one mapping
MOST_PLACES = 4  # descriptions that a search reads
OTHERS = 3  # ports that are tried by UPnP where the wanted one is another host's
PROBE, SHORTEST = 49151, 120  # port of this router, at which nothing listens, and seconds
_SSDP_GROUP, _SSDP_PORT = "239.255.255.250", 1900
_UPNP_LEASE = 3600  # seconds after which a mapping that was given for good is asked for again

_PCP_BECAUSE: dict[int, Because] = {
    pcp.Result.NOT_AUTHORIZED: "denied",
    pcp.Result.CANNOT_PROVIDE_EXTERNAL: "taken",
    pcp.Result.NO_RESOURCES: "full",
    pcp.Result.USER_EX_QUOTA: "quota",
}
_PMP_BECAUSE: dict[int, Because] = {
    natpmp.Result.NOT_AUTHORIZED: "denied",
    natpmp.Result.OUT_OF_RESOURCES: "full",
}
_NO_SUCH_ENTRY = 714
_NO_LEASES = (725, 402)
"""OnlyPermanentLeasesSupported; other gateways say Invalid Args to a lease that has an end (tailscale#15231)."""
_UPNP_BECAUSE: dict[int, Because] = {606: "denied", 718: "taken", 728: "full"}


class NoRouterAnswer(Exception):
    """The router above does not answer, or not so that it can be understood."""


class RouterRefused(Exception):
    """The router above has refused. `because` is what it says, `code` the number with which it does; `seconds`: for how
    long it will not be otherwise."""

    def __init__(self, because: Because, detail: str, seconds: int = 30, code: int = 0) -> None:
        super().__init__(detail)
        self.because: Because = because
        self.detail = detail
        self.seconds = seconds
        self.code = code


class Given(NamedTuple):
    """A public port of the router above that leads to this router: the address and port as that router says, and the
    lifetime in seconds."""

    host: str
    port: int
    seconds: float


class AboveState(NamedTuple):
    """The state of the router above: its public address (None: it has none), and whether it may have lost mappings."""

    external: str | None
    lost: bool


class Above(Protocol):
    """A router that gives public ports. Each method waits for it, and raises NoRouterAnswer."""

    @property
    def protocol(self) -> str:
        """The protocol by which the router is asked: "pcp", "natpmp" or "upnp"."""

    @property
    def router(self) -> str:
        """The address of the router on the link to this host."""

    def map(self, transport: Transport, port: int, wanted: int, seconds: int) -> Given:
        """Ask for a public port for `port` of this router, or renew it: if it is free, `wanted`. Raises
        RouterRefused."""

    def unmap(self, transport: Transport, port: int, public: int) -> None:
        """End what leads to `port`. `public`: the port of its own, 0 where it is not known. Raises RouterRefused."""

    def look(self) -> AboveState:
        """Ask how it is."""


def find(own: str, router: str, secret: bytes, tries: Sequence[float] = PAUSES) -> Above | None:
    """Return the first protocol by which the router at the address `router` answers this host's address `own`, both
    IPv4. None: it answers none of them. `secret`: the nonces of PCP are derived from it."""
    candidates: tuple[Above, ...] = (Pcp(own, router, secret, tries), NatPmp(own, router, tries))
    for above in candidates:
        with contextlib.suppress(NoRouterAnswer, RouterRefused):
            above.look()
            return above
    with contextlib.suppress(NoRouterAnswer):
        return search(own, router)
    return None


# --- PCP, NAT-PMP -----------------------------------------------------------------------------------------------------


def _ask(own: str, router: str, data: bytes, read: Callable[[bytes], T | None], pauses: Sequence[float] = PAUSES) -> T:
    """Send a datagram until there is an answer that `read` takes. Raises NoRouterAnswer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((own, 0))
            sock.connect((router, asking.PORT))  # from now on only that router's answers come
            for pause in pauses:
                sock.send(data)
                until = time.monotonic() + pause
                while (left := until - time.monotonic()) > 0:
                    sock.settimeout(left)
                    try:
                        answer = read(sock.recv(pcp.LONGEST + 1))
                    except TimeoutError:
                        break
                    if answer is not None:
                        return answer
                    time.sleep(0)  # others have their turn, however many wrong answers come
        except OSError as error:  # no address any more, nobody at the port
            raise NoRouterAnswer(f"{router}: {error.strerror}") from None
    raise NoRouterAnswer(f"{router} does not answer")


class Pcp:
    """A router that speaks PCP. A nonce is the same for the same port, so that after a start the mapping is ours."""

    protocol = "pcp"

    def __init__(self, own: str, router: str, secret: bytes, pauses: Sequence[float] = PAUSES) -> None:
        self.router = router
        self._own = own
        self._secret = secret
        self._pauses = pauses
        self._epoch = asking.Epoch()
        self._external: str | None = None
        self._lost = False
        self._asked_address = False

    def map(self, transport: Transport, port: int, wanted: int, seconds: int) -> Given:
        answer = self._map(transport, port, wanted, seconds)
        host = str(answer.external)
        if not _is_address(host) or not answer.external_port or not answer.lifetime:
            raise NoRouterAnswer(f"{self.router} gives {host}:{answer.external_port} for {answer.lifetime} s")
        self._external = host
        return Given(host, answer.external_port, float(answer.lifetime))

    def unmap(self, transport: Transport, port: int, public: int) -> None:
        self._map(transport, port, 0, 0)

    def look(self) -> AboveState:
        question = asking.pcp_announce(ipaddress.ip_address(self._own))
        self._heard(_ask(self._own, self.router, question, _announced, self._pauses))
        if self._external is None and not self._asked_address:
            self._asked_address = True
            self._external = self._address()
        lost, self._lost = self._lost, False
        return AboveState(self._external, lost)

    def _address(self) -> str | None:
        """Ask for the public address. PCP has no request for it, so a NAT-PMP request is sent, or the address is read
        off a mapping."""
        with contextlib.suppress(NoRouterAnswer, RouterRefused):
            return NatPmp(self._own, self.router, PAUSES[:1]).look().external
        with contextlib.suppress(NoRouterAnswer, RouterRefused):
            host = self.map("udp", PROBE, 0, SHORTEST).host
            self.unmap("udp", PROBE, 0)
            return host
        return None

    def _map(self, transport: Transport, port: int, wanted: int, seconds: int) -> asking.PcpAnswer:
        key = f"pcp nonce {self._own} {transport} {port}".encode()
        nonce = hmac.new(self._secret, key, hashlib.sha256).digest()[:12]
        question = asking.pcp_map(ipaddress.ip_address(self._own), nonce, transport, port, wanted, seconds)

        def read(data: bytes) -> asking.PcpAnswer | None:
            answer = asking.read_pcp(data)
            return answer if answer is not None and asking.answers_map(answer, nonce, transport, port) else None

        return self._heard(_ask(self._own, self.router, question, read))

    def _heard(self, answer: asking.PcpAnswer) -> asking.PcpAnswer:
        if answer.version != pcp.VERSION:
            raise NoRouterAnswer(f"{self.router} speaks version {answer.version}")
        if not self._epoch.goes_on(answer.epoch, time.monotonic()):
            self._lost = True
        if answer.result != pcp.Result.SUCCESS:
            because = _PCP_BECAUSE.get(answer.result, "outside")
            raise RouterRefused(because, f"{self.router}: {_name(pcp.Result, answer.result)}", answer.lifetime)
        return answer


def _announced(data: bytes) -> asking.PcpAnswer | None:
    answer = asking.read_pcp(data)
    return answer if answer is not None and answer.opcode == pcp.Opcode.ANNOUNCE else None


class NatPmp:
    """A router that speaks NAT-PMP."""

    protocol = "natpmp"

    def __init__(self, own: str, router: str, pauses: Sequence[float] = PAUSES) -> None:
        self.router = router
        self._own = own
        self._pauses = pauses
        self._epoch = asking.Epoch()
        self._external: str | None = None
        self._lost = False

    def map(self, transport: Transport, port: int, wanted: int, seconds: int) -> Given:
        answer = self._map(transport, port, wanted, seconds)
        if self._external is None:
            self._address()
        if self._external is None or not answer.public_port or not answer.lifetime:
            raise NoRouterAnswer(f"{self.router} gives {self._external}:{answer.public_port} for {answer.lifetime} s")
        return Given(self._external, answer.public_port, float(answer.lifetime))

    def unmap(self, transport: Transport, port: int, public: int) -> None:
        self._map(transport, port, 0, 0)

    def look(self) -> AboveState:
        before = self._external
        self._address()
        lost, self._lost = self._lost, False
        return AboveState(self._external, lost or before not in (None, self._external))

    def _address(self) -> None:
        def read(data: bytes) -> asking.PmpAnswer | None:
            answer = asking.read_pmp(data)
            return answer if answer is not None and answer.opcode == 0 else None

        answer = self._heard(_ask(self._own, self.router, asking.pmp_address(), read, self._pauses))
        host = str(answer.address)
        self._external = host if _is_address(host) else None

    def _map(self, transport: Transport, port: int, wanted: int, seconds: int) -> asking.PmpAnswer:
        question = asking.pmp_map(transport, port, wanted, seconds)

        def read(data: bytes) -> asking.PmpAnswer | None:
            answer = asking.read_pmp(data)
            return answer if answer is not None and asking.answers_pmp(answer, transport, port) else None

        return self._heard(_ask(self._own, self.router, question, read))

    def _heard(self, answer: asking.PmpAnswer) -> asking.PmpAnswer:
        if not self._epoch.goes_on(answer.epoch, time.monotonic()):
            self._lost = True
        if answer.result != natpmp.Result.SUCCESS:
            because = _PMP_BECAUSE.get(answer.result, "outside")
            raise RouterRefused(because, f"{self.router}: {_name(natpmp.Result, answer.result)}")
        return answer


# --- UPnP -------------------------------------------------------------------------------------------------------------


class Upnp:
    """A gateway of UPnP."""

    protocol = "upnp"

    def __init__(self, own: str, router: str, control: igd.ControlUrl) -> None:
        self.router = router
        self._own = own
        self._control = control
        self._external: str | None = None
        self._given: dict[tuple[Transport, int], int] = {}  # public ports, by those of this router
        self._next = 0
        self._for_good = False  # it knows no end of a mapping

    def map(self, transport: Transport, port: int, wanted: int, seconds: int) -> Given:
        until = time.monotonic() + PATIENCE
        wanted = self._given.get((transport, port), wanted)
        public, seconds = self._add(transport, port, wanted, seconds, until)
        self._given[transport, port] = public
        if self._external is None:
            self._external = self._address(until)
        if self._external is None:
            self.unmap(transport, port, public)
            raise RouterRefused("outside", f"{self.router} has no public address")
        return Given(self._external, public, float(seconds))

    def unmap(self, transport: Transport, port: int, public: int) -> None:
        public = self._given.pop((transport, port), public)
        if not public:  # what had no answer, or another host's: it is not known which one it might be
            return
        self._call("DeletePortMapping", igd.mapping_key(transport, public))

    def look(self) -> AboveState:
        before, self._external = self._external, self._address(time.monotonic() + TIMEOUT)
        return AboveState(self._external, before not in (None, self._external) or not self._has_its_next())

    def _has_its_next(self) -> bool:
        """Whether the gateway still has what it gave: one of many is looked for each time."""
        if not self._given:
            return True
        self._next = (self._next + 1) % len(self._given)
        transport, port = list(self._given)[self._next]
        try:
            outputs = self._call(
                "GetSpecificPortMappingEntry", igd.mapping_key(transport, self._given[transport, port])
            )
        except RouterRefused as refused:
            return refused.code != _NO_SUCH_ENTRY
        return outputs.get("NewInternalClient", self._own) == self._own

    def _address(self, until: float) -> str | None:
        try:
            host = self._call("GetExternalIPAddress", {}, until).get("NewExternalIPAddress", "")
        except RouterRefused:
            return None
        return host if _is_address(host) else None

    def _add(self, transport: Transport, port: int, wanted: int, seconds: int, until: float) -> tuple[int, int]:
        """Return the public port and the lifetime in seconds that were given. If another host has `wanted`, further
        ports are tried, always in the same order, so that a process which was killed before it could note its port asks
        for the same one again."""
        others = random.Random(f"{self._own} {transport} {port}").sample(range(20000, 60000), OTHERS)
        ports = [wanted, *others]
        while True:
            public = ports.pop(0)
            try:
                return public, self._add_exactly(transport, port, public, seconds, until)
            except RouterRefused as refused:
                if refused.because != "taken" or not ports:
                    raise

    def _add_exactly(self, transport: Transport, port: int, public: int, seconds: int, until: float) -> int:
        for lease in (0,) if self._for_good else (seconds, 0):
            try:
                arguments = igd.add_mapping(transport, public, self._own, port, lease, "algate")
                self._call("AddPortMapping", arguments, until)
            except RouterRefused as refused:
                if lease and refused.code in _NO_LEASES:
                    continue
                raise
            self._for_good = not lease
            return lease or _UPNP_LEASE
        raise AssertionError("0 is the last one")

    def _call(self, action: str, arguments: Mapping[str, object], until: float = math.inf) -> dict[str, str]:
        try:
            status, body = _exchange(self._own, self._control, igd.call(self._control, action, arguments), until)
            return igd.read_outputs(status, body, action)
        except (OSError, HttpError) as error:
            raise NoRouterAnswer(f"{self.router}: {error}") from None
        except ActionError as error:
            because, detail = _UPNP_BECAUSE.get(error.code, "outside"), f"{self.router}: {action}: {error}"
            raise RouterRefused(because, detail, code=error.code) from None


def search(own: str, router: str) -> Upnp:
    """Search for a gateway of UPnP at the address of this router. Raises NoRouterAnswer. It is asked by unicast as well
    as by multicast, because a firewall that drops unsolicited packets lets only an answer to the former through."""
    began = time.monotonic()
    until, end = began + SEARCH, began + PATIENCE
    asked: set[igd.HttpAddress] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((own, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
            for target in igd.DEVICES:
                sock.sendto(igd.search(target, router), (router, _SSDP_PORT))
                with contextlib.suppress(OSError):  # a link that knows no groups
                    sock.sendto(igd.search(target, _SSDP_GROUP), (_SSDP_GROUP, _SSDP_PORT))
            while (left := until - time.monotonic()) > 0 and len(asked) < MOST_PLACES:
                sock.settimeout(left)
                data, source = sock.recvfrom(2048)
                time.sleep(0)  # others have their turn, whatever comes
                where = igd.read_location(data) if source[0] == router else None
                if where is None or where.host != router or where in asked:
                    continue
                asked.add(where)
                for control in _described(own, where, end):
                    above = Upnp(own, router, control)
                    with contextlib.suppress(NoRouterAnswer):
                        if time.monotonic() < end and above.look().external is not None:
                            return above
        except OSError as error:
            raise NoRouterAnswer(f"{router}: {error}") from None
    raise NoRouterAnswer(f"{router} does not answer")


def _described(own: str, where: igd.HttpAddress, until: float) -> list[igd.ControlUrl]:
    try:
        status, body = _exchange(own, where, igd.get(where), until)
        return igd.services(body, where) if status == 200 else []
    except (OSError, HttpError, ValueError):
        return []


def _exchange(own: str, where: igd.HttpAddress | igd.ControlUrl, question: bytes, until: float) -> tuple[int, bytes]:
    """Ask by HTTP; until then, and for TIMEOUT at most. Raises OSError and HttpError."""
    now = time.monotonic()
    until = min(until, now + TIMEOUT)
    if until <= now:
        raise TimeoutError("it takes too long")
    data = b""
    with socket.create_connection((where.host, where.port), until - now, (own, 0)) as sock:
        sock.sendall(question)
        while len(data) < igd.LONGEST_ANSWER and not igd.is_whole(data):
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("it takes too long")
            sock.settimeout(left)
            more = sock.recv(16384)
            if not more:
                break
            data += more
            time.sleep(0)  # others have their turn, in however small pieces it comes
    return igd.read_answer(data)


def _is_address(text: str) -> bool:
    """Whether a router may have this as its public address."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    nobodys = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return not (nobodys or address.is_reserved)


def _name(results: type[pcp.Result] | type[natpmp.Result], result: int) -> str:
    try:
        return f"{result} {results(result).name}"
    except ValueError:
        return str(result)
