"""Runs any program through proxies: in a network namespace without another way out, or by answering its system
calls."""
