"""alg.sip.message over RFC 4475 and RFC 5118: well-formed messages field by field, the others as they came."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from alg.address import Endpoint
from alg.api import Note, Side
from alg.datagrams import Datagram, Release
from alg.sip.ladder import unread_rung
from alg.sip.message import Message, parse, uri_host
from alg.sip.sdp import find_sdp
from alg.sip.udp import SipEngine
from alg.text.header import Malformed
from alg.text.sdp import read_sdp
from tests.unit.alg.sip.rfc_messages import FOLDER, paths, read

# RFC 4475, 3.1.2, and those of 3.3 whose fields contradict or lack each other; RFC 5118, 4.2. Not those whose oddity is
# in a place that is neither edited nor decides: names in From and To (quotbal, badaspec, baddn), blanks behind the
# start line (trws).
MALFORMED = [
    "badinv01", "clerr", "ncl", "scalar02", "scalarlg", "ltgtruri", "lwsruri", "lwsstart", "escruri",
    "regbadct", "badvers", "mismatch01", "mismatch02", "bigcode", "insuf", "multi01",
    "mcl01", "ipv6-bad",
]  # fmt: skip


@dataclass
class Well:
    """What a message says: `via` (the topmost) and `contacts` as HOST or HOST:PORT, `media` as KIND PORT at HOST."""

    name: str
    method: str
    status: int
    call_id: str
    cseq: int
    via: str
    contacts: str = ""
    from_tag: str = ""
    to_tag: str = ""
    media: str = ""
    behind: int = 0


AUDIO = "audio 49217 at {0}, video 3227 at {0}"
WELL = [
    Well("wsinv", "INVITE", 0, "wsinv.ndaksdj@192.0.2.1", 9, "192.0.2.2",
         "example.com", "98asjd8", "1918181833n", AUDIO.format("192.0.2.4")),
    Well("intmeth", "!interesting-Method0123456789_*+`.%indeed'~", 0, 'intmeth.word%ZK-!.*_+\'@word`~)(><:\\/"][?}{',
         139122385, "host1.example.com", "", "_token~1'+`*%!-."),
    Well("esc01", "INVITE", 0, "esc01.239409asdfakjkn23onasd0-3234", 234234, "host5.example.net", "host5.example.net",
         "938", "", AUDIO.format("192.0.2.1")),
    Well("escnull", "REGISTER", 0, "escnull.39203ndfvkjdasfkq3w4otrq0adsfdfnavd", 14398234, "host5.example.com",
         "host5.example.com host5.example.com", "839923423"),
    Well("esc02", "RE%47IST%45R", 0, "esc02.asdfnqwo34rq23i34jrjasdcnl23nrlknsdf", 29344, "host.example.com",
         "host1.example.com host3.example.com", "f232jadfj23"),
    Well("lwsdisp", "OPTIONS", 0, "lwsdisp.1234abcd@funky.example.com", 60, "funky.example.com", "", "323"),
    Well("longreq", "INVITE", 0, "longreq.one" + "really" * 20 + "longcallid", 3882340,
         "sip33.example.com", "host5.example.net",
         "1" + "298" * 50 + "2424", "",
         AUDIO.format("192.0.2.1")),
    Well("dblreq", "REGISTER", 0, "dblreq.0ha0isndaksdj99sdfafnl3lk233412", 8, "192.0.2.125", "host.example.com",
         "43251j3j324", behind=450),
    Well("semiuri", "OPTIONS", 0, "semiuri.0ha0isndaksdj", 8, "192.0.2.1", "", "33242"),
    Well("transports", "OPTIONS", 0, "transports.kijh4akdnaqjkwendsasfdj", 60,
         "t1.example.com", "", "323"),
    Well("mpart01", "MESSAGE", 0, "3d9485ad0c49859b@Zmx1ZmZ5LW1hYy0xNi5sb2NhbA..", 1, "127.0.0.1:5070",
         "127.0.0.1:5070", "2fb0dcc9"),
    Well("unreason", "INVITE", 200, "unreason.1234ksdfak3j2erwedfsASdf", 35, "192.0.2.198", "host198.example.com",
         "11141343", "2229", AUDIO.format("192.0.2.198")),
    Well("noreason", "INVITE", 100, "noreason.asndj203insdf99223ndf", 35, "192.0.2.105", "host105.example.com",
         "39ansfi3", "902jndnke3"),
    Well("badbranch", "OPTIONS", 0, "badbranch.sadonfo23i420jv0as0derf3j3n", 8, "192.0.2.1", "", "33242"),
    Well("unkscm", "OPTIONS", 0, "unkscm.nasdfasser0q239nwsdfasdkl34", 3923423, "host9.example.com", "", "384"),
    Well("novelsc", "OPTIONS", 0, "novelsc.asdfasser0q239nwsdfasdkl34", 3923423, "host9.example.com", "", "384"),
    Well("unksm2", "REGISTER", 0, "unksm2.daksdj@hyphenated-host.example.com", 234902, "192.0.2.21:5060", "-",
         "3234233"),
    Well("bext01", "OPTIONS", 0, "bext01.0ha0isndaksdj", 8, "fold-and-staple.example.com", "", "242etr"),
    Well("invut", "INVITE", 0, "invut.0ha0isndaksdjadsfij34n23d", 235448, "somehost.example.com", "host5.example.net",
         "8392034"),
    Well("regaut01", "REGISTER", 0, "regaut01.0ha0isndaksdj", 9338, "192.0.2.253", "", "87321hj23128"),
    Well("baddate", "INVITE", 0, "baddate.239423mnsadf3j23lj42--sedfnm234", 1392934, "host.example.com",
         "host5.example.net", "2234923", "", AUDIO.format("192.0.2.5")),
    Well("bcast", "INVITE", 200, "bcast.0384840201234ksdfak3j2erwedfsASdf", 35, "192.0.2.198",
         "host28.example.com", "11141343", "2229", AUDIO.format("192.0.2.198")),
    Well("zeromf", "OPTIONS", 0, "zeromf.jfasdlfnm2o2l43r5u0asdfas", 39234321, "host1.example.com", "", "3ghsd41"),
    Well("cparam01", "REGISTER", 0, "cparam01.70710@saturn.example.com", 2, "saturn.example.com:5060",
         "gw1.example.net", "DkfVgjkrtMwaerKKpe"),
    Well("cparam02", "REGISTER", 0, "cparam02.70710@saturn.example.com", 3, "saturn.example.com:5060",
         "gw1.example.net", "838293"),
    Well("regescrt", "REGISTER", 0, "regescrt.k345asrl3fdbv@192.0.2.1", 14398234, "host5.example.com", "example.com",
         "8"),
    Well("sdp01", "INVITE", 0, "sdp01.ndaksdj9342dasdd", 8, "192.0.2.15", "host15.example.net", "234", "",
         AUDIO.format("192.0.2.5")),
    Well("inv2543", "INVITE", 0, "inv2543.1717@ift.client.example.com", 56, "iftgw.example.com", "", "", "",
         "audio 49217 at 192.0.2.5"),
    Well("quotbal", "INVITE", 0, "quotbal.aksdj", 8, "192.0.2.59:5050", "host59.example.net", "93334", "",
         "audio 49217 at 192.0.2.15, video 3227 at 192.0.2.15"),
    Well("trws", "OPTIONS", 0, "trws.oicu34958239neffasdhr2345r", 238923, "host1.examle.com", "", "329429089"),
    Well("badaspec", "OPTIONS", 0, "badaspec.sdf0234n2nds0a099u23h3hnnw009cdkne3", 3923239, "host4.example.com:5060",
         "", "433423"),
    Well("baddn", "OPTIONS", 0, "baddn.31415@c.example.com", 3923239, "c.example.com:5060", "", "43"),
    Well("ipv6-good", "REGISTER", 0, "SSG9559905523997077@hlau_4100", 98176, "2001:db8::9:1", "2001:db8::1", "81x2"),
    Well("port-ambiguous", "REGISTER", 0, "SSG9559905523997077@hlau_4100", 98176, "2001:db8::9:1", "2001:db8::1",
         "81x2"),
    Well("port-unambiguous", "REGISTER", 0, "SSG9559905523997077@hlau_4100", 98176, "2001:db8::9:1", "2001:db8::1",
         "81x2"),
    Well("via-received-param-with-delim", "BYE", 0, "SSG9559905523997077@hlau_4100", 321, "2001:db8::9:1", "", "81x2",
         "bd76ya"),
    Well("via-received-param-no-delim", "OPTIONS", 0, "SSG95523997077@hlau_4100", 921, "2001:db8::9:1",
         "2001:db8::9:1", "81x2"),
    Well("ipv6-in-sdp", "INVITE", 0, "SSG9559905523997077@hlau_4100", 8612, "2001:db8::20", "2001:db8::20", "81x2", "",
         "audio 6000 at 2001:db8::20, video 6024 at 2001:db8::20", 10),
    Well("mult-ip-in-header", "BYE", 0, "997077@lau_4100", 89187, "2001:db8::9:1:6050", "",
         "81x2", "9817--94"),
    Well("mult-ip-in-sdp", "INVITE", 0, "SSG9559905523997077@hlau_4100", 8912, "2001:db8::9:1", "2001:db8::9:1",
         "81x2", "", "audio 22334 at 192.0.2.1, video 6024 at 2001:db8::1", 8),
    Well("ipv4-mapped-ipv6", "INVITE", 0, "SSG9559905523997077@hlau_4100", 612,
         "::ffff:192.0.2.10:19823", "::ffff:192.0.2.2", "81x2", "",
         "audio 6000 at ::ffff:192.0.2.2, video 6024 at ::ffff:192.0.2.2", 9),
    Well("ipv6-bug-abnf-3-colons", "OPTIONS", 0, "G9559905523997077@hlau_4100", 689, "lab1.east.example.com", "",
         "810x2"),
    Well("ipv6-correct-abnf-2-colons", "OPTIONS", 0, "G9559905523997077@hlau_4100", 689, "lab1.east.example.com", "",
         "810x2"),
]  # fmt: skip


def contacts(message: Message) -> str:
    found = []
    for addr in message.addrs("contact"):
        place = uri_host(message.data, addr.uri)
        found.append("-" if place is None else place.host + (f":{place.port}" if place.port else ""))
    return " ".join(found)


def media(message: Message) -> str:
    span = find_sdp(message)
    if span is None:
        return ""
    lines = read_sdp(message.data, *span).media
    return ", ".join(
        f"{line.kind} {line.port} at {line.connection.host if line.connection else None}" for line in lines
    )


@pytest.mark.parametrize("well", WELL, ids=lambda well: well.name)
def test_well_formed(well: Well) -> None:
    data = read(well.name)
    message = parse(data)
    sent_by = message.via().sent_by
    via = sent_by.host + (f":{sent_by.port}" if sent_by.port is not None else "")
    assert (
        Well(
            well.name,
            message.method.decode(),
            message.status,
            message.call_id.decode(),
            message.cseq,
            via,
            contacts(message),
            message.tag("from").decode(),
            message.tag("to").decode(),
            media(message),
            len(data) - message.end,
        )
        == well
    )


def read_as_a_clients(data: bytes) -> None:
    message = parse(data)
    message.via()
    message.own_contacts()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    with pytest.raises(Malformed):
        read_as_a_clients(read(name))


def test_each_message_is_one_or_the_other() -> None:
    assert sorted([*MALFORMED, *(well.name for well in WELL)]) == sorted(path.stem for path in paths())
    assert len(paths()) == 61, f"{FOLDER} is not complete"


CLIENTS = ("192.0.2.1", "192.0.2.5", "192.0.2.15", "192.0.2.53", "192.0.2.59", "192.0.2.155", "2001:db8::9:1")


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("side", list(Side))
def test_malformed_is_relayed_as_it_came(name: str, client: str, side: Side) -> None:
    """Whoever sends it: of the address that it names, too. It is counted, and said why."""
    engine = SipEngine()
    server = Endpoint("2001:db8::5" if ":" in client else "198.51.100.5", 5060)
    if name in ("regbadct", "badinv01") and side is Side.SERVER:
        return  # its Contact and its Via are somebody else's matter
    note, release = engine.handle(Datagram(1, side, Endpoint(client, 5060), server, read(name), 0.0))
    assert isinstance(note, Note)
    assert note.code == "sip.unread"
    assert release == Release(1, (), unread_rung(read(name)))
    assert engine.counts()["unread"] == 1
    assert engine.calls() == []
