"""Watches the iptables rules of this instance, and restores them when another program has removed them.

Rules that were seen complete, whatever has applied them (`algate rules apply`, a script), are kept from then on, until
`algate rules remove` says that they are not wanted any more.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

from alg.bucket import Rate
from gateway.broker.netlink import NetfilterError
from gateway.broker.ruleset_watch import RulesetWatch
from gateway.config.schema import Config
from gateway.host import foreign_chains, legacy_tables, rules
from gateway.model.errors import AlgateError
from gateway.observe.log import get_logger
from gateway.observe.metrics import Sample

SOON = 0.1  # seconds between a change and the look: one change rarely comes alone
POLL = 1.0  # seconds between two looks at iptables-legacy's tables, which announce no changes
RARELY = 30.0  # seconds between two looks without a reason; and between two where nothing tells of changes: POLL
RESTORATIONS, PER_SECOND = 10, 1 / 60
"""How often rules are restored: this often at once, and once a minute in the long run. A program that removes them more
often means to; a firewall that starts twice, table by table, removes them six times."""
REMOVING, APPLYING = 5.0, 30.0  # seconds that `algate rules remove` and `algate rules apply` may take

RulesState = Literal["unknown", "none", "applied", "absent", "incomplete"]

log = get_logger()


class Look(NamedTuple):
    """The result of a check: the state of the rules, and what of them is missing or why nothing is known.

    `foreign`: chains of other firewalls that seem to drop what the gateway admits, each with the first line that it
    needs. `rules`: what is there.
    """

    state: RulesState
    detail: str = ""
    foreign: tuple[tuple[str, str], ...] = ()
    rules: rules.RulesSnapshot | None = None


class RulesKeeper:
    """Keeps the rules. When `watch` is readable, the kernel has announced a change: call `changed`. When `wake` is
    readable, a check has ended: call `woken`, and `tick`, as at `next`. What takes long is done in a thread."""

    def __init__(self) -> None:
        self.look = Look("none")
        self.due = 0.0
        self._wanted = False
        self._left_at = -math.inf  # when the operator has removed the rules
        self._disputed = -math.inf  # until when they are not put back
        self._reported = ""
        self._reported_chains: set[str] = set()  # chains of others
        self._restorations = Rate(PER_SECOND, RESTORATIONS)
        self._worker = ThreadPoolExecutor(1)
        self._job: Future[Look] | None = None
        self._restoring = False
        self._seen: rules.RulesSnapshot | None = None  # complete, and so kept as they were then
        self._legacy = legacy_tables.LegacyTables()
        self._poll_at = 0.0
        self.wake, self._waker = socket.socketpair()
        self.wake.setblocking(False)
        self._left_out: int | None = None
        self.watch: RulesetWatch | None = None
        try:
            self.watch = RulesetWatch()
            self.watch.only_generations(without_pid=0)
        except NetfilterError:
            pass  # without CAP_NET_ADMIN there are no rules of ours

    def leave_out(self, pid: int | None) -> None:
        """Ignore changes of the broker's process, which concern no rule. Repeating it has no effect."""
        if self.watch is not None and pid != self._left_out:
            self._left_out = pid
            self.watch.only_generations(without_pid=pid or 0)

    def changed(self, now: float) -> None:
        """Handle announcements of the kernel: `watch` is readable."""
        if self.watch is not None and self.watch.read() is not None:
            self.due = min(self.due, now + SOON)

    def leave(self) -> None:
        """Forget that the rules are wanted: `algate rules remove` is about to remove them, or has done so."""
        self._wanted = False
        self._left_at = time.monotonic()
        self.due = min(self.due, self._left_at + SOON)

    def change(self) -> None:
        """Note that `algate rules apply` begins: until it is done, what differs is not put back."""
        self._disputed = time.monotonic() + APPLYING

    def applied(self) -> None:
        """Note that `algate rules apply` was run. A look that began before says nothing of what is there now."""
        self._job = None
        self._left_at = self._disputed = -math.inf
        self._restorations = Rate(PER_SECOND, RESTORATIONS)
        self._seen = None
        self.due = 0.0

    @property
    def next(self) -> float:
        """Return the time (monotonic) at which `tick` has something to do if no event comes before."""
        return math.inf if self._job is not None else min(self.due, self._poll_at)

    def tick(self, now: float, config: Config, may_restore: bool) -> None:
        """Check or restore the rules, if it is time. `may_restore`: whether this process may restore them; of two
        versions only one does."""
        if self._job is not None:
            if not self._job.done():
                return
            job, self._job = self._job, None
            self._found(job.result(), now, config, may_restore)
            return
        if now >= self._poll_at:
            self._poll_at = now + POLL
            if self.watch is None or self._legacy.changed():
                self.due = now
        if now >= self.due:
            self.due = now + RARELY
            seen = self._seen
            self._begin(lambda: look_at(config, seen))

    def _begin(self, job: Callable[[], Look]) -> None:
        self._job = self._worker.submit(job)
        self._job.add_done_callback(lambda _: self._waker.send(b"\0"))

    def woken(self) -> None:
        """Handle `wake`, which is readable when a check has ended; then call `tick`. What a check says after `tick` has
        found its result would otherwise wake the supervisor without end."""
        try:
            self.wake.recv(64)
        except BlockingIOError:
            pass

    def _found(self, look: Look, now: float, config: Config, may_restore: bool) -> None:
        self.look = look
        for chain, line in look.foreign:
            if chain not in self._reported_chains:
                log.warning("rules.foreign", chain=chain, line=line, hint="algate doctor prints all that is missing")
        self._reported_chains = {chain for chain, _ in look.foreign}
        if look.state == "applied":
            self._seen = look.rules
            if self._restoring:
                log.info("rules.restored")
            self._restoring = False
            self._reported = ""
            self._wanted = self._wanted or now >= self._left_at + REMOVING
            self._legacy.changed()  # as it is now is as it should be
        elif look.state == "unknown":
            if self._restoring:
                self._restore_failed(look.detail)
            self._restoring = False
        elif self._wanted and may_restore:
            self._gone(look, now, config)

    def _gone(self, look: Look, now: float, config: Config) -> None:
        """Handle rules that were applied and are missing, at least partly."""
        if not config.rules.restore:
            if self._is_news("gone"):
                log.error("rules.gone", missing=look.detail, hint="algate rules apply")
        elif now < self._disputed:
            self.due = self._disputed
        elif not self._restorations.take("", now):
            self._disputed = self.due = now + self._restorations.wait("", now)
            log.error("rules.disputed", missing=look.detail, seconds=round(self._disputed - now))
        else:
            log.error("rules.gone", missing=look.detail)
            self._restoring = True
            self._begin(lambda: put_back(config))

    def _restore_failed(self, error: str) -> None:
        if self._is_news("failed"):
            log.error("rules.restore_failed", error=error, hint="as root: algate rules apply")

    def _is_news(self, what: str) -> bool:
        """Whether this differs from what was logged last."""
        before, self._reported = self._reported, what
        return before != what

    # --- what is told of it -----------------------------------------------------------------------------------------

    def status(self) -> str:
        """Describe the state for `algate status` and the console; "" if this configuration has no rules."""
        match self.look.state:
            case "none":
                return ""
            case "applied":
                return "applied"
            case "unknown":
                return f"not known whether they are applied: {self.look.detail}"
        if not self._wanted:
            return "not applied"
        text = f"gone: {self.look.detail}"
        if self._disputed > time.monotonic():
            text += "; removed again and again, so left alone for a while (algate rules apply puts them back)"
        return text

    def obstacle(self) -> str:
        """Return why the gateway does not serve as it should: rules that were applied are missing. "" if all is
        well."""
        missing = self.look.state in ("absent", "incomplete") and self._wanted
        return f"iptables rules: {self.status()}" if missing else ""

    def samples(self) -> list[Sample]:
        """Return metrics; none where nothing is known."""
        if self.look.state in ("none", "unknown"):
            return []
        return [(("algate_rules_applied",), float(self.look.state == "applied"))]

    def close(self) -> None:
        """End the thread and close what is open."""
        self._worker.shutdown(wait=True)
        self.wake.close()
        self._waker.close()
        if self.watch is not None:
            self.watch.close()


def look_at(config: Config, before: rules.RulesSnapshot | None = None) -> Look:
    """Check whether the iptables rules of this instance are complete, and what they were `before`."""
    if not config.transparent_enabled:
        return Look("none")
    try:
        missing, there = rules.missing(config, before)
        lines = foreign_chains.missing(foreign_chains.ruleset(), config)
    except AlgateError as error:
        return Look("unknown", str(error))
    foreign = tuple({str(each.chain): each.line for each in reversed(lines)}.items())
    if missing is None:
        return Look("absent", "none of them is there", foreign)
    if config.rules.foreign == "add":
        missing += [f"nft {chain}: lines of ours" for chain, _ in foreign]
    return Look("incomplete", ", ".join(missing), foreign) if missing else Look("applied", "", foreign, there)


def put_back(config: Config) -> Look:
    """Apply the rules, and check them again."""
    try:
        rules.apply(config)
        if config.rules.foreign == "add":
            foreign_chains.add(config)
    except AlgateError as error:
        return Look("unknown", str(error))
    return look_at(config)
