#!/bin/bash
# redis-server under redis-benchmark, with a background save (a fork), expiry and a flush; all processes.
set -euo pipefail
redis-server --port 0 --unixsocket redis.sock --save '' --appendonly no --loglevel warning >log 2>&1 &
cli=(redis-cli -s redis.sock)
for _ in $(seq 100); do
    if [ "$("${cli[@]}" ping 2>/dev/null)" = PONG ]; then break; fi
    sleep 0.1
done
{
    redis-benchmark -s redis.sock -q -r 100000 -P 32 -c 4 -n 100000 -d 400 -t set,lpush
    "${cli[@]}" bgsave
    redis-benchmark -s redis.sock -q -r 100000 -P 32 -c 4 -n 50000 -d 400 -t set
    redis-benchmark -s redis.sock -q -r 100000 -P 32 -c 4 -n 50000 pexpire 'key:__rand_int__' 300
    sleep 1
    "${cli[@]}" memory purge
    "${cli[@]}" flushall
    "${cli[@]}" shutdown nosave
} >/dev/null
wait
