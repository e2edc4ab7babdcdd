"""The states of an FTP control connection, and the steps that lead from one to another.

Each side has a state of its own. The table is complete: a step that is not in it cannot happen. docs/protocols/ftp.md
shows it (`python -m alg.ftp.state`).
"""

from __future__ import annotations

from enum import StrEnum


class Control(StrEnum):
    """The states of one side of a control connection: what is done with its bytes."""

    GREETING = "greeting"
    COMMANDS = "commands"
    WAITING = "waiting"
    AUTH = "auth"
    TLS = "tls"
    UNREAD = "unread"


class ControlStep(StrEnum):
    """The events that change the state of one side."""

    PROVED = "proved"
    ASKED = "asked"
    ANSWERED = "answered"
    SENT_AUTH = "sent AUTH"
    AUTH_REFUSED = "AUTH refused"
    AUTH_AGREED = "AUTH agreed"
    CLEAR = "clear again"
    GIVEN_UP = "given up"


MEANINGS: dict[Control | ControlStep, str] = {
    Control.GREETING: "nothing has shown yet that this side speaks FTP: its first line decides",
    Control.COMMANDS: "its lines are read: commands of the client, replies of the server",
    Control.WAITING: "a line is held back until its pinhole is open, and nothing behind it moves",
    Control.AUTH: "the client's bytes pass as they come: they may be TLS already",
    Control.TLS: "its bytes pass unread; the lengths of TLS records are followed, in case of CCC",
    Control.UNREAD: "its bytes pass unread, to the end",
    ControlStep.PROVED: "the client's first line is a command, or the server has greeted (2xx or 3xx)",
    ControlStep.ASKED: "a line names an endpoint: a pinhole is asked for",
    ControlStep.ANSWERED: "the answer is there, or was waited for in vain: the line goes out",
    ControlStep.SENT_AUTH: "the client has sent AUTH",
    ControlStep.AUTH_REFUSED: "the server has refused AUTH (4xx, 5xx)",
    ControlStep.AUTH_AGREED: "the server has agreed to AUTH (234)",
    ControlStep.CLEAR: "no TLS record begins where one had to begin (CCC)",
    ControlStep.GIVEN_UP: "a line that no honest peer sends, or bytes that can never be read",
}

TABLE: dict[tuple[Control, ControlStep], Control] = {
    (Control.GREETING, ControlStep.PROVED): Control.COMMANDS,
    (Control.COMMANDS, ControlStep.ASKED): Control.WAITING,
    (Control.WAITING, ControlStep.ANSWERED): Control.COMMANDS,
    (Control.COMMANDS, ControlStep.SENT_AUTH): Control.AUTH,
    (Control.AUTH, ControlStep.AUTH_REFUSED): Control.COMMANDS,
    (Control.AUTH, ControlStep.AUTH_AGREED): Control.TLS,
    (Control.COMMANDS, ControlStep.AUTH_AGREED): Control.TLS,  # the server's side
    (Control.TLS, ControlStep.CLEAR): Control.GREETING,
    **{(state, ControlStep.GIVEN_UP): Control.UNREAD for state in Control},
}


def after(state: Control, step: ControlStep) -> Control:
    """Return the state that `step` leads to. Raises KeyError if the step cannot happen in this state."""
    return TABLE[state, step]


def diagram() -> str:
    """Return the table as a Mermaid diagram, and the meaning of each state and step, in Markdown."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {Control.GREETING}"]
    lines += [
        f"    {state} --> {to}: {step}" for (state, step), to in TABLE.items() if step is not ControlStep.GIVEN_UP
    ]
    lines += [
        f"    {state} --> {Control.UNREAD}: {ControlStep.GIVEN_UP}" for state in Control if state != Control.UNREAD
    ]
    lines += ["```", "", "| state of a side | what is done with its bytes |", "| --- | --- |"]
    lines += [f"| {state} | {MEANINGS[state]} |" for state in Control]
    lines += ["", "| step | what has happened |", "| --- | --- |"]
    lines += [f"| {step} | {MEANINGS[step]} |" for step in ControlStep]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
