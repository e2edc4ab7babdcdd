"""The relay moves bytes from socket to socket without copying them into Python."""
