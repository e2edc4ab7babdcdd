"""Who may ask what: the application without a server."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.console import app as app_module
from gateway.console.app import App
from gateway.console.gatherer import MOST_WATCHERS, Gatherer, NoProcessAnswer
from gateway.console.totals import Totals
from gateway.observe.admin import Rows

STATIC = Path(app_module.__file__).with_name("static")
TOKEN = "right-token"
FLOW = {"id": "w0-1", "front": "socks", "client": "192.0.2.1:5", "since": 1.0, "up": 1, "down": 2}


class Processes:
    """What the others would answer; `silent` ones do not."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.state = "running"
        self.table = True
        self.asked: list[tuple[str, str, str]] = []
        self.lies: dict[str, Any] = {}  # of worker-0

    def ask(self, process: str, verb: str, id: str, timeout: float) -> Rows:
        self.asked.append((process, verb, id))
        if process in self.silent:
            raise NoProcessAnswer("no answer within 1 s")
        if verb == "status":
            children = {
                "worker-0": {"pid": None if self.state == "draining" else 5, "restarts": 0},
                "broker": {"pid": 6},
            }
            return [{"state": self.state, "children": children}]
        if verb == "metrics":
            samples: list[list[Any]] = [["algate_broker_table_present", self.table]] if process == "broker" else []
            row = {"process": process, "start": 1.0, "samples": samples, "histograms": []}
            return [row | self.lies if process == "worker-0" else row]
        if verb == "flows":
            return [FLOW] if process == "worker-0" else []
        if verb == "kick":
            return [{"id": id}] if (process, id) == ("worker-0", "w0-1") else []
        return []


@pytest.fixture
def processes() -> Processes:
    return Processes()


@pytest.fixture
def gatherer(processes: Processes) -> Iterator[Gatherer]:
    fd = os.memfd_create("totals")
    yield Gatherer(["supervisor", "worker-0", "broker"], processes.ask, Totals(fd))
    os.close(fd)


@pytest.fixture
def app(gatherer: Gatherer) -> App:
    return App(
        public=False, hosts=("gate.example",), gatherer=gatherer, token=TOKEN, token_file="/run/algate/console.token"
    )


def ask(
    app: App, path: str, method: str = "GET", host: str = "127.0.0.1:9180", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    answer: list[Any] = []
    path, _, query = path.partition("?")
    environ = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": method, "HTTP_HOST": host}
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), **headers}  # type: ignore[dict-item]
    parts = app(environ, lambda status, fields: answer.extend((status, dict(fields))))  # type: ignore[arg-type]
    return int(answer[0][:3]), answer[1], b"".join(parts)


def kick(app: App, id: str = "w0-1", token: str = TOKEN, **headers: str) -> int:
    body = json.dumps({"id": id}).encode()
    given = {"HTTP_AUTHORIZATION": f"Bearer {token}"} if token else {}
    return ask(app, "/api/kick", "POST", body=body, **given, **headers)[0]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9180", "localhost", "localhost:9180", "[::1]:9180", "gate.example", "GATE.example:443", "10.1.2.3"],
)
def test_our_own_names_are_answered(app: App, host: str) -> None:
    assert ask(app, "/healthz", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:9180", "127.0.0.1.evil.example", "[evil]:1", "gate.example.evil"]
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/api/flows", "/healthz"])
def test_a_name_that_another_site_has_led_here_is_not_answered(app: App, host: str, path: str) -> None:
    status, _, body = ask(app, path, host=host)
    assert status == 421
    assert b"w0-1" not in body


def test_what_changes_something_wants_the_token(app: App, processes: Processes) -> None:
    for token in ("", "wrong", TOKEN[:-1], TOKEN + "x", "ü"):
        assert kick(app, token=token) == 401
    assert not [asked for asked in processes.asked if asked[1] == "kick"]
    assert kick(app) == 200
    assert ("worker-0", "kick", "w0-1") in processes.asked


@pytest.mark.parametrize(
    "lies",
    [
        {"process": "broker"},
        {"start": None},
        {"samples": [[]]},
        {"samples": [["algate_flows", "socks"]]},
        {"samples": [["algate_flows", ["socks"], 1]]},
        {"samples": [[1]]},
        {"samples": {"algate_flows": 1}},
        {"histograms": [{"name": "algate_broker_seconds", "bounds": [0.1], "buckets": [1], "sum": 0.0}]},
        {"histograms": [{"name": "algate_broker_seconds"}]},
    ],
)
def test_a_process_that_was_taken_over_spoils_its_own_answer_only(
    app: App, processes: Processes, lies: dict[str, Any]
) -> None:
    processes.lies = lies
    status, _, body = ask(app, "/readyz")
    assert (status, body.count(b"\n")) == (503, 1)
    assert body.startswith(b"worker-0: no metrics in its answer: ")
    status, _, body = ask(app, "/metrics")
    assert status == 200
    assert b'algate_broker_table_present{process="broker"} 1.0' in body
    processes.lies = {}
    assert ask(app, "/readyz")[0] == 200


def test_no_token_is_no_token(gatherer: Gatherer) -> None:
    with pytest.raises(ValueError, match="without a token"):
        App(public=False, hosts=(), gatherer=gatherer, token="", token_file="")


def test_another_site_cannot_change_anything_even_with_the_token(app: App, processes: Processes) -> None:
    assert kick(app, HTTP_ORIGIN="http://evil.example") == 403
    assert kick(app, HTTP_ORIGIN="null") == 403
    assert not [asked for asked in processes.asked if asked[1] == "kick"]
    assert kick(app, HTTP_ORIGIN="http://127.0.0.1:9180") == 200


def test_who_is_not_there_cannot_be_kicked(app: App) -> None:
    assert kick(app, id="w9-9") == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"id": 5}', b'{"di": "x"}', b"\xff"])
