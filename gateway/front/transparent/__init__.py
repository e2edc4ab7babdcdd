"""Serves redirected TCP connections of clients that know nothing of the gateway."""
