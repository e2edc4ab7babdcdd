"""Decides what a client may do, and how much of it: pure decisions and counters."""
