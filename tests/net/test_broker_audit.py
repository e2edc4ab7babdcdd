"""What becomes of each lease is on the log: opened, used, expired, closed, and by whom."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from alg.address import Endpoint
from gateway.lease.messages import Close, LeaseOpened, Open
from gateway.model.requests import Lease
from tests.net.broker_rig import CLIENT, SERVER, Rig, inbound, outbound, wait_for

pytestmark = [pytest.mark.net, pytest.mark.rig(per_client=2000)]


def lines(tmp_path: Path, lease: Lease, event: str) -> list[dict[str, str]]:
    """The lines about a lease with this event, as words."""
    found = []
    for line in (tmp_path / "log").read_text().splitlines():
        words = dict(word.split("=", 1) for word in line.split(" ") if "=" in word)
        if words.get("event") == event and words.get("id") == lease.id:
            found.append(words)
    return found


def says_all(words: dict[str, str], lease: Lease) -> None:
    """Whose it is, what for, who may come, how often, and until when."""
    assert words["client"] == CLIENT
    assert (words["flow"], words["reason"]) == (lease.flow, lease.reason)
    assert (words["public"], words["target"]) == (str(lease.public), str(lease.target))
    assert words["peer"] == (lease.peer or ",".join(lease.peers or ()))
    assert (words["kind"], words["uses"]) == (lease.kind, str(int(lease.single)))
    assert datetime.fromisoformat(words["expires"]).timestamp() == pytest.approx(lease.expires, abs=1)


def test_used_and_closed(rig: Rig, tmp_path: Path) -> None:
    listener = rig.listen(rig.inside, CLIENT, 50000)
    lease = rig.open(inbound(), slot=1)
    (opened,) = wait_for(lambda: lines(tmp_path, lease, "pinhole.open"), "the opening")
    assert opened["slot"] == "1"
    says_all(opened, lease)
    rig.connect(rig.outside, lease.public, SERVER)
    listener.accept()[0].close()
    rig.pinholes()
    (used,) = wait_for(lambda: lines(tmp_path, lease, "pinhole.use"), "the use")
    says_all(used, lease)
    other = rig.open(inbound(target=Endpoint(CLIENT, 50001)))
    rig.send(Close(other.id))
    (closed,) = wait_for(lambda: lines(tmp_path, other, "pinhole.close"), "the close")
    assert closed["by"] == "worker"
    says_all(closed, other)
    assert lines(tmp_path, other, "pinhole.use") == []


def test_a_conversation(rig: Rig, tmp_path: Path) -> None:
    request = inbound(transport="udp", kind="conversation", peer=None, peers=(SERVER,), reason="sip.rtp", second=50001)
    lease = rig.open(request)
    (opened,) = wait_for(lambda: lines(tmp_path, lease, "pinhole.open"), "the opening")
    says_all(opened, lease)
    host, port = lease.public.host, lease.public.port
    command = f"import socket; socket.socket(2, 2).sendto(b'x', ('{host}', {port}))"
    rig.within(rig.outside, lambda: exec(command))
    (used,) = wait_for(lambda: rig.pinholes() and lines(tmp_path, lease, "pinhole.use"), "the first packet")
    says_all(used, lease)
    (row,) = rig.pinholes()
    assert (row["packets"], row["bytes"]) == (1, 29)
    rig.send(Close(lease.id))
    (closed,) = wait_for(lambda: lines(tmp_path, lease, "pinhole.close"), "the close")
    says_all(closed, lease)


def test_nobody_came(rig: Rig, tmp_path: Path) -> None:
    leases = [rig.open(inbound(ttl=1.0)), rig.open(outbound(ttl=1.0))]
    for lease in leases:
        (expired,) = wait_for(lambda lease=lease: lines(tmp_path, lease, "pinhole.expire"), "its end")  # type: ignore[misc]
        says_all(expired, lease)
        assert lines(tmp_path, lease, "pinhole.use") == lines(tmp_path, lease, "pinhole.close") == []


def test_a_look_at_the_moment_of_the_end(rig: Rig, tmp_path: Path) -> None:
    """The kernel ends a pinhole a moment before the broker does: a look just then does not take it for used."""
    leases = [rig.open(inbound(target=Endpoint(CLIENT, 30000 + n), ttl=1.0 + n / 500)) for n in range(60)]
    wait_for(lambda: all(lines(tmp_path, lease, "pinhole.expire") for lease in leases), "their end")
    assert not any(lines(tmp_path, lease, "pinhole.use") for lease in leases)


def test_who_does_not_read_answers_has_no_pinholes(rig: Rig, tmp_path: Path) -> None:
    """What cannot be answered is closed again: nobody would ever close it."""
    count = 1000
    for number in range(count):
        rig.send(Open(number, inbound(target=Endpoint(CLIENT, 20000 + number))))

    def log(event: str) -> int:
        return (tmp_path / "log").read_text().count(event)

    wait_for(lambda: log("event=pinhole.open ") == count, "all requests")
    wait_for(lambda: log("event=pinhole.close by=unheard"), "a full socket")
    answered = 0
    rig.workers[0].setblocking(False)
    try:
        while True:
            answered += isinstance(rig.hear(), LeaseOpened)
    except BlockingIOError:
        pass
    assert 0 < answered < count
    wait_for(lambda: answered + log("event=pinhole.close by=unheard") == count, "the rest to be closed")
    wait_for(lambda: len(rig.pinholes()) == rig.count("once4") == answered, "the others to close")
