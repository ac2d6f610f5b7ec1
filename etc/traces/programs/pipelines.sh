#!/bin/bash
# bash: pipelines, subshells, command substitutions, a coprocess: many short-lived processes, forked and exec'ed.
set -euo pipefail
export TMPDIR=$PWD
for turn in 1 2 3; do
    seq 20000 | sort -rn | uniq | tail -n 3 | tr '\n' ' ' >/dev/null
    words=$(for i in $(seq 50); do echo "$i $((i * turn))"; done | awk '{ sum += $2 } END { print sum }')
    (cd / && ls -lR /usr/share/doc 2>/dev/null | sed -n 1,4000p | gzip -9 | gunzip | wc -l) >/dev/null
    [ "$words" -gt 0 ]
done
coproc cat
echo hello >&"${COPROC[1]}"
read -r line <&"${COPROC[0]}"
[ "$line" = hello ]
eval "exec ${COPROC[1]}>&-"
wait
declare -a many
for i in $(seq 20000); do many[i]="entry number $i"; done
( many=(); : )
