"""What a process writes down (log lines, counters, traces), and the wire on which it is asked."""
