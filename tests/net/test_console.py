"""The console in a real browser (headless Chromium), beside a real gateway with real flows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.bench import measures
from tests.bench.measures import Load
from tests.bench.peers import PORT as SINK
from tests.bench.peers import Peer
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, Lab
from tests.lab.peers import installed
from tests.lab.sip_peers import Kamailio, sipp, succeeds
from tests.net.console_http import LISTEN, door, fetch
from tests.net.socks_wire import ask5

CHROMIUM = "/usr/bin/chromium"
MANY = 5000
SOCKS = Peer("socks", "socks", lambda _lab: lambda: None)

# What the page must not do, noticed from its first moment on; and how long it keeps a frame waiting.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
window.measure = () => {
  let last = performance.now();
  window.times = [];
  const step = (now) => {
    window.times.push(now - last);
    last = now;
    window.frame = requestAnimationFrame(step);
  };
  window.frame = requestAnimationFrame(step);
};
window.measured = () => (cancelAnimationFrame(window.frame), window.times);
"""


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(console={"listen": LISTEN}, transparent={"ports": [SINK]}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    installed("chromium", CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(lab: Lab, gateway: Gateway) -> Iterator[str]:
    with door(lab) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page of the console that may ask nobody else, break no policy and throw nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(_WATCH)
    context.set_default_timeout(20_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
    page.goto(url)
    yield page
    problems += page.evaluate("window.violations")
    context.close()
    assert problems == []


@pytest.fixture(scope="module")
def listener(lab: Lab) -> Iterator[socket.socket]:
    with lab.listen("outside", SERVER4, 7007) as listener:
        yield listener


@contextlib.contextmanager
def flow(lab: Lab, listener: socket.socket) -> Iterator[socket.socket]:
    """A SOCKS flow; the client's end."""
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        assert ask5(client, SERVER4, 7007)[0] == 0
        server, _ = listener.accept()
        with server:
            yield client


def token(gateway: Gateway) -> str:
    (path,) = gateway.lab.tmp.glob("run*/console.token")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == 0
    return path.read_text().strip()


def picture(page: Page, name: str) -> None:
    """Keep a picture of the page for whoever wants to look at it: CONSOLE_PICTURES names the folder."""
    folder = os.environ.get("CONSOLE_PICTURES")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


def rows(page: Page) -> Any:
    return page.locator(".vrow:visible")


def test_the_overview_says_that_all_is_well(page: Page) -> None:
    expect(page.locator("#pill")).to_have_text("All is well")
    expect(page.locator(".banner")).to_contain_text("6 of 6 processes answer")
    expect(page.locator(".banner")).to_contain_text("iptables rules applied")
    expect(page.locator(".tile")).to_have_count(6)
    expect(page.locator(".events")).to_contain_text("process.start")


def test_rules_that_the_operator_has_removed_are_missed(gateway: Gateway, page: Page) -> None:
    gateway.algate("rules", "remove")
    try:
        expect(page.locator(".banner")).to_contain_text("iptables rules not applied")
    finally:
        gateway.algate("rules", "apply")
    expect(page.locator(".banner")).to_contain_text("iptables rules applied")


def test_a_process_that_hangs_is_seen(lab: Lab, gateway: Gateway, page: Page) -> None:
    status = next(row for row in gateway.admin("status") if row["process"] == "supervisor")
    pid = status["children"]["worker-1"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        expect(page.locator("#pill")).to_have_text("worker-1 does not answer")
        expect(page.locator(".banner")).to_contain_text("worker-1: no answer within 1 s")
    finally:
        os.kill(pid, signal.SIGCONT)
    expect(page.locator("#pill")).to_have_text("All is well")


def test_flows_are_there_filtered_and_gone(lab: Lab, page: Page, listener: socket.socket) -> None:
    page.goto(page.url.partition("#")[0] + "#/flows")
    with flow(lab, listener) as client, flow(lab, listener):
        port = str(client.getsockname()[1])
        expect(rows(page)).to_have_count(2)
        search = page.get_by_label("Filter flows")
        search.fill(f"{CLIENT4}:{port}")
        expect(rows(page)).to_have_count(1)
        expect(page.locator(".count")).to_have_text("1 of 2")
        search.fill("front:transparent")
        expect(rows(page)).to_have_count(0)
        expect(page.get_by_text("No row matches the filter.")).to_be_visible()
        search.fill(f"front:socks -{port}")
        expect(rows(page)).to_have_count(1)
        search.fill("")
        expect(rows(page)).to_have_count(2)
    expect(page.get_by_text("No flow is live.")).to_be_visible()


def test_a_kick_wants_the_token(lab: Lab, gateway: Gateway, page: Page, listener: socket.socket) -> None:
    page.goto(page.url.partition("#")[0] + "#/flows")
    with flow(lab, listener) as client:
        rows(page).first.click()
        page.get_by_role("button", name="Kick this flow").click()
        expect(page.locator("#confirm-token small")).to_contain_text(f"sudo cat {gateway.lab.tmp}/")
        page.locator("#confirm input").fill("guessed")
        page.get_by_role("button", name="Kick", exact=True).click()
        expect(page.locator("#confirm-problem")).to_contain_text("this is not the token; it is printed by: sudo cat /")
        (row,) = gateway.admin("flows")
        for header in ({}, {"Authorization": ""}, {"Authorization": "Bearer "}):
            assert fetch(lab, "/api/kick", "POST", json.dumps({"id": row["id"]}), **header)[0] == 401
        client.sendall(b"still there")
        page.locator("#confirm input").fill(token(gateway))
        page.get_by_role("button", name="Kick", exact=True).click()
        expect(page.locator(".toast")).to_contain_text("Kicked")
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        expect(page.get_by_text("This flow has ended.").or_(page.get_by_text("No flow is live."))).not_to_have_count(0)
    gateway.wait_for_log(r"event=console\.kick")
    assert not [line for line in gateway.log_lines() if token(gateway) in line]


def test_by_the_keyboard_alone(lab: Lab, gateway: Gateway, page: Page, listener: socket.socket) -> None:
    with flow(lab, listener), flow(lab, listener) as second:
        page.keyboard.press("2")
        expect(rows(page)).to_have_count(2)
        page.keyboard.press("/")
        page.keyboard.type(str(second.getsockname()[1]))
        expect(rows(page)).to_have_count(1)
        page.keyboard.press("Escape")
        expect(rows(page)).to_have_count(2)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(page.locator('.vrow[aria-selected="true"]')).to_have_attribute("aria-rowindex", "2")
        page.keyboard.press("Enter")
        expect(page.locator(".drawer")).to_contain_text(CLIENT4)
        page.keyboard.press("Escape")
        expect(page.locator(".drawer")).to_be_hidden()
        client = page.get_by_role("columnheader", name="client")
        for order in ("ascending", "descending"):
            client.get_by_role("button").press("Enter")
            expect(client).to_have_attribute("aria-sort", order)
        page.locator(".vbody").focus()
        page.keyboard.press("k")
        page.keyboard.type(token(gateway))
        page.keyboard.press("Enter")
        expect(page.locator(".toast")).to_contain_text("Kicked")
        expect(rows(page)).to_have_count(1)
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_be_visible()
        page.keyboard.press("Escape")
        for key, view in zip("12345", ("overview", "flows", "pinholes", "calls", "processes"), strict=True):
            page.keyboard.press(key)
            expect(page.locator(f'.tabs a[data-view="{view}"]')).to_have_attribute("aria-current", "page")


def test_what_a_screen_reader_is_told(page: Page, lab: Lab, listener: socket.socket) -> None:
    page.goto(page.url.partition("#")[0] + "#/flows")
    with flow(lab, listener):
        expect(rows(page)).to_have_count(1)
        expect(page.get_by_role("heading", level=1)).to_have_text("flows")
        grid = page.get_by_role("grid", name="flows")
        owned = grid.get_attribute("aria-owns")  # the head, which does not scroll, is of the grid all the same
        expect(page.locator(f"#{owned}").get_by_role("columnheader")).to_have_count(10)
        page.keyboard.press("ArrowDown")
        expect(page.locator('.vrow[aria-selected="true"]')).to_have_count(1)
        active = grid.get_attribute("aria-activedescendant")
        expect(page.locator(f"#{active}")).to_contain_text(f"{SERVER4}:7007")
        for view in ("overview", "flows", "pinholes", "calls", "processes"):
            page.goto(page.url.partition("#")[0] + f"#/{view}")
            for role in ("button", "columnheader", "link"):
                for element in page.get_by_role(role).all():
                    expect(element).to_have_accessible_name(re.compile("."))
        expect(page.get_by_role("status").filter(has_text="All is well")).not_to_have_attribute(
            "title", re.compile(".")
        )


def test_an_empty_table_on_a_phone_is_no_grid(page: Page, lab: Lab, listener: socket.socket) -> None:
    """Its head is hidden there, and a grid without a row is an error to a screen reader."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(page.url.partition("#")[0] + "#/flows")
    region, grid = page.get_by_role("region", name="flows"), page.get_by_role("grid", name="flows")
    expect(region).to_contain_text("No flow is live.")
    expect(region).not_to_have_attribute("aria-rowcount", re.compile(""))
    with flow(lab, listener):
        expect(grid).to_have_attribute("aria-rowcount", "1")
    expect(region).to_contain_text("No flow is live.")


def test_light_and_dark(page: Page) -> None:
    def background() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    page.emulate_media(color_scheme="light")
    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    page.keyboard.press("t")
    assert background() == light
    page.reload()
    assert background() == light


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, lab: Lab, listener: socket.socket, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    with flow(lab, listener):
        for view in ("overview", "flows", "pinholes", "calls", "processes"):
            page.goto(page.url.partition("#")[0] + f"#/{view}")
            expect(page.locator("#pill")).to_have_text("All is well")
            if view == "flows":
                expect(rows(page)).to_have_count(1)
                expect(rows(page).get_by_text(f"{SERVER4}:7007")).to_be_visible()
            picture(page, f"{view}-{width}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            if view == "flows" and width <= 720:
                expect(rows(page).locator(".e")).to_contain_text("socks")
            for link in page.locator(".tabs a").all():  # no view is behind the edge
                box = link.bounding_box()
                assert box is not None
                assert box["x"] + box["width"] <= width


def test_a_call_has_its_ladder(lab: Lab, gateway: Gateway, page: Page) -> None:
    kamailio = Kamailio(lab, "outside", SERVER4)
    try:
        proxy, near, far = f"{SERVER4}:5060", f"{CLIENT4}:5060", f"{SERVER4}:5070"
        succeeds(lab, sipp(lab, "outside", "register", local=far, remote=proxy, options=["-s", "bob"]))
        succeeds(lab, sipp(lab, "inside", "register", local=near, remote=proxy, options=["-s", "ann"]))
        callee = sipp(lab, "outside", "uas", local=far, audio=9100, options=["-recv_timeout", "15000"])
        caller = sipp(lab, "inside", "uac", local=near, remote=proxy, options=["-s", "bob", "-d", "8000"])
        page.goto(page.url.partition("#")[0] + "#/calls")
        expect(rows(page).first).to_contain_text("confirmed")
        steps = page.locator(".step")
        expect(steps.first).to_contain_text("INVITE sip:bob@")
        expect(page.locator(".steps")).to_contain_text("200 OK")
        steps.first.locator("summary").click()
        expect(steps.first.locator("del", has_text=CLIENT4).first).to_be_visible()
        expect(steps.first.locator("ins", has_text="203.0.113.2").first).to_be_visible()
        expect(page.locator(".ladder table")).to_contain_text("203.0.113.2")
        expect(page.locator(".ladder").get_by_label("Close")).to_be_hidden()  # where nothing is to be closed
        picture(page, "call-1280")
        page.set_viewport_size({"width": 390, "height": 800})
        expect(page.locator(".ladder")).to_be_hidden()
        picture(page, "calls-390")
        rows(page).first.click()
        expect(page.locator(".ladder")).to_be_visible()
        picture(page, "call-390")
        page.get_by_role("button", name="Close").click()
        expect(page.locator(".ladder")).to_be_hidden()
        rows(page).first.click()
        page.get_by_role("button", name="Cut the media").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("in silence until one hangs up")
        dialog.get_by_label("Token").fill(token(gateway))
        dialog.get_by_role("button", name="Kick").click()
        expect(page.locator(".toast")).to_contain_text("the media of the call")
        gateway.wait_for_log("event=call.kick")
        succeeds(lab, caller, callee)
    finally:
        kamailio.stop()


@pytest.mark.slow
def test_five_thousand_flows_without_stutter(
    lab: Lab, gateway: Gateway, page: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = tmp_path_factory.mktemp("load") / "load"
    source = Path(measures.__file__).with_name("load.c")
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, source], check=True)
    measures.prepare(lab)
    server = lab.popen("outside", [program, "serve", str(SINK)])
    try:
        with Load(lab, program, 2).held(SOCKS, MANY) as opened:
            assert opened == MANY
            page.goto(page.url.partition("#")[0] + "#/flows")
            expect(page.locator(".count")).to_have_text("5,000")
            assert page.locator(".vrow").count() < 80  # only what is seen is in the document
            body = page.locator(".vbody")
            body.hover()
            page.evaluate("window.measure()")
            for round_ in range(30):  # three seconds, in which the table is renewed at least once
                page.mouse.wheel(0, 900 if round_ < 20 else -1300)
                page.wait_for_timeout(100)
            frames: list[float] = sorted(page.evaluate("window.measured()"))
            assert len(frames) > 60, frames
            assert frames[len(frames) // 2] < 34  # milliseconds
            assert frames[-1] < 400, frames[-10:]
            search = page.get_by_label("Filter flows")
            clients = (row.locator("> span").nth(1).inner_text() for row in rows(page).all())
            sought = next(client for client in clients if len(client.rpartition(":")[2]) == 5)  # no other begins so
            search.fill(sought)
            expect(page.locator(".count")).to_have_text("1 of 5,000")
            search.fill("")
            page.locator(".vbody").press("End")
            expect(page.locator('.vrow[aria-selected="true"]')).to_have_attribute("aria-rowindex", "5000")
            assert fetch(lab, "/readyz")[0] == 200
    finally:
        lab.stop(server)
