"""Drivers feed protocol modules with events and carry out their commands."""
