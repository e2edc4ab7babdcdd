"""Decides what a client may do, and how much of it. Pure decisions and counters."""
