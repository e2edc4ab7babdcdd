from tests.unit.relay.conftest import relay

__all__ = ["relay"]
