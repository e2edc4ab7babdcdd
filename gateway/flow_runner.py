"""Carrying one flow once both its sockets are connected: through its module, or straight to the relay."""

from __future__ import annotations

from collections.abc import Mapping

import gevent.socket as gsocket

from alg.api import AlgModule, FlowContext, Mode, Side
from gateway.config import Config
from gateway.flow import Flow, Flows
from gateway.inspection import Inspection, Pinholes
from gateway.own_address import public_address
from gateway.sockets import abort, endpoint, prepare


class FlowRunner:
    """Runs flows for the fronts. `modules` by name, `pinholes` by front."""

    def __init__(
        self,
        config: Config,
        flows: Flows,
        modules: Mapping[str, type[AlgModule]],
        pinholes: Mapping[str, Pinholes],
    ) -> None:
        self._config = config
        self._flows = flows
        self._modules = modules
        self._pinholes = pinholes

    def run(
        self,
        front: str,
        client: gsocket.socket,
        server: gsocket.socket,
        *,
        early: bytes = b"",
        user: str | None = None,
    ) -> None:
        """Carry a flow; owns both sockets from now on. Returns when no greenlet is needed for it any more.

        `early`: bytes of the client that came with its handshake and are meant for the server.
        """
        try:
            prepare(client)
            prepare(server)
            flow = self._flows.add(front, endpoint(client.getpeername()), endpoint(server.getpeername()), user)
        except OSError:  # one of them is gone already
            abort(client)
            abort(server)
            return
        responsible = self._config.module_of(flow.server.port)
        if responsible is not None:
            name, section = responsible
            flow.module = name
            if self._inspect(flow, self._modules[name], section.mode, client, server, early):
                return
        elif early:
            try:
                server.sendall(early)
            except OSError:
                abort(client)
                abort(server)
                self._flows.end(flow, "reset")
                return
        self._flows.relay(flow, client, server)

    def _inspect(
        self,
        flow: Flow,
        module: type[AlgModule],
        mode: Mode,
        client: gsocket.socket,
        server: gsocket.socket,
        early: bytes,
    ) -> bool:
        """Drive the module until the flow is over (True) or the module has stood down (False)."""
        inspection = Inspection(
            flow,
            module(FlowContext(flow.client, flow.server)),
            mode,
            {Side.CLIENT: client, Side.SERVER: server},
            self._pinholes[flow.front],
            public_address(self._config.network.outside, endpoint(server.getsockname()).host),
        )
        flow.hand_over(inspection)
        over = True
        try:
            over = inspection.run(early)
        finally:
            if over:
                client.close()
                server.close()
                self._flows.end(flow, inspection.reason)
        return over
