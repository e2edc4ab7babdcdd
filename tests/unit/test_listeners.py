"""What is done with a listener at the end of a gateway."""

from __future__ import annotations

import socket
from typing import cast

from gateway.supervisor.listeners import _drop_new


class Forbidden:
    """A listener in a container that may not attach a filter."""

    def __init__(self) -> None:
        self.asked = 0

    def setsockopt(self, *_: object) -> None:
        self.asked += 1
        raise PermissionError(1, "Operation not permitted")


def test_a_listener_that_takes_no_filter_is_no_reason_to_end_without_draining() -> None:
    listener = Forbidden()
    _drop_new(cast(socket.socket, listener))
    assert listener.asked == 1
