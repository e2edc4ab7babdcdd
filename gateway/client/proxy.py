"""Proxies and chains of them, read from URLs, the environment, or a file."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from alg.socks.dialogue import ProxyKind

ProtectionName = Literal["none", "integrity", "confidentiality"]

DEFAULT_PORT = 1080
KINDS: dict[str, ProxyKind] = {
    "socks": "socks5",
    "socks4": "socks4",
    "socks4a": "socks4a",
    "socks5": "socks5",
    "socks5h": "socks5",
    "http": "http",
}
_OPTIONS = ("gssapi", "service", "ca", "certificate", "name", "password_file")
_LEVELS: dict[str, ProtectionName] = {
    "none": "none",
    "integrity": "integrity",
    "confidentiality": "confidentiality",
}
ENVIRONMENT = ("ALGATE_PROXY", "ALL_PROXY", "all_proxy", "SOCKS_SERVER")
CLIENT_FILE = "algate/client.toml"


class ProxySyntaxError(ValueError):
    """The description of a proxy cannot be understood. The message says what is wrong, and where."""


class _Proxy(NamedTuple):
    """What is known of a proxy. Tuples and no dataclasses: those load `inspect`, which takes longer than all of this
    package, and programs wait for it."""

    kind: str
    host: str
    port: int
    user: str
    password: str
    tls: bool
    ca: str
    certificate: str
    name: str
    gssapi: ProtectionName | None
    service: str


class Proxy(_Proxy):
    """One proxy. It resolves names itself (except for SOCKS 4, which has no names).

    `Proxy("socks5://192.0.2.1")` is the same as `Proxy.parse` of that URL; `kind` and `host` are what it says.

    `tls`: connect to it inside TLS; `ca`: a file with the authorities of its certificate (empty: the system's);
    `certificate`: a file with our own certificate and key; `name`: the name that its certificate must have (empty:
    `host`). `gssapi`: Kerberos with at least this protection, with a ticket for `service` at `host`.
    """

    __slots__ = ()

    def __new__(
        cls,
        kind: str,
        host: str = "",
        port: int = DEFAULT_PORT,
        user: str = "",
        password: str = "",
        tls: bool = False,
        ca: str = "",
        certificate: str = "",
        name: str = "",
        gssapi: ProtectionName | None = None,
        service: str = "rcmd",
    ) -> Proxy:
        if not host:
            return cls.parse(kind)
        if kind not in KINDS:
            raise ProxySyntaxError(f"{_shown(kind)} is no kind of proxy ({', '.join(KINDS)})")
        return super().__new__(cls, kind, host, port, user, password, tls, ca, certificate, name, gssapi, service)

    def __repr__(self) -> str:
        """Return all fields but the password."""
        return f"Proxy({', '.join(f'{key}={value!r}' for key, value in self._asdict().items() if key != 'password')})"

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Parse SCHEME://[USER[:PASSWORD]@]HOST[:PORT][?OPTIONS]; without a scheme it is SOCKS 5.

        Schemes: socks5 (and socks5h, socks), socks4a, socks4, http; https or SCHEME+tls: inside TLS. Options: `gssapi`
        (none, integrity, confidentiality), `service`, `ca`, `certificate`, `name`, `password_file`. Raises
        ProxySyntaxError; the message has no password in it.
        """
        text = url if "://" in url else f"socks5://{url}"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ProxySyntaxError(f"{_shown(url)}: {error}") from None
        scheme, tls = parts.scheme, False
        if scheme == "https":
            scheme, tls = "http", True
        elif scheme.endswith("+tls"):
            scheme, tls = scheme.removesuffix("+tls"), True
        if scheme not in KINDS:
            raise ProxySyntaxError(
                f"{_shown(url)}: {parts.scheme} is no kind of proxy ({', '.join(KINDS)}, https, +tls)"
            )
        if not parts.hostname:
            raise ProxySyntaxError(f"{_shown(url)}: there is no host")
        if port == 0 or parts.path not in ("", "/") or parts.fragment:
            raise ProxySyntaxError(f"{_shown(url)}: is not SCHEME://USER:PASSWORD@HOST:PORT?OPTIONS")
        options = _options(url, parts)
        level = options.get("gssapi")
        if level is not None and (level not in _LEVELS or KINDS[scheme] != "socks5"):
            raise ProxySyntaxError(
                f"{_shown(url)}: gssapi={level}: is none of {', '.join(_LEVELS)}, of a SOCKS 5 proxy"
            )
        for option in ("ca", "certificate", "name"):
            if option in options and not tls:
                raise ProxySyntaxError(f"{_shown(url)}: {option} means something inside TLS only")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if "password_file" in options:
            password = _password(options["password_file"])
        if len(user.encode()) > 255 or len(password.encode()) > 255:
            raise ProxySyntaxError(f"{_shown(url)}: user and password have at most 255 bytes")
        return cls(
            KINDS[scheme],
            parts.hostname,
            port or (443 if parts.scheme == "https" else DEFAULT_PORT),
            user,
            password,
            tls,
            options.get("ca", ""),
            options.get("certificate", ""),
            options.get("name", ""),
            _LEVELS[level] if level is not None else None,
            options.get("service", "rcmd"),
        )

    def __str__(self) -> str:
        """The proxy as a URL, without the password."""
        scheme = {True: "https", False: "http"}[self.tls] if self.kind == "http" else self.kind + "+tls" * self.tls
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{self.user + '@' if self.user else ''}{host}:{self.port}"


class Chain(tuple[Proxy, ...]):
    """Proxies, each reached through the one before it. The last one carries out the request."""

    __slots__ = ()

    def __new__(cls, proxies: str | Proxy | Iterable[str | Proxy]) -> Chain:
        """Make a chain of proxies and URLs of proxies. Raises ProxySyntaxError."""
        several = (proxies,) if isinstance(proxies, str | Proxy) else proxies
        made = super().__new__(cls, (proxy if isinstance(proxy, Proxy) else Proxy.parse(proxy) for proxy in several))
        if not made:
            raise ProxySyntaxError("a chain of no proxies")
        return made

    def __repr__(self) -> str:
        return f"Chain({list(self)!r})"

    @classmethod
    def of(cls, via: Via) -> Chain:
        """Make a chain from any description of proxies. Raises ProxySyntaxError."""
        if isinstance(via, Chain):
            return via
        return cls(via)

    @property
    def proxies(self) -> tuple[Proxy, ...]:
        return self

    @property
    def last(self) -> Proxy:
        return self[-1]

    def __str__(self) -> str:
        return " ".join(map(str, self))


Via = str | Proxy | Chain | Iterable[str | Proxy]


def configured(environment: Mapping[str, str] = os.environ) -> Chain | None:
    """Return the proxies that the user has configured: in ALGATE_PROXY (several, separated by blanks), ALL_PROXY or the
    classic clients' SOCKS_SERVER, otherwise by `via` in ~/.config/algate/client.toml; None if there are none. Raises
    ProxySyntaxError."""
    for variable in ENVIRONMENT:
        words = environment.get(variable, "").split()
        if words:
            try:
                return Chain.of(words)
            except ProxySyntaxError as error:
                raise ProxySyntaxError(f"{variable}: {error}") from None
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "/"), ".config")
    return read_file(os.path.join(home, CLIENT_FILE))


