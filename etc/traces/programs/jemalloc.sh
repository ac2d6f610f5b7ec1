#!/bin/bash
# jemalloc under perl and sort, by LD_PRELOAD: purging with MADV_DONTNEED and MADV_FREE, several arenas.
set -euo pipefail
export LD_PRELOAD=libjemalloc.so.2
MALLOC_CONF=dirty_decay_ms:50,muzzy_decay_ms:50,background_thread:true perl -e '
    for my $round (1 .. 6) {
        my %h = map { $_ => "x" x ($_ % 900) } 1 .. 20000;
        delete @h{grep { $_ % 3 } keys %h};
        my @a = map { "y" x 40000 } 1 .. 300;
        @a = ();
        select undef, undef, undef, 0.1;
    }'
seq 300000 | MALLOC_CONF=narenas:4,dirty_decay_ms:0 sort --parallel=2 -S 20M -R | tail -n 1 >/dev/null
MALLOC_CONF=retain:false,dirty_decay_ms:0,muzzy_decay_ms:0 python3 -S -E -c '
kept = []
for turn in range(40):
    kept.append(bytearray(300_000 + turn * 4096))
    if turn % 3 == 0:
        kept = kept[::2]
'
