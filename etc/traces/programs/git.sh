#!/bin/bash
# git: a repository of 60 files, commits, a merge, a repack with threads, a clone, a diff.
set -euo pipefail
export GIT_CONFIG_NOSYSTEM=1 HOME=$PWD
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
write() { printf '%s\n' {1..400}" line of turn $1" >"file$2"; }
git init -q -b main one
cd one
for turn in 1 2 3; do
    for i in {1..60}; do write "$((i * turn))" "$i"; done
    git add -A
    git commit -q -m "commit $turn"
done
git checkout -q -b side HEAD~1
echo more >extra
git add extra
git commit -q -m side
git checkout -q main
git merge -q -m merge side
git repack -q -a -d -f --threads=2
git log --stat >/dev/null
git clone -q . ../two
git -C ../two diff HEAD~2 >/dev/null
git -c gc.autoDetach=false gc -q
