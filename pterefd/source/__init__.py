"""Where events come from: trace files in two forms, and what reads, writes and converts them."""

from pterefd.source.meta import TraceMeta
from pterefd.source.trace import BATCH_EVENTS, Piece, Trace, open_trace

__all__ = ["BATCH_EVENTS", "Piece", "Trace", "TraceMeta", "open_trace"]
