"""A terminal view of who has most page-table memory to give back: simulated processes, or this machine's own."""
