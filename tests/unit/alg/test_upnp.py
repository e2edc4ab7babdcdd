"""UPnP: properties, limits and costs of its codecs. Dialogues are in tests/wire/upnp."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.upnp import arguments, device, elements, gena, services, soap, ssdp
from alg.upnp.errors import ActionError, HttpError
from alg.upnp.gena import Callback, Renew, Subscribe, Subscriptions
from alg.upnp.http import LONGEST_BODY, LONGEST_HEAD, Request, RequestReader, read_head, response
from alg.upnp.listing import ListedMapping, port_listing
from tests.wire.upnp.play import DEVICES

ALL = [service for root in DEVICES.values() for service in root.all_services()]
HOST = b"Host: 192.168.56.2:2869\r\n"
names = st.text(st.characters(min_codepoint=0x61, max_codepoint=0x7A), min_size=1, max_size=12)


def read_all(data: bytes, cut: int) -> list[Request]:
    reader, found = RequestReader(), []
    for at in range(0, len(data), cut):
        reader.feed(data[at : at + cut])
        while (request := reader.next()) is not None:
            found.append(request)
    return found


def failure(call: Callable[[], object]) -> int:
    """The code or status with which a call fails; 0 if it does not fail."""
    try:
        call()
    except ActionError as error:
        return error.code
    except HttpError as error:
        return error.status
    return 0


# --- HTTP -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), min_size=1, max_size=4),
    st.integers(min_value=1, max_value=200),
    st.sampled_from([b"\r\n", b"\n"]),
)
def test_a_stream_is_cut_into_its_requests(bodies: list[tuple[bytes, bool]], cut: int, end: bytes) -> None:
    data = b""
    for body, chunked in bodies:
        data += end.join([b"POST /x HTTP/1.1", b"Host: a", b""])
        if chunked:
            data += b"Transfer-Encoding: chunked" + end + end
            for at in range(0, len(body), 100):
                piece = body[at : at + 100]
                data += b"%x" % len(piece) + end + piece + end
            data += b"0" + end + end
        else:
            data += b"Content-Length: %d" % len(body) + end + end + body
    assert [request.body for request in read_all(data, cut)] == [body for body, _ in bodies]


@given(st.binary(max_size=400), st.integers(min_value=1, max_value=50))
def test_whatever_comes_is_a_request_or_an_error(data: bytes, cut: int) -> None:
    for start in (b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"):
        status = failure(partial(read_all, start + data, cut))
        assert status == 0 or 400 <= status < 600


def test_a_head_without_end_is_refused() -> None:
    assert failure(lambda: read_all(b"a: b\r\n" * LONGEST_HEAD, 6)) == 431


@pytest.mark.parametrize("data", [b"\r\n", b"1\r\na\r\n", b"1;" + b"x" * 200 + b"\r\na\r\n"])
def test_chunks_without_end_are_refused(data: bytes) -> None:
    start = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert failure(lambda: read_all(start + data * (LONGEST_BODY + 2), 100)) in (400, 413)


def test_trailers_without_end_are_refused() -> None:
    start = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    assert failure(lambda: read_all(start + b"a: b\r\n" * LONGEST_HEAD, 100)) == 431


def test_a_client_that_waits_for_100_is_told_once() -> None:
    reader = RequestReader()
    reader.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert reader.next() is None
    assert reader.waits_for_continue()
    assert not reader.waits_for_continue()
    reader.feed(b"ab")
    request = reader.next()
    assert request is not None
    assert request.body == b"ab"
    reader.feed(b"POST / HTTP/1.1\r\nExpect: miracles\r\n\r\n")
    with pytest.raises(HttpError, match="417"):
        reader.next()


@pytest.mark.parametrize(
    ("minor", "asked", "keeps"),
    [(1, "", True), (1, "Close", False), (0, "", False), (0, "Keep-Alive", True), (1, "keep-alive, close", False)],
)
def test_which_connections_are_kept(minor: int, asked: str, keeps: bool) -> None:
    assert Request("GET", "/", minor, {"connection": asked}).keeps is keeps


def test_every_byte_costs_the_same() -> None:
    """A stream of a head, a body in chunks of one byte, byte by byte."""

    def cost(size: int) -> float:
        data = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * size + b"0\r\n\r\n"
        data = b"\r\n" * size + data
        began = time.process_time()
        assert len(read_all(data, 1)) == 1
        return time.process_time() - began

    cost(100)
    small, large = min(cost(500) for _ in range(3)), min(cost(5000) for _ in range(3))
    assert large < 30 * small + 0.01


def test_answers_say_how_long_they_are() -> None:
    assert response(200, b"abc", [("EXT", "")], keeps=True).endswith(
        b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\nabc"
    )
    assert response(200, b"abc", head=True).endswith(b"Content-Length: 3\r\nConnection: close\r\n\r\n")


# --- XML --------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_whatever_comes_is_an_element_or_an_error(data: bytes) -> None:
    for text in (data, b"<a>" + data + b"</a>", b'<?xml version="1.0"?>' + data):
        try:
            elements.read(text)
        except ValueError:
            pass


@given(st.text(max_size=100))
def test_what_is_escaped_is_read_again(text: str) -> None:
    kept = "".join(char for char in text if elements.escape(char))
    read = elements.read(f"<a>{elements.escape(text)}</a>".encode("utf-8", "surrogatepass")).text
    assert read == kept.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a SYSTEM "http://192.168.56.10/x"><a/>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "<!DOCTYPE a><a/>",
        "<a>&b;</a>",
        "<a><b></a>",
        "<a/><a/>",
        "<a " + 'b="" ' * 2 + "/>",
        "",
        "<a>" * 17,
        "x" * 9000,
    ],
)
def test_documents_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        elements.read(text.encode())


def test_text_of_old_clients_is_read() -> None:
    """ISO 8859-1 that says nothing, or UTF-8, of itself; a zero byte at its end."""
    assert elements.read(b'<?xml version="1.0" encoding="utf-8"?><a>caf\xe9</a>').text == "café"
    assert elements.read("<a>café</a>".encode()).text == "café"
    assert elements.read(b"<a>b</a>\0").text == "b"


@pytest.mark.parametrize(
    "unit", [b"<a>", b"<a/>", b"&amp;", b'<a b="c"/>', b"<!-- -->", b"]]>", b"<![CDATA[x]]>", b"<?p?>", b"&#65;", b"x"]
)
def test_every_document_is_quick(unit: bytes) -> None:
    data = b"<r>" + unit * ((elements.LONGEST - 7) // len(unit)) + b"</r>"
    began = time.process_time()
    try:
        elements.read(data)
    except ValueError:
        pass
    assert time.process_time() - began < 0.05


# --- SOAP -------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(ALL), st.data())
def test_an_action_is_read_as_it_is_said(service: services.UpnpService, data: st.DataObject) -> None:
    action = data.draw(st.sampled_from(sorted(service.actions)))
    given_ = data.draw(st.dictionaries(names, st.text(st.characters(min_codepoint=0x21, max_codepoint=0x2FF))))
    inner = "".join(f"<{name}>{elements.escape(value)}</{name}>" for name, value in given_.items())
    body = f"<s:Envelope><s:Body><u:{action}>{inner}</u:{action}></s:Body></s:Envelope>".encode()
    quote = data.draw(st.sampled_from(["", '"']))
    call = soap.read_call(f"{quote}{service.type}#{action}{quote}", body)
    assert (call.service, call.action) == (service.type, action)
    assert call.arguments.keys() == given_.keys()


@given(st.text(max_size=60), st.binary(max_size=300))
def test_whatever_comes_is_a_call_or_a_fault(header: str, body: bytes) -> None:
    for text in (body, b"<Envelope><Body>" + body + b"</Body></Envelope>"):
        assert failure(partial(soap.read_call, header, text)) in (0, 401, 402)


@pytest.mark.parametrize("code", [401, 402, 501, 606, 701, 709, 713, 718, 999])
def test_a_fault_has_its_code(code: int) -> None:
    [[fault]] = ET.fromstring(soap.fault(ActionError(code)))
    assert fault.findtext(".//{*}errorCode") == str(code)


def test_an_answer_has_its_values_in_their_order() -> None:
    body = soap.answer(services.CONNECTION_1, "GetNATRSIPStatus", (0, 1))
    root = ET.fromstring(body)
    [inner] = root[0]
    assert inner.tag == "{urn:schemas-upnp-org:service:WANIPConnection:1}GetNATRSIPStatusResponse"
    assert [(value.tag, value.text) for value in inner] == [("NewRSIPAvailable", "0"), ("NewNATEnabled", "1")]
    with pytest.raises(ValueError, match="shorter"):
        soap.answer(services.CONNECTION_1, "GetNATRSIPStatus", (0,))


@given(
    st.dictionaries(st.sampled_from(["NewExternalPort", "NewInternalPort", "NewLeaseDuration"]), st.text(max_size=8))
)
def test_numbers_are_numbers_or_errors(given_: dict[str, str]) -> None:
    ordinary = {
        "NewExternalPort": "1",
        "NewInternalPort": "1",
        "NewProtocol": "TCP",
        "NewInternalClient": "192.168.56.10",
    }
    code = failure(lambda: arguments.mapping({**ordinary, **given_}))
    assert code in (0, 402, 601, 732)
    if not code:
        asked = arguments.mapping({**ordinary, **given_})
        assert 0 < asked.internal <= 65535
        assert 0 <= asked.external <= 65535


def test_a_description_is_one_line_of_at_most_256_characters() -> None:
    given_ = {
        "NewExternalPort": "1",
        "NewInternalPort": "1",
        "NewProtocol": "udp",
        "NewInternalClient": "192.168.56.10",
        "NewPortMappingDescription": "a\r\nb\x1b[0m" + "x" * 500,
    }
    assert arguments.mapping(given_).description == "ab[0m" + "x" * 251


def test_a_list_of_mappings_is_a_document() -> None:
    entry = ListedMapping("", 6000, "tcp", 6000, "192.168.56.10", "<&>", 60)
    [listed] = ET.fromstring(port_listing([entry]).encode())
    assert [value.text for value in listed] == [None, "6000", "TCP", "6000", "192.168.56.10", "1", "<&>", "60"]


# --- descriptions and discovery ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ALL, ids=lambda service: service.type)
def test_a_service_is_described_in_full(service: services.UpnpService) -> None:
    name = "{urn:schemas-upnp-org:service-1-0}"
    root = ET.fromstring(services.describe(service))
    variables = {variable.findtext(f"{name}name") for variable in root.iter(f"{name}stateVariable")}
    described = {action.findtext(f"{name}name") for action in root.iter(f"{name}action")}
    assert described == service.actions.keys()
    assert {related.text for related in root.iter(f"{name}relatedStateVariable")} <= variables
    evented = [variable for variable in root.iter(f"{name}stateVariable") if variable.get("sendEvents") == "yes"]
    assert {variable.findtext(f"{name}name") for variable in evented} == set(service.evented)


@pytest.mark.parametrize("version", [1, 2])
def test_a_device_is_described_with_all_its_pages(version: int) -> None:
    described = DEVICES[version]
    name = "{urn:schemas-upnp-org:device-1-0}"
    root = ET.fromstring(device.describe(described))
    assert [found.text for found in root.iter(f"{name}deviceType")] == list(described.types())
    assert [found.text for found in root.iter(f"{name}UDN")] == [f"uuid:{uuid}" for uuid in described.uuids]
    assert [found.text for found in root.iter(f"{name}controlURL")] == [
        described.page(service, "control") for service in described.all_services()
    ]


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_search_or_nothing(data: bytes) -> None:
    for start in (b"", b"M-SEARCH * HTTP/1.1\r\n", b'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:discover"\r\nST: '):
        search = ssdp.read_search(start + data)
        assert search is None or 0 <= search.wait <= ssdp.LONGEST_WAIT


def test_what_is_announced_can_be_read() -> None:
    speaker = ssdp.Speaker(list(DEVICES.values()), "http://192.168.56.2:2869", "algate", 7)
    for group in (ssdp.GROUP4, ssdp.GROUP6):
        messages = ssdp.alive(speaker, group) + ssdp.byebye(speaker, group)
        assert len(messages) == 2 * len(list(DEVICES[1].adverts()))
        for message in messages:
            method, target, _, headers = read_head(message)
            assert (method, target) == ("NOTIFY", "*")
            assert headers["usn"].startswith("uuid:1-")
            assert headers["bootid.upnp.org"] == "7"
            assert ("location" in headers) is (headers["nts"] == "ssdp:alive")


# --- events -----------------------------------------------------------------------------------------------------------

CALLBACK = Callback(Endpoint("192.168.56.10", 8080), "/x")


def subscribe(port: int = 8080) -> Subscribe:
    return Subscribe((Callback(Endpoint("192.168.56.10", port), "/x"),), 1800)


@given(st.dictionaries(st.sampled_from(["sid", "nt", "callback", "timeout"]), st.text(max_size=80)))
def test_whatever_comes_is_a_subscription_of_the_client_or_an_error(headers: dict[str, str]) -> None:
    for more in ({}, {"nt": "upnp:event"}, {"nt": "upnp:event", "callback": f"<http://192.168.56.10:8080/{headers}>"}):
        for method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            request = Request(method, "/", 1, {**headers, **more})
            status = failure(partial(gena.read_subscription, request, "192.168.56.10"))
            assert status in (0, 400, 412)
            asked = gena.read_subscription(request, "192.168.56.10") if not status else None
            if isinstance(asked, Subscribe):
                assert {callback.endpoint.host for callback in asked.callbacks} == {"192.168.56.10"}
                assert all(callback.endpoint.port >= 1024 for callback in asked.callbacks)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("Second-1800", 1800), ("Second-1", 1800), ("second-5000", 5000), ("Second-infinite", 7200), ("", 1800)],
)
def test_how_long_a_subscription_lasts(text: str, seconds: int) -> None:
    headers = {"nt": "upnp:event", "callback": "<http://192.168.56.10:8080/x>", "timeout": text}
    asked = gena.read_subscription(Request("SUBSCRIBE", "/", 1, headers), "192.168.56.10")
    assert asked == Subscribe((CALLBACK,), seconds)


def test_a_callback_may_be_of_ipv6() -> None:
    headers = {"nt": "upnp:event", "callback": "<http://[fd00:56:0::10]:8080/x>"}
    asked = gena.read_subscription(Request("SUBSCRIBE", "/", 1, headers), "fd00:56::10")
    assert isinstance(asked, Subscribe)
    assert b"HOST: [fd00:56::10]:8080\r\n" in gena.event(asked.callbacks[0], "uuid:1", 0, {"A": "<"})


def test_an_event_is_a_request_with_its_variables() -> None:
    head, _, body = gena.event(CALLBACK, "uuid:1", 3, {"ExternalIPAddress": "203.0.113.2"}).partition(b"\r\n\r\n")
    method, target, _, headers = read_head(head)
    assert (method, target, headers["seq"], headers["sid"]) == ("NOTIFY", "/x", "3", "uuid:1")
    assert headers["content-length"] == str(len(body))
    [[value]] = ET.fromstring(body)
    assert (value.tag, value.text) == ("ExternalIPAddress", "203.0.113.2")


def test_subscriptions_are_bounded_and_end() -> None:
    table = Subscriptions()
    for number in range(gena.MOST_OF_A_HOST):
        table.add(str(number), "192.168.56.10", "/p", subscribe(8000 + number), 0.0)
    with pytest.raises(HttpError, match="503"):
        table.add("more", "192.168.56.10", "/p", subscribe(9000), 0.0)
    for host in range(20, 20 + gena.MOST_SUBSCRIPTIONS // gena.MOST_OF_A_HOST - 1):
        for number in range(gena.MOST_OF_A_HOST):
            table.add(f"{host} {number}", f"192.168.56.{host}", "/p", subscribe(8000 + number), 0.0)
    with pytest.raises(HttpError, match="503"):
        table.add("more", "192.168.56.99", "/p", subscribe(), 0.0)
    assert len(table.of("/p", 1799.0)) == gena.MOST_SUBSCRIPTIONS
    assert table.of("/p", 1800.0) == []


def test_a_program_that_was_started_again_takes_its_subscription_over() -> None:
    table = Subscriptions()
    for number in range(3 * gena.MOST_OF_A_HOST):
        table.add(str(number), "192.168.56.10", "/p", subscribe(), 0.0)
    assert [subscription.sid for subscription in table.all(0.0)] == [str(3 * gena.MOST_OF_A_HOST - 1)]


def test_a_subscription_is_its_clients_own() -> None:
    table = Subscriptions()
    table.add("1", "192.168.56.10", "/p", subscribe(), 0.0)
    for client, page in (("192.168.56.11", "/p"), ("192.168.56.10", "/other")):
        with pytest.raises(HttpError, match="412"):
            table.renew(Renew("1", 1800), client, page, 1.0)
        with pytest.raises(HttpError, match="412"):
            table.remove("1", client, page, 1.0)
    assert table.renew(Renew("1", 1800), "192.168.56.10", "/p", 1000.0).ends == 2800.0
    table.remove("1", "192.168.56.10", "/p", 2000.0)
    assert len(table) == 0


def test_numbers_of_events_go_on_at_one() -> None:
    subscription = Subscriptions().add("1", "192.168.56.10", "/p", subscribe(), 0.0)
    assert [subscription.next_number() for _ in range(3)] == [0, 1, 2]
    subscription.number = 0xFFFFFFFF
    assert [subscription.next_number() for _ in range(2)] == [0xFFFFFFFF, 1]
