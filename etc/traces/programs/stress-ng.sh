#!/bin/bash
# stress-ng: the vm stressors with several methods, and others that map, move, discard, share and fork.
set -euo pipefail
quiet() { stress-ng --quiet --no-rand-seed --temp-path "$PWD" "$@"; }
for method in zero-one flip walk-0d rowhammer read64 write64nt; do
    quiet --vm 2 --vm-bytes 8M --vm-method "$method" --vm-ops 40 -t 3
done
quiet --vm 1 --vm-bytes 8M --vm-keep --vm-populate --vm-ops 30 -t 3
quiet --vm 1 --vm-bytes 8M --vm-madvise dontneed --vm-ops 30 -t 3
quiet --mmap 1 --mmap-bytes 4M --mmap-ops 10 -t 3
quiet --mremap 1 --mremap-bytes 4M --mremap-ops 20 -t 3
quiet --madvise 1 --madvise-ops 4 -t 3
quiet --brk 1 --brk-ops 300 -t 3
quiet --bigheap 1 --bigheap-ops 100 --bigheap-growth 64K -t 3
quiet --stack 1 --stack-ops 2 -t 3
quiet --malloc 2 --malloc-bytes 8M --malloc-ops 1000 -t 3
quiet --shm 1 --shm-bytes 4M --shm-objs 4 --shm-ops 4 -t 3
quiet --shm-sysv 1 --shm-sysv-bytes 4M --shm-sysv-segs 4 --shm-sysv-ops 4 -t 3
quiet --fork 1 --fork-ops 30 -t 3
quiet --vforkmany 1 --vforkmany-ops 20 -t 3