def read_file(path: str) -> Chain | None:
    """Read the chain from a file with `via = "URL"` or `via = ["URL", ...]`; None if there is no file. Raises
    ProxySyntaxError."""
    try:
        with open(path) as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProxySyntaxError(f"{path}: {error}") from None
    import tomllib  # it takes long to load

    try:
        table = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ProxySyntaxError(f"{path}: {error}") from None
    if unknown := sorted(table.keys() - {"via"}):
        raise ProxySyntaxError(f"{path}: {unknown[0]}: no such key")
    via = table.get("via")
    if not isinstance(via, str) and not (isinstance(via, list) and via and all(isinstance(url, str) for url in via)):
        raise ProxySyntaxError(f"{path}: via: is neither a URL nor a list of them")
    try:
        return Chain.of(via)
    except ProxySyntaxError as error:
        raise ProxySyntaxError(f"{path}: via: {error}") from None


def is_address(host: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _options(url: str, parts: SplitResult) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _OPTIONS:
            raise ProxySyntaxError(f"{_shown(url)}: {key}: no such option ({', '.join(_OPTIONS)})")
        if key in options or not value:
            raise ProxySyntaxError(f"{_shown(url)}: {key}: needs one value")
        options[key] = value
    return options


def _password(file: str) -> str:
    """Read the first line of a file. Raises ProxySyntaxError."""
    try:
        with open(os.path.expanduser(file)) as opened:
            lines = opened.read().splitlines()
    except (OSError, ValueError) as error:
        raise ProxySyntaxError(f"{file}: {error}") from None
    if not lines or not lines[0]:
        raise ProxySyntaxError(f"{file}: there is no password in it")
    return lines[0]


def _shown(url: str) -> str:
    """Return a URL for a message, without what may be a password."""
    scheme, mark, rest = url.rpartition("://")
    account, at, where = rest.rpartition("@")
    return f"{scheme}{mark}{account.partition(':')[0]}{at}{where}"
