#!/bin/sh
# Puts pterefd where distributions expect it, or takes it away: setup/install.sh install BUILDER [PYTHON] | uninstall
#
# PREFIX (/usr/local), DESTDIR (empty), DEPENDENCIES (yes): from the environment. BUILDER is a virtual environment's Python
# that builds, with hatchling in it; what is installed runs with PYTHON, without it with the interpreter that the
# environment was made with. DEPENDENCIES=no leaves the Python packages that pterefd needs to that interpreter, as a
# distribution's package does.
#
# Nothing is started or enabled. /etc/pterefd is written where it is not there, and is never taken away.
set -eu
umask 022 # what is installed is for everybody, whatever files of root are

here=$(cd "$(dirname "$0")/.." && pwd)
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}$prefix
etc=${DESTDIR:-}/etc/pterefd
lib=$root/lib/pterefd
share=$root/share/pterefd
units=$root/lib/systemd/system
man=$root/share/man/man1/pterefd.1
bash=$root/share/bash-completion/completions/pterefd
zsh=$root/share/zsh/site-functions/_pterefd
fish=$root/share/fish/vendor_completions.d/pterefd.fish
doc=$root/share/doc/pterefd

case $prefix in
/*) ;;
*) echo "install: PREFIX=$prefix: not an absolute path" >&2; exit 2 ;;
esac

# put MODE FILE TARGET
put() { install -D -m "$1" "$2" "$3"; }
# Units and configuration name /usr where the distribution's package would have it.
put_prefixed() {
    put "$1" "$2" "$3"
    sed -i "s|/usr/bin/pterefd|$prefix/bin/pterefd|; s|/usr/libexec/|$prefix/libexec/|" "$3"
}

# launcher FILE OPTION MODULE: an isolated Python (-I) looks into no directory of its caller's.
launcher() {
    mkdir -p "$(dirname "$1")"
    cat >"$1" <<LAUNCHER
#!$interpreter $2
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib" / "pterefd"))

from $3 import main  # noqa: E402

main()
LAUNCHER
    chmod 755 "$1"
}

say() { echo "install: $*" >&2; }

# asked INTERPRETER PROGRAM: what a program prints, with nothing of its caller's.
asked() { "$1" -I -c "$2"; }

# What is made for one Python's binary interface does not load into another's.
BINARY='import sys, sysconfig; print(sys.implementation.cache_tag, sys.abiflags, sysconfig.get_platform())'
ITSELF='import sys; print(sys.executable)'
BELOW='import sys; print(sys._base_executable)'  # of a virtual environment, else itself
LACKING='
import importlib.util, re, sys, tomllib
names = [re.match("[a-z-]+", text)[0] for text in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]]
modules = {"fusepy": "fuse", "prometheus-client": "prometheus_client"}
print(*(name for name in names if importlib.util.find_spec(modules.get(name, name)) is None))'

choose_interpreter() {
    if [ "${DEPENDENCIES:-yes}" = no ]; then
        interpreter=$(asked "${2:-$(asked "$1" "$BELOW")}" "$ITSELF")
        lacking=$("$interpreter" -I -c "$LACKING" "$here/pyproject.toml")
        if [ -n "$lacking" ]; then say "$interpreter: has no $lacking, which DEPENDENCIES=no leaves to it"; fi
    else
        interpreter=$(asked "${2:-$1}" "$BELOW")
        if [ "$(asked "$interpreter" "$BINARY")" != "$(asked "$1" "$BINARY")" ]; then
            say "$interpreter: .venv was made with another Python: \`make clean\` first"
            exit 2
        fi
    fi
}

# unseen PATH: which of a unit's settings hides a path from services; nothing where they see it.
unseen() {
    case $1 in
    /root/*|/home/*|/run/user/*) echo "ProtectHome=" ;;
    /tmp/*|/var/tmp/*) echo "PrivateTmp=" ;;
    esac
}

warn_where_unseen() {
    setting=$(unseen "$interpreter")
    setting=${setting:-$(unseen "$(readlink -f "$interpreter")")}
    if [ -n "$setting" ]; then
        say "$interpreter: services cannot run it ($setting); make install PYTHON=/usr/bin/python3 takes another"
    fi
    setting=$(unseen "$prefix/")
    if [ -n "$setting" ]; then say "$prefix: services do not see it ($setting); PREFIX=/usr/local is one that they do"; fi
}

our_units="pterefd.service pterefd@.service pterefd-mount.socket pterefd-mount@.service pterefd-free.socket pterefd-free.service"

do_install() {
    python=$1
    choose_interpreter "$@"
    pip="$python -m pip -qq --disable-pip-version-check --no-input"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT

    $pip wheel --no-deps --no-build-isolation --no-index -w "$work" "$here"
    rm -rf "$lib" "$share"
    mkdir -p "$lib" "$(dirname "$share")"
    if [ "${DEPENDENCIES:-yes}" != no ]; then
        $pip install --require-hashes --no-build-isolation --use-pep517 --no-compile --target "$lib" \
            -r "$here/requirements.lock"
        rm -rf "$lib/bin"
    fi
    $pip install --no-deps --no-index --no-compile --target "$work/self" "$work"/*.whl
    rm -rf "$work/self/bin"
    cp -R "$work/self/." "$lib/"
    # Data lies in share; the package finds it by this link, wherever all of it is moved.
    mv "$lib/pterefd/_share" "$share"
    ln -s ../../../share/pterefd "$lib/pterefd/_share"
    "$interpreter" -m compileall -q -s "${DESTDIR:-}" "$lib" >/dev/null || true  # some packages carry files for other Pythons

    launcher "$root/bin/pterefd" "" pterefd.cli
    launcher "$root/libexec/pterefd-mount" -I pterefd.mounthelper.__main__
    launcher "$root/libexec/pterefd-free" -I pterefd.freeing.__main__

    for unit in $our_units; do
        put_prefixed 644 "$here/systemd/$unit" "$units/$unit"
    done
    put 644 "$here/systemd/pterefd.sysusers" "$root/lib/sysusers.d/pterefd.conf"
    put 644 "$here/systemd/pterefd.tmpfiles" "$root/lib/tmpfiles.d/pterefd.conf"

    for table in mounts.toml free.toml; do
        if [ ! -e "$etc/$table" ]; then put 644 "$here/systemd/$table" "$etc/$table"; fi
    done
    if [ ! -e "$etc/pterefd.toml" ]; then
        put 644 "$here/etc/pterefd.toml" "$etc/pterefd.toml"
        sed -i -e '/^mount = /s|"./mnt" *#.*|"/run/pterefd/proc"  # /etc/pterefd/mounts.toml allows it|' \
            -e '/^allow_other = /s|false|true |' \
            -e '/^mount_helper = /s|"off" *#.*|"/run/pterefd-mount.socket"|' "$etc/pterefd.toml"
    fi

    manual="env PYTHONPATH=$here $python $here/setup/manual.py"
    mkdir -p "$(dirname "$man")" "$(dirname "$bash")" "$(dirname "$zsh")" "$(dirname "$fish")"
    $manual man >"$man"
    $manual bash >"$bash"
    $manual zsh >"$zsh"
    $manual fish >"$fish"
    chmod 644 "$man" "$bash" "$zsh" "$fish"
    mkdir -p "$doc"
    for file in README.md CHANGELOG.md LICENSE; do put 644 "$here/$file" "$doc/$file"; done
    cp -R "$here/docs" "$doc/"
    chmod -R u=rwX,go=rX "$lib" "$share" "$doc"

    warn_where_unseen
    if [ -z "${DESTDIR:-}" ]; then
        echo "installed; docs/systemd.md says how to go on: systemd-sysusers, systemd-tmpfiles --create," \
            "systemctl daemon-reload, systemctl enable --now pterefd"
    fi
}

do_uninstall() {
    rm -rf "$lib" "$share" "$doc"
    rm -f "$root/bin/pterefd" "$root/libexec/pterefd-mount" "$root/libexec/pterefd-free" "$man" "$bash" "$zsh" "$fish" \
        "$root/lib/sysusers.d/pterefd.conf" "$root/lib/tmpfiles.d/pterefd.conf"
    for unit in $our_units; do rm -f "$units/$unit"; done
    if [ -d "$etc" ]; then echo "uninstall: $etc is left, as it may be edited"; fi
}

case ${1:-} in
install) shift; do_install "$@" ;;
uninstall) do_uninstall ;;
*) echo "usage: setup/install.sh install BUILDER [PYTHON]|uninstall" >&2; exit 2 ;;
esac
