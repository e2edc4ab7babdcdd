"""The console's requests and answers (WSGI): which requests are allowed, and with which headers they are answered."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from gateway.console import views
from gateway.console.exposition import CONTENT_TYPE, exposition
from gateway.console.gatherer import Gatherer, NoProcessAnswer
from gateway.observe.log import get_logger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = get_logger()

LONGEST_BODY = 4096
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = [
    (
        "Content-Security-Policy",
        (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
        ),
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
]


class _Refused(Exception):
    """The request is answered with an error. The text is for people."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Response(msgspec.Struct):
    body: bytes | Iterator[bytes]
    kind: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    etag: str = ""


class _Kick(msgspec.Struct, frozen=True):
    id: str


class App:
    """The WSGI application of the console.

    `public`: whether it listens beyond loopback. `hosts`: further names by which a browser may ask for it. `token`: the
    secret that requests need to change something and, if the console is public, to read; `token_file`: where a person
    finds it.
    """

    def __init__(self, *, public: bool, hosts: Sequence[str], gatherer: Gatherer, token: str, token_file: str) -> None:
        if not token:
            raise ValueError("without a token anybody could change everything")
        self._hosts = frozenset(host.lower() for host in hosts) | {"localhost"}
        self._public = public
        self._gatherer = gatherer
        self._token = token
        self._token_file = token_file
        self._static = _static_files()
        self._open: dict[str, Callable[[], _Response]] = {"/healthz": self._healthz, "/readyz": self._readyz}
        self._read: dict[str, Callable[[WSGIEnvironment], _Response]] = {
            "/metrics": lambda _: self._metrics(),
            "/api/stream": lambda _: _Response(self._stream(), "text/event-stream"),
            "/api/events": lambda _: _json(views.events(self._gatherer.rows("events")[1])),
            "/api/flows": lambda _: self._table("flows", views.FLOW),
            "/api/pinholes": lambda _: self._table("pinholes", views.PINHOLE),
            "/api/calls": lambda _: _json(self._gatherer.rows("calls")[1]),
            "/api/peers": lambda _: _json(self._gatherer.rows("peers")[1]),
            "/api/ladder": self._ladder,
        }
        self._write: dict[str, Callable[[bytes], _Response]] = {"/api/kick": self._kick, "/api/token": self._try_token}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            response = self._answer(environ)
        except _Refused as refusal:
            response = _json({"error": str(refusal)}, refusal.status)
        except NoProcessAnswer as error:
            response = _json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        kind = response.kind + (
            "; charset=utf-8" if response.kind.startswith("text/") and ";" not in response.kind else ""
        )
        headers = [*_HEADERS, ("Content-Type", kind)]
        headers.append(("Cache-Control", "no-cache" if response.etag else "no-store"))
        if response.etag:
            headers.append(("ETag", response.etag))
            if environ.get("HTTP_IF_NONE_MATCH") == response.etag:
                start_response("304 Not Modified", headers)
                return []
        if response.status is HTTPStatus.UNAUTHORIZED:
            headers.append(("WWW-Authenticate", "Bearer"))
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
        start_response(f"{response.status.value} {response.status.phrase}", headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            return []
        return [response.body] if isinstance(response.body, bytes) else response.body

    def _answer(self, environ: WSGIEnvironment) -> _Response:
        self._check_host(environ.get("HTTP_HOST", ""))
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path in self._write:
            if method != "POST":
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "POST, please")
            self._check_origin(environ)
            self._check_token(environ)
            return self._write[path](_body(environ))
        if method not in ("GET", "HEAD"):
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "GET, please")
        if path in self._open:
            return self._open[path]()
        if path in self._static:
            return self._static[path]
        if path in self._read:
            if self._public:
                self._check_token(environ)
            return self._read[path](environ)
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _check_host(self, host: str) -> None:
        """Check that the Host header is one of our own names. Otherwise any site could point its name here, and read
        the console as if it were part of that site."""
        name = host.lower()
        if name in self._hosts or name.rpartition(":")[0] in self._hosts:
            return
        bare = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        try:
            ipaddress.ip_address(bare)  # an address cannot be another site's name
        except ValueError:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, f"{host[:100]!r} is not in console.hosts") from None

    def _check_origin(self, environ: WSGIEnvironment) -> None:
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.partition("://")[2].lower() != environ["HTTP_HOST"].lower():
            raise _Refused(HTTPStatus.FORBIDDEN, "asked by another site")

    def _check_token(self, environ: WSGIEnvironment) -> None:
        given = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            if given:
                log.warning("console.denied", client=environ.get("REMOTE_ADDR"), path=environ["PATH_INFO"])
            what = "this is not the token" if given else "the token is wanted"
            raise _Refused(HTTPStatus.UNAUTHORIZED, f"{what}; it is printed by: sudo cat {self._token_file}")

    # --- answers ----------------------------------------------------------------------------------------------------

    def _healthz(self) -> _Response:
        return _verdict(self._gatherer.look().failures())

    def _readyz(self) -> _Response:
        return _verdict(self._gatherer.look().obstacles())

    def _metrics(self) -> _Response:
        snapshot = self._gatherer.look()
        return _Response(exposition(self._gatherer.totals, snapshot.samples()), CONTENT_TYPE)

    def _stream(self) -> Iterator[bytes]:
        """Yield server-sent events: the history of the charts once, then the result of every poll."""
        snapshots = self._gatherer.watch()

        def stream() -> Iterator[bytes]:
            first = True
            for snapshot in snapshots:
                if first:
                    yield _event("history", {"columns": views.POINT, "points": list(self._gatherer.points)})
                    first = False
                yield _event("overview", views.overview(snapshot, self._gatherer))

        return stream()

    def _table(self, verb: str, columns: tuple[str, ...]) -> _Response:
        silent, rows = self._gatherer.rows(verb)
        return _json({**views.table(columns, rows), "silent": silent})

    def _ladder(self, environ: WSGIEnvironment) -> _Response:
        try:
            (call,) = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=4).get("call", [""])[:1]
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        return _json(self._gatherer.rows("ladder", call[:1000])[1])

    def _kick(self, body: bytes) -> _Response:
        try:
            kick = msgspec.json.decode(body, type=_Kick)
        except msgspec.DecodeError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        rows = self._gatherer.tell("kick", kick.id)
        if not rows:
            raise _Refused(HTTPStatus.NOT_FOUND, f"nothing live has the id {kick.id[:100]!r}")
        log.warning("console.kick", id=kick.id[:100])
        return _json(rows)

    def _try_token(self, _body: bytes) -> _Response:
        return _json({"token": "right"})


def _verdict(problems: list[str]) -> _Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
    return _Response("".join(f"{line}\n" for line in problems or ["ok"]).encode(), "text/plain", status)


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> _Response:
    return _Response(msgspec.json.encode(value), status=status)


def _event(name: str, value: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(value))


def _body(environ: WSGIEnvironment) -> bytes:
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > LONGEST_BODY:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LONGEST_BODY} bytes")
    body: bytes = environ["wsgi.input"].read(int(length))
    return body


def _static_files() -> dict[str, _Response]:
    """Return the page's files by path, all in memory."""
    files = {}
    for file in sorted(Path(__file__).with_name("static").iterdir()):
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        files["/" if file.name == "index.html" else f"/{file.name}"] = _Response(
            content, _TYPES[file.suffix], etag=etag
        )
    return files
