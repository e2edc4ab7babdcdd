"""The states of a supervisor, and the steps that lead from one to another.

A step that is not in the table changes nothing. docs/architecture.md shows it (`python -m gateway.supervisor.state`).
What outlives a version (listeners, the broker's table, the run directory, the iptables rules) belongs to the supervisor
that is in charge: of two versions always exactly one.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The states of a supervisor."""

    STARTING = "starting"
    SUCCEEDING = "succeeding"
    RUNNING = "running"
    STOPPING = "stopping"
    DRAINING = "draining"
    EMPTYING = "emptying"
    RETIRED = "retired"
    ABANDONING = "abandoning"

    @property
    def in_charge(self) -> bool:
        """Whether what outlives a version belongs to this supervisor."""
        return self not in (State.SUCCEEDING, State.RETIRED, State.ABANDONING)

    @property
    def shown(self) -> str:
        """The state as `algate status` and the console show it. The two draining states, with and without a time limit,
        are "draining"."""
        return str(State.DRAINING if self is State.EMPTYING else self)


class Step(StrEnum):
    """The events that change the state of a supervisor."""

    READY = "all are ready"
    TOOK_OVER = "took over"
    HANDED_OVER = "handed over"
    STOP = "asked to stop"
    DRAIN = "asked to drain"
    END = "end of the loop"


FIRST = (State.STARTING, State.SUCCEEDING)

MEANINGS: dict[State | Step, str] = {
    State.STARTING: "its children start",
    State.SUCCEEDING: "a new version: its children start beside those of the version before, which is in charge",
    State.RUNNING: "serves; dead children are replaced; commands of the operator are carried out",
    State.STOPPING: "was asked to stop, and leaves its loop",
    State.DRAINING: "nothing is accepted; flows end within `process.drain_timeout`, then the rules are taken away",
    State.EMPTYING: "as draining, without a limit of time",
    State.RETIRED: "the next version is in charge; the workers of this one end with their flows",
    State.ABANDONING: "a new version that does not take over after all ends its own children and touches nothing else",
    Step.READY: "every child has said that it is ready",
    Step.TOOK_OVER: "the version before has let go, and all children of this one work",
    Step.HANDED_OVER: "the next version has said that it is ready",
    Step.STOP: "SIGTERM or SIGINT; while it drains a second one cuts the flows that are left",
    Step.DRAIN: "`algate drain`",
    Step.END: "the loop is left, or the start has failed",
}

TABLE: dict[tuple[State, Step], State] = {
    (State.STARTING, Step.READY): State.RUNNING,
    (State.STARTING, Step.STOP): State.STOPPING,
    (State.STARTING, Step.END): State.DRAINING,
    (State.SUCCEEDING, Step.TOOK_OVER): State.STARTING,
    (State.SUCCEEDING, Step.STOP): State.ABANDONING,
    (State.SUCCEEDING, Step.END): State.ABANDONING,
    # It was asked to stop when the version before had let go already: nobody else would end what it is in charge of.
    (State.ABANDONING, Step.TOOK_OVER): State.STOPPING,
    (State.RUNNING, Step.STOP): State.STOPPING,
    (State.RUNNING, Step.DRAIN): State.EMPTYING,
    (State.RUNNING, Step.HANDED_OVER): State.RETIRED,
    (State.RUNNING, Step.END): State.DRAINING,
    (State.STOPPING, Step.HANDED_OVER): State.RETIRED,  # the next version is told to stop
    (State.STOPPING, Step.END): State.DRAINING,
    (State.EMPTYING, Step.STOP): State.DRAINING,
}


def after(state: State, step: Step) -> State:
    """Return the state that `step` leads to; the same state if the table has none."""
    return TABLE.get((state, step), state)


def diagram() -> str:
    """Return the table as a Mermaid diagram, and the meaning of each state and step, in Markdown."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state}" for state in FIRST]
    lines += [f"    {state} --> {to}: {step}" for (state, step), to in TABLE.items()]
    ends = [state for state in State if Step.END not in {step for at, step in TABLE if at is state}]
    lines += [f"    {state} --> [*]" for state in ends]
    lines += ["```", "", "| state | what the supervisor does |", "| --- | --- |"]
    lines += [f"| {state} | {MEANINGS[state]} |" for state in State]
    lines += ["", "| step | what has happened |", "| --- | --- |"]
    lines += [f"| {step} | {MEANINGS[step]} |" for step in Step]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
