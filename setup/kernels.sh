#!/bin/sh
# Downloads Debian's kernels for virtual machines, without installing them: setup/kernels.sh SUITE...
#
# Prints the path of one package for each suite (bookworm: Linux 6.1, trixie: 6.12), the newest that there is. They are
# kept in the user's cache directory, with package lists of their own: this machine's apt is not touched. Without a
# network what was fetched earlier is taken; exit code 3 where there is nothing.
set -eu

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/pterefd/kernels
META=linux-image-cloud-amd64  # depends on the newest one
SIGNED=/usr/share/keyrings/debian-archive-keyring.gpg

suite_apt() {
    program=$1
    shift
    "$program" -q -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State="$dir" -o Dir::State::status=/dev/null -o Dir::Cache="$dir" \
        -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User= "$@" </dev/null
}

fetch() {
    printf 'deb [signed-by=%s] http://deb.debian.org/debian %s main\n' "$SIGNED" "$1" >"$dir/sources.list"
    printf 'deb [signed-by=%s] http://deb.debian.org/debian-security %s-security main\n' "$SIGNED" "$1" \
        >>"$dir/sources.list"
    suite_apt apt-get update >&2 || return 1
    name=$(suite_apt apt-cache depends --important "$META" | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | tail -n 1)
    [ -n "$name" ] || return 1
    (cd "$dir/archives" && suite_apt apt-get download "$name" >&2)
}

for suite in "$@"; do
    dir=$CACHE/$suite
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    fetch "$suite" || echo "setup: the newest kernel of $suite cannot be fetched" >&2
    deb=$(find "$dir/archives" -maxdepth 1 -name 'linux-image-*.deb' | sort -V | tail -n 1)
    if [ -z "$deb" ]; then exit 3; fi
    echo "$deb"
done
