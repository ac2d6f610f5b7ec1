"""One run: a source's events go through a host, start to end.

machine the host's memory, as a configuration describes it
feed    events of a trace into a host, those that are the session's handed back
check   replay at full speed, and the comparison with checkpoints
report  what became of each mm
replay  replay in the daemon: by the clock, paused, held
"""
