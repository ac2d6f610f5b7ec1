#!/bin/bash
# Records the bundled traces anew: etc/traces/make.sh [NAME]... (make recordings). Needs root and perf.
#
# Every program is a Debian package, run on loopback or a socket of its own in a directory that is removed; nothing is
# left running. What a recording must be, check() says at the end.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
pterefd=${PTEREFD:-$here/../../.venv/bin/pterefd}
every=200ms
work=$(mktemp -d)
recorder=""
cleanup() {
    if [ -n "$recorder" ] && kill -0 "$recorder" 2>/dev/null; then kill -INT "$recorder"; wait "$recorder" || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

# record NAME COMMAND...: from the directory that the command lies in, as a recording keeps the words of its command.
record() {
    local name=$1
    shift
    "$pterefd" record --force --checkpoint-every "$every" -o "$here/$name.parquet" -- "$@"
}

# redis-server, which Debian links with jemalloc: filled by its own benchmark, then keys expire, then all is flushed.
# Every purge gives pages back in whatever pieces jemalloc has, so the page tables of the heap stay behind.
redis() {
    local socket=$work/redis.sock
    cd "$work"
    record redis redis-server --port 0 --unixsocket redis.sock --save '' --appendonly no --daemonize no \
        --loglevel warning >"$work/redis.log" &
    recorder=$!
    local cli=(redis-cli -s "$socket")
    local load=(redis-benchmark -s "$socket" -q -r 400000 -P 32 -c 4)
    for _ in $(seq 100); do
        if [ "$("${cli[@]}" ping 2>/dev/null)" = PONG ]; then break; fi
        sleep 0.1
    done
    {
        "${load[@]}" -n 800000 -d 1000 -t set
        "${load[@]}" -n 100000 hset 'hash:__rand_int__' name value city Tampere
        for ttl in 500 1000 1500; do "${load[@]}" -n 200000 pexpire 'key:__rand_int__' $ttl; done
        sleep 3
        "${cli[@]}" memory purge
        sleep 1
        "${cli[@]}" flushall
        "${cli[@]}" memory purge
        sleep 1
        "${cli[@]}" shutdown nosave
    } >/dev/null
    wait "$recorder"
    recorder=""
}

# Python on jemalloc: objects by the hundred thousand, made, written as JSON, read back and dropped. Slabs of a few KiB
# to a few hundred are discarded one by one, far less than the 2 MiB at which a kernel might free a page table.
python() {
    cd "$here"
    record python env LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:200,muzzy_decay_ms:200 \
        PYTHONMALLOC=malloc PYTHONHASHSEED=1 /usr/bin/python3 -S python.py
}

# check NAME: held by the kernel's own figures, small, with something to free before its end.
check() {
    local file=$here/$1.parquet
    "$pterefd" replay --check --fields VmPTE --tolerance VmPTE=16kB "$file"
    if [ "$(stat -c %s "$file")" -ge $((3 << 20)) ]; then
        echo "make.sh: $file is larger than 3 MiB" >&2
        exit 1
    fi
}

if [ $# -eq 0 ]; then set -- redis python; fi
for name in "$@"; do
    echo "recording $name"
    "$name"
    check "$name"
done