def test_a_body_that_is_none_is_the_clients_mistake(app: App, body: bytes) -> None:
    assert ask(app, "/api/kick", "POST", body=body, HTTP_AUTHORIZATION=f"Bearer {TOKEN}")[0] == 400


def test_a_body_is_short(app: App) -> None:
    assert ask(app, "/api/kick", "POST", body=b"x" * 5000, HTTP_AUTHORIZATION=f"Bearer {TOKEN}")[0] == 413


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_what_is_read_is_read_by_get(app: App, method: str) -> None:
    status, headers, _ = ask(app, "/api/flows", method)
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_get_changes_nothing(app: App) -> None:
    assert ask(app, "/api/kick?id=w0-1", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")[0] == 405


def test_beyond_loopback_the_token_is_wanted_for_reading_too(gatherer: Gatherer) -> None:
    app = App(public=True, hosts=(), gatherer=gatherer, token=TOKEN, token_file="/run/algate/console.token")
    for path in ("/metrics", "/api/flows", "/api/stream"):
        assert ask(app, path, host="192.0.2.1:9180")[0] == 401
        assert path == "/api/stream" or ask(app, path, HTTP_AUTHORIZATION=f"Bearer {TOKEN}")[0] == 200
    assert ask(app, "/")[0] == ask(app, "/healthz")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/app.js", "/style.css", "/healthz", "/metrics", "/api/flows", "/nothing", "/../config.py"]
)
def test_every_answer_is_locked_up(app: App, path: str) -> None:
    status, headers, _ = ask(app, path)
    assert status == (404 if path in ("/nothing", "/../config.py") else 200)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_file_is_not_sent_twice(app: App) -> None:
    _, headers, body = ask(app, "/app.js")
    assert body
    status, _, body = ask(app, "/app.js", HTTP_IF_NONE_MATCH=headers["ETag"])
    assert (status, body) == (304, b"")


def test_rows_are_arrays(app: App) -> None:
    table = json.loads(ask(app, "/api/flows")[2])
    assert dict(zip(table["columns"], table["rows"][0], strict=True)) == {
        **FLOW,
        "server": None,
        "parent": None,
        "user": None,
        "module": None,
        "rule": None,
    }
    assert table["silent"] == []


def test_health_is_that_all_answer(app: App, processes: Processes) -> None:
    assert ask(app, "/healthz")[2] == ask(app, "/readyz")[2] == b"ok\n"
    processes.silent = {"worker-0"}
    for path in ("/healthz", "/readyz"):
        status, _, body = ask(app, path)
        assert (status, body) == (503, b"worker-0: no answer within 1 s\n")
    processes.silent = {"supervisor"}
    assert ask(app, "/healthz")[0] == 503


def test_ready_is_more_than_alive(app: App, processes: Processes) -> None:
    processes.state = "starting"
    assert ask(app, "/healthz")[0] == 200
    assert ask(app, "/readyz")[2] == b"supervisor: starting\n"
    processes.state, processes.table = "running", False
    assert ask(app, "/readyz")[2] == b"broker: its nft table is gone (restart algate if it does not come back)\n"
    processes.state, processes.table = "draining", True
    processes.silent = {"worker-0"}  # it has ended, as it should
    assert ask(app, "/healthz")[0] == 200
    assert ask(app, "/readyz")[2] == b"supervisor: draining\n"


def test_watchers_are_counted_while_they_watch(app: App, gatherer: Gatherer) -> None:
    for _ in range(MOST_WATCHERS + 1):
        assert ask(app, "/api/stream", "HEAD")[0] == 200
    watching = [gatherer.watch() for _ in range(MOST_WATCHERS)]
    assert all(next(watcher).failures() == [] for watcher in watching)
    with pytest.raises(NoProcessAnswer, match="too many"):
        gatherer.watch()
    watching.pop()
    assert next(gatherer.watch())


def test_many_who_ask_cause_one_question(app: App, processes: Processes) -> None:
    for _ in range(10):
        ask(app, "/api/flows")
    assert len([asked for asked in processes.asked if asked[:2] == ("worker-0", "flows")]) == 1


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_the_page_needs_nothing_from_elsewhere_and_parses_no_markup(path: Path) -> None:
    text = path.read_text()
    hosts = set(re.findall(r"https?://([\w.]+)", text)) - {"www.w3.org"}  # the name of SVG's namespace
    assert not hosts
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|javascript:", text)
    assert len(text.splitlines()) <= 400
