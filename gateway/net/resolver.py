"""Resolves names to addresses: /etc/hosts, a cache, and dnspython over gevent's sockets.

dnspython builds and checks the messages, and goes from server to server. It binds the socket class when it is imported,
which may be before gevent's monkey patch; so `_Nameserver` does the query itself, and the order of imports does not
matter.
"""

from __future__ import annotations

import os
import struct
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename
import gevent
import gevent.socket as gsocket
import msgspec

from gateway.model.hosts import canonical_name, parse_address
from gateway.net.dns_answer import shortened
from gateway.net.slices import slices
from gateway.observe.counters import count, observe

ResolveFailure = Literal["nxdomain", "timeout", "servfail", "invalid"]

TIMEOUT = 5.0  # seconds for a name, all servers and attempts together
MIN_TTL, MAX_TTL = 5.0, 3600.0  # bounds of what a server may ask for, in seconds
NEGATIVE_TTL = 15.0  # at most, for "there is no such name"
FAILURE_TTL = 2.0  # for a server that failed, so that clients which retry do not pile up
CACHE_SIZE = 4096  # names
LOOK_EVERY = 1.0  # seconds between two looks at /etc/hosts and /etc/resolv.conf
SECOND_FAMILY = 0.3  # seconds to wait for the addresses of one family when those of the other are there (RFC 8305)
LONGEST_DATAGRAM = 4096  # bytes: we ask for 1,232 at most
LONGEST_ANSWER = 16384  # bytes of an answer over TCP
MOST_WRONG = 16  # datagrams that are no answer to the question, after which the name server has failed
WORK = 0.0002  # seconds that a question takes until it is sent
MAX_ADDRESSES = 16  # of a name and family


