"""Opens the sockets, starts, replaces and reloads the other processes, and hands over to a new version.

It uses no gevent.
"""
