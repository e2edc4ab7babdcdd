"""What a supervisor looks at again and again while it waits for its children: interfaces and addresses of this host,
shared files, iptables rules, and the service manager's watchdog."""

from __future__ import annotations

import selectors
import time

from gateway.host.address_watch import AddressWatch
from gateway.host.keeper import RulesKeeper
from gateway.process.lifeline import Departed, File
from gateway.supervisor.certificate_watch import CertificateWatch
from gateway.supervisor.children import Children
from gateway.supervisor.crew import Crew
from gateway.supervisor.listeners import Listeners
from gateway.supervisor.notify import Watchdog
from gateway.supervisor.shared_files import CHECK_INTERVAL


class Upkeep:
    """Keeps what children depend on as it must be. `rules`: the iptables rules of this instance; `certificates`: those
    that are in use."""

    def __init__(self, crew: Crew, children: Children, listeners: Listeners) -> None:
        self.rules = RulesKeeper()
        self.certificates = CertificateWatch()
        self._crew = crew
        self._children = children
        self._listeners = listeners
        self._addresses = AddressWatch()
        self._watchdog = Watchdog()
        self._next_look = time.monotonic()

    def register(self, selector: selectors.BaseSelector) -> None:
        """Watch for changes of addresses and rules. The data of the selector's keys are to be called."""
        selector.register(self._addresses, selectors.EVENT_READ, lambda: self._addresses.read(time.monotonic()))
        selector.register(self.rules.wake, selectors.EVENT_READ, self.rules.woken)
        if self.rules.watch is not None:
            changed = self.rules.changed
            selector.register(self.rules.watch, selectors.EVENT_READ, lambda: changed(time.monotonic()))

    def due(self) -> list[float]:
        """Return when (monotonic) `tick` has something to do."""
        return [self._watchdog.due, self._next_look, self.rules.next]

    def tick(self, *, running: bool, reloading: bool) -> None:
        """Do what is due. During a reload nothing is changed that children could take for the configuration before:
        it is found again at the next look."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + CHECK_INTERVAL
            self._listeners.look()
            if running and not reloading:
                self._crew.look_for_interfaces(self._children)
            if not reloading:
                self._hand_out_changed_files()
                self.certificates.tick(now, self._crew.config, self._crew.files)
        if self._crew.broker is not None:
            self.rules.leave_out(self._crew.broker.pid)
        self.rules.tick(now, self._crew.config, may_restore=running and not reloading)
        if self._addresses.gone(now):
            for worker in self._crew.workers:
                worker.tell(Departed())
        self._children.tick(now)
        self._watchdog.tick(now, self._children.answering)

    def close(self) -> None:
        """Watch nothing any more."""
        self._addresses.close()
        self.rules.close()

    def _hand_out_changed_files(self) -> None:
        for name, fd in self._crew.files.refresh().items():
            self.certificates.look_soon()
            for worker in self._crew.workers:
                worker.tell(File(name), [fd])
