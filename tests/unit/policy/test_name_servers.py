"""[dns]: which name servers are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.load import parse_config
from gateway.net.resolver import ResolveError, Resolver
from gateway.process.service import resolver_of
from tests.unit.test_resolve import NameServer


def test_the_configured_servers_are_asked(tmp_path: Path) -> None:
    server = NameServer()
    try:
        server.zone["www.example.com", "A"] = ["192.0.2.7"]
        config = parse_config(f'[dns]\nservers = ["127.0.0.1:{server.port}"]\ntimeout = 2\n', "test")
        assert resolver_of(config.dns).resolve("www.example.com") == ["192.0.2.7"]
        assert ("www.example.com", "A") in server.queries
        resolver = Resolver(resolv_conf=str(tmp_path / "missing"), servers=[("127.0.0.1", server.port)])
        assert resolver.resolve("www.example.com") == ["192.0.2.7"]
    finally:
        server.stop()


def test_a_server_that_is_dead_costs_the_timeout_and_no_more() -> None:
    server = NameServer()
    server.mute = {"A", "AAAA"}
    try:
        config = parse_config(f'[dns]\nservers = ["127.0.0.1:{server.port}"]\ntimeout = 0.3\n', "test")
        with pytest.raises(ResolveError) as caught:
            resolver_of(config.dns).resolve("www.example.com")
        assert caught.value.kind == "timeout"
    finally:
        server.stop()
