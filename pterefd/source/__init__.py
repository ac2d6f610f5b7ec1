"""Where events come from: trace files in two forms, what reads, writes and converts them, and the recorders."""
