"""PPTP (RFC 2637): the control connection of a tunnel, whose packets are GRE."""
