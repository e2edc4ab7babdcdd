"""Checks live flows against new rules. Flows that are no longer allowed are ended with a reset to both sides."""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog

from alg.address import Endpoint
from gateway.flow.table import Flow, Flows
from gateway.flow.upstream import Upstreams
from gateway.model.requests import CommandName, ConnectRequest
from gateway.policy.decide import Decision, PolicyInForce

log = structlog.get_logger()

_COMMANDS: dict[str | None, CommandName] = {"socks.bind": "bind", "socks.udp": "udp"}  # by the flow's module


class Audit:
    """Asks the policy again about flows that it once permitted. `groups`: the groups of a user; `published`: published
    servers."""

    def __init__(
        self,
        flows: Flows,
        policy: PolicyInForce,
        groups: Callable[[str], tuple[str, ...]],
        upstreams: Upstreams,
        published: Collection[Endpoint],
    ) -> None:
        self._flows = flows
        self._policy = policy
        self._groups = groups
        self._upstreams = upstreams
        self._published = frozenset(published)
        self._checked: set[str] = set()

    def run(self) -> int:
        """Check the flows that were not checked yet, and return how many were ended. A flow that was set up while the
        rules changed was decided by the old ones, so call this again later."""
        ended = 0
        live = list(self._flows)
        for flow in live:
            if flow.id in self._checked or flow.carrier is None:
                continue
            decision = self._decide(flow)
            if decision is None or decision.permit:
                self._checked.add(flow.id)
                if decision is not None and decision.rule != flow.rule:
                    self._rename(flow, decision.rule)
                continue
            log.warning("flow.denied", **flow.names(), denied_by=decision.rule)
            flow.carrier.abort()
            ended += 1
            ended += sum(self._end_data(other) for other in live if other.parent == flow.id)
        return ended

    def _end_data(self, flow: Flow) -> bool:
        if flow.carrier is None:
            return False
        log.warning("flow.denied", **flow.names(), parent=flow.parent)
        flow.carrier.abort()
        return True

    def _rename(self, flow: Flow, rule: str) -> None:
        """Count a flow for the rule that permits it now."""
        flow.rule = rule
        if flow.session is not None:
            flow.session.move(rule)

    def _decide(self, flow: Flow) -> Decision | None:
        """Return the policy's decision on a flow; None for data connections, which depend on the flow that they belong
        to."""
        if flow.front == "pinhole":
            return None
        if flow.front == "published":
            return Decision(flow.server in self._published, "published")
        request = self._request(flow)
        if request.command == "udp":
            return self._policy.current.decide_association(request)
        judgement = self._policy.current.judge(request)
        if not judgement.client.permit:
            return judgement.client
        by_name = judgement.by_name
        if by_name is not None and self._upstreams.resolve_remotely(by_name):
            return by_name
        return judgement.at(flow.server.ip)

    def _request(self, flow: Flow) -> ConnectRequest:
        command = "transparent" if flow.front == "transparent" else _COMMANDS.get(flow.module, "connect")
        host, _, port = (flow.target or "").rpartition(":")
        return ConnectRequest(
            command,
            flow.client,
            host or flow.server.host,
            int(port) if host else flow.server.port,
            flow.user,
            self._groups(flow.user) if flow.user else (),
        )
