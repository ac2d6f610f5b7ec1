#!/bin/bash
# git: a repository of 300 files, commits, a repack with threads, a clone, a diff and a merge.
set -euo pipefail
export GIT_CONFIG_NOSYSTEM=1 HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main one
cd one
for turn in 1 2 3; do
    for i in $(seq 300); do seq "$i" $((i * turn + 400)) >"file$i"; done
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
git gc -q
