"""The broker as a process: many requests at once, its beginning and its end, a ruleset flushed below it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import gevent
import gevent.socket
import pytest

from alg.address import Endpoint
from gateway.lease.messages import LeaseOpened, Open, RequestRefused
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease
from gateway.pinhole.client import BrokerClient
from tests.net.broker_rig import CLIENT, SERVER, Rig, inbound, outbound, run, wait_for

pytestmark = [pytest.mark.net, pytest.mark.rig(per_client=300)]


def test_it_runs_with_one_capability(rig: Rig) -> None:
    assert rig.broker is not None
    status = Path(f"/proc/{rig.broker.pid}/status").read_text()
    net_admin = f"{1 << 12:016x}"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{kind}:\t{net_admin}" in status


def test_two_hundred_requests_in_flight(rig: Rig) -> None:
    sock = gevent.socket.socket(fileno=os.dup(rig.workers[0].fileno()))
    with sock:
        client = BrokerClient(sock, timeout=10.0)
        asking = [gevent.spawn(client.open, inbound(flow=f"f{i}")) for i in range(200)]
        leases = [greenlet.get(timeout=15) for greenlet in asking]
        assert [lease.flow for lease in leases] == [f"f{i}" for i in range(200)]
        assert len({lease.public for lease in leases}) == 200
        assert len(rig.pinholes()) == rig.count("once4") == 200
        for lease in leases:
            client.close(lease.id)
        gevent.sleep(0)  # what is said goes out at the end of a turn
        wait_for(lambda: rig.pinholes() == [], "all closed")
        assert rig.count("once4") == 0
        client.stop()


def test_one_bad_element_does_not_harm_the_others_of_its_batch(rig: Rig) -> None:
    element = f"{{ {SERVER} . tcp . 30005 . {CLIENT} timeout 60s }}"
    run("ip", "netns", "exec", rig.router, "nft", "add", "element", "inet", "algate", "once4", element)
    assert rig.broker is not None
    rig.broker.send_signal(signal.SIGSTOP)  # so that all wait, and go into one transaction
    for number in range(10):
        rig.send(Open(number, outbound(target=Endpoint(SERVER, 30000 + number))))
    rig.broker.send_signal(signal.SIGCONT)
    answers = {answer.id: answer for answer in (rig.hear() for _ in range(10))}
    refused = [answer for answer in answers.values() if isinstance(answer, RequestRefused)]
    assert [(answer.id, answer.rule) for answer in refused] == [(5, "kernel")]
    assert sum(isinstance(answer, LeaseOpened) for answer in answers.values()) == 9
    assert len(rig.pinholes()) == 9


def test_the_quota_is_the_clients_and_used_pinholes_do_not_count(rig: Rig) -> None:
    rig.listen(rig.inside, CLIENT, 50000)
    leases: list[Lease] = [rig.open(inbound(), slot=number % 2) for number in range(300)]
    for slot in (0, 1):
        assert "'quota'" in repr(rig.ask(inbound(), slot))
    rig.connect(rig.outside, leases[7].public, SERVER)
    rig.open(inbound())


def test_sigterm_takes_everything_away(rig: Rig) -> None:
    rig.open(inbound())
    assert "inet algate" in rig.tables()
    assert rig.end(signal.SIGTERM) == 0
    assert "algate" not in rig.tables()


def test_without_a_supervisor_it_goes_and_the_pinholes_stay(rig: Rig) -> None:
    rig.open(inbound())
    assert rig.lifeline is not None
    assert rig.broker is not None
    rig.lifeline.close()
    assert rig.broker.wait(10) == 0
    rig.broker = None
    assert rig.count("once4") == 1


def test_another_version_of_the_table_is_replaced_and_a_foreign_one_is_not_touched(rig: Rig) -> None:
    rig.end(signal.SIGKILL)
    rig.at(rig.router, "nft delete table inet algate")
    rig.at(rig.router, 'nft add table inet algate {comment"algate_other";}')
    with pytest.raises(AssertionError):
        rig.start()
    rig.kill()
    assert "algate_other" in rig.at(rig.router, "nft list ruleset")
    rig.at(rig.router, "nft delete table inet algate")
    rig.start()
    rig.open(inbound())
    assert rig.end() == 0


def test_a_dead_broker_is_a_refusal(rig: Rig) -> None:
    rig.end(signal.SIGKILL)
    sock = gevent.socket.socket(fileno=os.dup(rig.workers[0].fileno()))
    with sock:
        client = BrokerClient(sock, timeout=0.2)
        with pytest.raises(PinholeRefused, match="broker"):
            client.open(inbound())
        rig.start()  # the late answer arrives, and is closed again
        with gevent.Timeout(10):
            while rig.status()["opened"] == 0 or rig.pinholes():
                gevent.sleep(0.01)
        client.stop()