class ResolveError(Exception):
    """A name could not be resolved. `kind`: "nxdomain" (no such name, or none with an address), "timeout", "servfail"
    (no usable answer), "invalid" (this cannot be a host name). `detail` is for people."""

    def __init__(self, kind: ResolveFailure, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class _Answer(msgspec.Struct, frozen=True):
    """The cached result for a name until `expires` (monotonic): addresses, or the reason why there are none."""

    expires: float
    addresses: tuple[str, ...] = ()
    failure: ResolveFailure = "nxdomain"
    detail: str = ""

    def get(self) -> list[str]:
        if not self.addresses:
            raise self.error()
        return list(self.addresses)

    def error(self) -> ResolveError:
        return ResolveError(self.failure, self.detail)


class _Watched:
    """A file that is read again when it has changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._next_look = 0.0

    def changed(self) -> bool:
        """Whether the file differs from that of the last call. A missing file counts as a state of its own."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        try:
            stat = os.stat(self.path)
            seen: tuple[int, ...] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except OSError:
            seen = ()
        if seen == self._seen:
            return False
        self._seen = seen
        return True


class Resolver:
    """Resolves names for the greenlets of one process."""

    def __init__(
        self,
        timeout: float = TIMEOUT,
        hosts: str = "/etc/hosts",
        resolv_conf: str = "/etc/resolv.conf",
        port: int = 53,
        cache_size: int = CACHE_SIZE,
        servers: Sequence[tuple[str, int]] = (),
    ) -> None:
        """`timeout`: seconds for a name; `port`: that of the name servers that `resolv_conf` lists. A missing or
        useless file is no error; names that need it fail until it exists. `servers`: addresses and ports of the name
        servers to ask in place of those."""
        self._timeout = timeout
        self._port = port
        self._servers = servers
        self._cache_size = cache_size
        self._cache: OrderedDict[str, _Answer] = OrderedDict()
        self._pending: dict[str, gevent.Greenlet[[str], _Answer]] = {}
        self._hosts_file = _Watched(hosts)
        self._conf_file = _Watched(resolv_conf)
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._dns: dns.resolver.Resolver | None = None
        self._refresh()

    def resolve(self, name: str, deadline: float | None = None) -> list[str]:
        """Return the addresses of `name` as canonical text, IPv6 first; never empty. An IPv4-mapped address becomes
        IPv4.

        An address resolves to itself; otherwise /etc/hosts, the cache and DNS are asked in this order. A name with a
        dot is looked up as it is; one without is first tried with the search list of resolv.conf. `deadline` is a time
        of `time.monotonic()`, and can only shorten the resolver's own limit. Raises ResolveError.
        """
        if address := _literal(name):
            return [address]
        host = _host_name(name)
        self._refresh()
        if known := self._hosts.get(host):
            return list(known)
        if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3: never asked for outside
            return ["::1", "127.0.0.1"]
        now = time.monotonic()
        answer = self._cache.get(host)
        if answer is not None and answer.expires > now:
            count("algate_resolver_queries_total", "hit")
        else:
            answer = self._ask_once(host, None if deadline is None else deadline - now)
        return answer.get()

    def reverse(self, address: str, deadline: float | None = None) -> str:
        """Return the name of an address (PTR) as the name servers report it: at most 255 printable characters, which
        prove nothing. Not cached. `deadline` as for `resolve`. Raises ResolveError."""
        self._refresh()
        if self._dns is None:
            raise ResolveError("servfail", f"{address}: no name server in {self._conf_file.path}")
        lifetime = self._timeout if deadline is None else min(self._timeout, max(deadline - time.monotonic(), 0.01))
        try:
            answer = self._dns.resolve(dns.reversename.from_address(address), "PTR", lifetime=lifetime, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            raise ResolveError("nxdomain", f"{address}: has no name") from None
        except dns.exception.Timeout:
            raise _too_late(address).error() from None
        except (dns.exception.DNSException, OSError) as error:
            raise ResolveError("servfail", f"{address}: {error}") from error
        name = str(answer[0].target.to_text(omit_final_dot=True))
        if not 1 <= len(name) <= 255:
            raise ResolveError("servfail", f"{address}: the name is too long")
        return name

    def _refresh(self) -> None:
        if self._hosts_file.changed():
            self._hosts = _read_hosts(self._hosts_file.path)
        if self._conf_file.changed():
            self._dns = _read_resolv_conf(self._conf_file.path, self._port, self._servers)
            self._cache.clear()

    def _ask_once(self, host: str, patience: float | None) -> _Answer:
        """Ask for `host`, together with all greenlets that want to know it at the same time; each waits for its own
        time."""
        job = self._pending.get(host)
        if job is None:
            job = self._pending[host] = gevent.spawn(self._ask, host)
        # Not `get` with a timeout: its Timeout could not be told from one that the caller has set around all this.
        job.join(timeout=None if patience is None else max(patience, 0))
        if not job.ready():
            raise _too_late(host).error()
        return job.get()

    def _ask(self, host: str) -> _Answer:
        """Ask for IPv6 and IPv4 addresses at once, and remember the answer. Does not raise."""
        try:
            since = time.monotonic()
            answer = self._lookup(host)
            observe("algate_resolver_seconds", time.monotonic() - since)
            count("algate_resolver_queries_total", "ok" if answer.addresses else answer.failure)
            self._cache[host] = answer
            self._cache.move_to_end(host)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
            return answer
        finally:
            del self._pending[host]

    def _lookup(self, host: str) -> _Answer:
        resolver = self._dns
        if resolver is None:
            return _Answer(0, failure="servfail", detail=f"{host}: no name server in {self._conf_file.path}")
        jobs = [gevent.spawn(_query, resolver, host, kind, self._timeout) for kind in ("AAAA", "A")]
        for first in gevent.iwait(jobs):
            if first.get().addresses:
                gevent.joinall(jobs, timeout=SECOND_FAMILY)
                break
        gevent.killall([job for job in jobs if not job.ready()])
        answers = [
            job.get() if job.successful() and isinstance(job.value, _Answer) else _too_late(host) for job in jobs
        ]
        expires = min(answer.expires for answer in answers)
        addresses = _ipv6_first(dict.fromkeys(address for answer in answers for address in answer.addresses))
        if addresses:  # with one family failing the other will do, though not for long
            return _Answer(max(expires, time.monotonic() + MIN_TTL), addresses)
        worst = next((answer for answer in answers if answer.failure != "nxdomain"), answers[1])
        return msgspec.structs.replace(worst, expires=expires)


def _too_late(host: str) -> _Answer:
    expires = time.monotonic() + FAILURE_TTL
    return _Answer(expires, failure="timeout", detail=f"{host}: no answer from the name servers in time")


def _query(resolver: dns.resolver.Resolver, host: str, kind: str, lifetime: float) -> _Answer:
    """Query one record type of one name. Errors become an answer that expires soon."""
    slices().begin(WORK)
    name = dns.name.from_text(host, None if "." not in host else dns.name.root)
    now = time.monotonic
    try:
        answer = resolver.resolve(name, kind, lifetime=lifetime, search=True, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return _Answer(now() + NEGATIVE_TTL, detail=f"{host}: there is no such name")
    except dns.exception.Timeout:
        return _too_late(host)
    except (dns.exception.DNSException, OSError) as error:
        # Also what a hostile server can provoke: loops of names, names that get too long, nonsense on the wire.
        return _Answer(now() + FAILURE_TTL, failure="servfail", detail=f"{host}: {error}")
    ttl = answer.expiration - time.time()
    if answer.rrset is None:
        ttl = min(max(ttl, MIN_TTL), NEGATIVE_TTL)
        return _Answer(now() + ttl, detail=f"{host}: the name has no address")
    addresses = tuple(str(parse_address(record.address)) for record in answer.rrset)[:MAX_ADDRESSES]
    return _Answer(now() + min(max(ttl, MIN_TTL), MAX_TTL), addresses)


class _Nameserver(dns.nameserver.Do53Nameserver):
    """A name server that is asked over gevent's sockets, whether or not the process is patched."""

    def query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        family = gsocket.AF_INET6 if ":" in self.address else gsocket.AF_INET
        slices().begin(WORK)
        wire = request.to_wire()
        try:
            with gevent.Timeout(timeout):
                if max_size:
                    return self._over_tcp(family, request, wire)
                return self._over_udp(family, request, wire)
        except gevent.Timeout:
            slices().begin(WORK)  # as many names may be too late at once as were asked for at once
            raise dns.exception.Timeout(timeout=timeout) from None  # type: ignore[no-untyped-call]

    def _over_udp(self, family: int, request: dns.message.QueryMessage, wire: bytes) -> dns.message.Message:
        # A fresh connected socket: a random port, and the kernel drops what others send to it.
        with gsocket.socket(family, gsocket.SOCK_DGRAM) as sock:
            sock.connect((self.address, self.port))
            sock.send(wire)
            for _ in range(MOST_WRONG):
                data = sock.recv(LONGEST_DATAGRAM)
                slices().wait()  # a host that sends wrong answers may have many of them ready
                try:
                    response = dns.message.from_wire(shortened(data), raise_on_truncation=True)
                except dns.message.Truncated as error:
                    if request.is_response(error.message()):  # type: ignore[no-untyped-call]
                        raise  # the resolver asks again over TCP
                    continue
                except dns.exception.DNSException:
                    continue  # forged or broken: the right one may still come
                if request.is_response(response):
                    return response
        raise EOFError("the name server sends nothing but wrong answers")

    def _over_tcp(self, family: int, request: dns.message.QueryMessage, wire: bytes) -> dns.message.Message:
        with gsocket.socket(family, gsocket.SOCK_STREAM) as sock:
            sock.connect((self.address, self.port))
            sock.sendall(struct.pack("!H", len(wire)) + wire)
            (length,) = struct.unpack("!H", _exactly(sock, 2))
            if length > LONGEST_ANSWER:
                raise EOFError(f"an answer of {length} bytes")
            data = _exactly(sock, length)
        slices().wait()  # many of them may come at once
        response = dns.message.from_wire(shortened(data))
        if not request.is_response(response):
            raise EOFError("the name server answered another question")
        return response


def _exactly(sock: gsocket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError("the name server closed the connection")
        data += part
    return bytes(data)


def _literal(name: str) -> str | None:
    """Return the canonical text if `name` is an address, otherwise None."""
    try:
        return str(parse_address(name))
    except ValueError:
        return None


def _host_name(name: str) -> str:
    """Return the canonical form of `name`. Raises ResolveError "invalid" if it cannot be a host name."""
    try:
        return canonical_name(name)
    except ValueError as error:
        raise ResolveError("invalid", str(error)) from None


def _read_hosts(path: str) -> dict[str, tuple[str, ...]]:
    """Read a hosts file (hosts(5)): names and their addresses, IPv6 first. Lines that make no sense are skipped."""
    found: dict[str, list[str]] = {}
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        address = _literal(fields[0]) if fields else None
        if address:
            for name in fields[1:]:
                addresses = found.setdefault(name.lower().rstrip("."), [])
                if address not in addresses:
                    addresses.append(address)
    return {name: _ipv6_first(addresses) for name, addresses in found.items()}


def _ipv6_first(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(addresses, key=lambda address: ":" not in address))


def _read_resolv_conf(path: str, port: int, servers: Sequence[tuple[str, int]]) -> dns.resolver.Resolver | None:
    """Make dnspython's resolver for `path`, over gevent; None if the file lists no name server. `servers` replace the
    listed ones; the file's search list and options stay."""
    resolver = dns.resolver.Resolver(configure=False)
    try:
        resolver.read_resolv_conf(path)
    except (dns.exception.DNSException, OSError, ValueError):
        if not servers:
            return None
    listed = servers or [(server, port) for server in resolver.nameservers if isinstance(server, str)]
    resolver.nameservers = [_Nameserver(host, number) for host, number in listed]
    resolver.use_edns(0, payload=1232)
    return resolver
