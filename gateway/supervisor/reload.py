"""Reload: another configuration for a running gateway, which is validated, prepared by every process, and only then
used by all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.config.schema import Config
from gateway.host import rules
from gateway.model.errors import AlgateError, ConfigError
from gateway.observe.log import get_logger, setup_logging
from gateway.process.lifeline import Busy, Commit, Done, FromChild, Prepare, Prepared, Rollback
from gateway.supervisor.child import Child
from gateway.supervisor.children import Children
from gateway.supervisor.crew import Crew
from gateway.supervisor.listeners import LINGER, Listeners, places
from gateway.supervisor.shared_files import SharedFiles

log = get_logger()

DEADLINE = 10.0  # seconds that a child may take to prepare, and to change, since it has said that it is busy
NEW_PROCESSES = ("run_dir", "user", "broker_user", "workers")  # keys of [process] that only a new process can heed


class Reload:
    """One reload. `poll(until)` handles events meanwhile; messages of children come in by `heard`."""

    def __init__(
        self, new: Config, listeners: Listeners, crew: Crew, children: Children, poll: Callable[[float], None]
    ) -> None:
        self._old = crew.config
        self.config, self.kept = _usable(self._old, new)
        self._listeners = listeners
        self._crew = crew
        self._children = children
        self._poll = poll
        self._waiting: dict[Child, int | None] = {}  # whose answer is awaited, and its pid
        self._ended = 0
        self._until = 0.0  # when (monotonic) answers are not awaited any more
        self._failure = ""

    def heard(self, child: Child, message: FromChild) -> None:
        """Take a child's answer."""
        match message:
            case Prepared(reason):
                self._failure = self._failure or reason
                self._waiting.pop(child, None)
            case Done(ended):
                self._ended += ended
                self._waiting.pop(child, None)
            case Busy() if child in self._waiting:
                self._until = time.monotonic() + DEADLINE

    def run(self) -> dict[str, Any]:
        """Carry out the reload, and return what has changed. Raises AlgateError with the reason if nothing has
        changed."""
        if self.config.broker_wanted != self._old.broker_wanted:
            key = "pinhole.backend" if self._old.pinhole != self.config.pinhole else "network.inside_interfaces"
            raise ConfigError(
                f"{key}: whether there is a broker changes only in new processes: use `algate reload --upgrade`"
            )
        files = SharedFiles(self.config)
        wanted = places(self.config)
        removed = self._listeners.places() - wanted.keys()
        added = {place: key for place, key in wanted.items() if place not in self._listeners.places()}
        before = self._crew.config, self._crew.files
        in_place = [child for child in (*self._crew.workers, self._crew.broker) if child is not None]
        try:
            self._listeners.open(added)
            self._crew.config, self._crew.files = self.config, files
            self._listeners.leave_out(removed)
            self._crew.check_console()
            self._tell_all(in_place, Prepare())
            if self._failure:
                raise ConfigError(self._failure)
            if self._waiting:
                names = ", ".join(child.name for child in self._waiting)
                raise AlgateError(f"{names}: no answer within {DEADLINE:g} s")
            self._listeners.listen()
            with_rules = self._change_rules()
        except (AlgateError, OSError):
            for child in in_place:
                child.tell(Rollback())
            self._crew.config, self._crew.files = before
            self._listeners.leave_out(())
            self._listeners.discard(added)
            files.close()
            raise
        if self.config.log != self._old.log:
            setup_logging("supervisor", self.config.log.settings)
        self._tell_all(in_place, Commit())
        for child in self._waiting:
            log.error("reload.unanswered", child=child.name, pid=child.pid)
            self._children.kill(child)  # its successor starts with the new configuration
        before[1].close()
        self._crew.refit(self._old, self._children, self._poll)
        self._retire(removed)
        return {
            "changed": changes(self._old, self.config),
            "restart": self.kept,
            "listeners_added": [str(place.endpoint) for place in added],
            "listeners_removed": [str(place.endpoint) for place in removed],
            "rules": with_rules,
            "ended": self._ended,
        }

    def _tell_all(self, children: Sequence[Child], message: Prepare | Commit) -> None:
        """Send a message to children, and wait for the answers of those that are alive."""
        self._waiting = {child: child.pid for child in children if child.ready}
        for child in self._waiting:
            if isinstance(message, Prepare):
                child.prepare()
            else:
                child.tell(message)
        self._until = time.monotonic() + DEADLINE
        while self._waiting and time.monotonic() < self._until:
            self._poll(self._until)
            self._waiting = {child: pid for child, pid in self._waiting.items() if child.pid == pid}

    def _change_rules(self) -> str:
        """Apply the new iptables rules, if this instance's rules are applied and we may change them: with iptables-nft
        CAP_NET_ADMIN is enough, iptables-legacy needs root."""
        if not self.config.transparent_enabled:
            return "none"
        if all(rules.render(self._old, family) == rules.render(self.config, family) for family in rules.FAMILIES):
            return "as before"
        try:
            if not rules.applied(self.config):
                return "not applied"
            rules.apply(self.config)
        except AlgateError:
            if os.geteuid() == 0:
                raise
            return "to be applied"
        return "changed"

    def _retire(self, removed: Sequence[Any] | set[Any]) -> None:
        """Close listeners after all clients that have connected are accepted."""
        if removed:
            self._listeners.refuse(removed)
            until = time.monotonic() + LINGER
            while time.monotonic() < until:
                self._poll(until)
            self._listeners.discard(removed)


def reload_retired(new: Config, listeners: Listeners, crew: Crew) -> None:
    """Let workers that only wait for the end of their flows check these by a new configuration. Raises AlgateError."""
    files = SharedFiles(new)
    before = crew.files
    crew.config, crew.files = _usable(crew.config, new)[0], files
    listeners.leave_out(listeners.places())  # they listen no more
    for worker in crew.workers:
        worker.prepare()
        worker.tell(Commit())
    before.close()


def _usable(old: Config, new: Config) -> tuple[Config, list[str]]:
    """Return the new configuration as far as running processes can use it, and the keys that need new processes."""
    kept = [f"process.{key}" for key in NEW_PROCESSES if getattr(old.process, key) != getattr(new.process, key)]
    process = msgspec.structs.replace(new.process, **{key: getattr(old.process, key) for key in NEW_PROCESSES})
    return msgspec.structs.replace(new, process=process), kept


def changes(old: Config, new: Config) -> list[str]:
    """Return the differences as "KEY: BEFORE -> AFTER", without secrets, and with long values shortened."""
    before, after = _flat(msgspec.to_builtins(old)), _flat(msgspec.to_builtins(new))
    found = [
        f"{key}: {_change(before.get(key), after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not key.startswith("loaded.")
    ]
    if old.loaded.access != new.loaded.access:
        found.append("socks.access_file: other rules")
    if old.loaded.passwords != new.loaded.passwords:
        found.append("upstream: other passwords")
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def _change(before: Any, after: Any) -> str:
    old, new = _short(before), _short(after)
    return f"{old} -> {new}" if old != new else f"{old}, changed"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return f"{len(value)} of them"
    text = "none" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."
