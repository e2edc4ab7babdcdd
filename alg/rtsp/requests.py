"""Which request a response answers (RFC 2326, 12.17), where cameras number as they like."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MOST_WAITING = 256  # requests without an answer that are remembered
_MOST_ANSWERED = 32


@dataclass(slots=True)
class OpenRequest:
    """A request that the client has sent. `refs`: conversations of the sockets that it names."""

    method: bytes
    uri: bytes
    cseq: bytes
    session: bytes
    refs: list[int] = field(default_factory=list)


class OpenRequests:
    """The requests that are not answered yet, in their order."""

    def __init__(self) -> None:
        self._waiting: deque[OpenRequest] = deque(maxlen=MOST_WAITING)
        self._answered: deque[bytes] = deque(maxlen=_MOST_ANSWERED)

    def add(self, request: OpenRequest) -> None:
        self._waiting.append(request)

    def answered(self, cseq: bytes, final: bool) -> OpenRequest | None:
        """The request that a response with this CSeq answers; None: none, as when it is answered already.

        Servers are known that leave CSeq out, or always send the same one: they answer in order. A response that is
        not `final` answers nothing yet.
        """
        found = next((request for request in self._waiting if cseq and request.cseq == cseq), None)
        if found is None and self._waiting and (not cseq or cseq not in self._answered):
            found = self._waiting[0]
        if found is not None and final:
            self._waiting.remove(found)
            if found.cseq == cseq:
                self._answered.append(cseq)
        return found

    def setting_up(self) -> list[int]:
        """The conversations that requests without an answer name."""
        return [ref for request in self._waiting for ref in request.refs]
