#!/bin/bash
# tcmalloc (gperftools) under python and perl, by LD_PRELOAD: spans given back with MADV_FREE or MADV_DONTNEED.
set -euo pipefail
export LD_PRELOAD=libtcmalloc_minimal.so.4
export TCMALLOC_RELEASE_RATE=10
PYTHONMALLOC=malloc python3 -S -E -c '
import random
draw = random.Random(1)
kept = {}
for turn in range(60000):
    kept[draw.randrange(3000)] = bytes(draw.choice((30, 300, 3000, 30000, 300000 if turn % 50 == 0 else 100)))
    if turn % 9000 == 0:
        kept.clear()
'
perl -e 'for my $round (1 .. 8) { my @a = map { "y" x (1000 * ($_ % 50)) } 1 .. 2000; my %h = map { $_ => $_ } 1 .. 20000; }'
seq 200000 | sort -R | tail -n 1 >/dev/null
