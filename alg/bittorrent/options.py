"""The keys of `[alg.bittorrent]` that only BitTorrent has. `description` is what docs/reference/ says about each."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BittorrentOptions:
    """Options of the BitTorrent module. Raises ValueError, beginning with the key, for values that make no sense."""

    verify: str = field(
        default="handshake",
        metadata={
            "description": 'How a port that a client announces is proven before it is opened. "handshake": the client '
            'answers BitTorrent\'s handshake there, for the torrent that it announces; "listen": something accepts a '
            "connection there. Clients that demand encryption do not answer a plain handshake."
        },
    )

    def __post_init__(self) -> None:
        if self.verify not in ("handshake", "listen"):
            raise ValueError(f'verify: {self.verify!r} is neither "handshake" nor "listen"')
