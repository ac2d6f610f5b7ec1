#!/bin/sh
# Brings in the system packages that pterefd needs: setup/packages.sh run | test | programs | bench | guests
#
# What is there already is left alone, whatever package it came from. Missing things are installed with apt-get
# as root; without root (or without apt) they are named, and the exit code is 3 where pterefd cannot do without.
#
# Nothing that is installed may run or be enabled as a service. A policy-rc.d that answers 101 keeps maintainer
# scripts from starting anything; units and rc links that they enabled all the same are disabled again.
set -eu

POLICY=/usr/sbin/policy-rc.d
MARK='# made by the set-up of pterefd, which removes it again'
PYTHON=${PYTHON:-python3}

have_program() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
have_library() { /sbin/ldconfig -p 2>/dev/null | grep -q "[[:space:]]$1 "; }
have_venv() { "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }
have_file() { [ -e "$1" ]; }
have_package() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
# A working perf: Debian's and Ubuntu's wrappers exist without the program behind them.
have_perf() { perf version >/dev/null 2>&1; }

# One line a need: essential or not, package, what for, and how to see that it is there.
needs_of() {
    case $1 in
    run) cat <<'LIST'
essential fuse3         mounting                     have_program fusermount3
essential libfuse3-3    mounting                     have_library libfuse3.so.[34]
optional  libfuse2      mounting_where_libfuse3_fails have_library libfuse.so.2
optional  linux-perf    pterefd_record               have_perf
essential python3-venv  the_virtual_environment      have_venv
LIST
    ;;
    test) cat <<'LIST'
essential gcc           tests_compile_C_programs     have_program gcc
essential libc6-dev     tests_compile_C_programs     have_file /usr/include/stdio.h
essential linux-perf    tests_of_the_recorder        have_perf
essential procps        clients_of_the_mount         have_program sysctl
essential systemd       units_and_socket_activation  have_program systemd-socket-activate
essential man-db        the_manual_page              have_program man
essential zsh           completion                   have_program zsh
essential fish          completion                   have_program fish
essential psmisc        clients_of_the_mount         have_program pstree
essential sysvinit-utils clients_of_the_mount        have_program pidof
essential smem          clients_of_the_mount         have_program smem
essential htop          clients_of_the_mount         have_program htop
essential atop          clients_of_the_mount         have_program atop
essential earlyoom      clients_of_the_mount         have_program earlyoom
essential prometheus-node-exporter clients_of_the_mount have_program prometheus-node-exporter
essential prometheus-process-exporter clients_of_the_mount have_program prometheus-process-exporter
essential redis-server  recordings                   have_program redis-server
essential redis-tools   recordings                   have_program redis-cli
essential libjemalloc2  recordings                   have_library libjemalloc.so.2
essential prometheus    rules_and_dashboards_run     have_program prometheus
essential prometheus-node-exporter rules_and_dashboards_run have_program prometheus-node-exporter
LIST
    ;;
    programs) cat <<'LIST'
essential postgresql-15 recordings                   have_file /usr/lib/postgresql/15/bin/postgres
essential sqlite3       recordings                   have_program sqlite3
essential libtcmalloc-minimal4 recordings            have_library libtcmalloc_minimal.so.4
essential nodejs        recordings                   have_package nodejs
essential openjdk-17-jre-headless recordings         have_package openjdk-17-jre-headless
essential stress-ng     recordings                   have_program stress-ng
essential git           recordings                   have_program git
essential make          recordings                   have_program make
LIST
    ;;
    bench) cat <<'LIST'
essential libfuse3-dev  a_file_system_in_C_to_compare_with have_file /usr/include/fuse3/fuse.h
essential pkg-config    its_flags                    have_program pkg-config
essential redis-server  servers_under_load           have_program redis-server
essential redis-tools   servers_under_load           have_program redis-benchmark
essential postgresql-15 servers_under_load           have_file /usr/lib/postgresql/15/bin/pgbench
essential nodejs        servers_under_load           have_program node
essential openjdk-17-jre-headless servers_under_load have_program java
LIST
    ;;
    guests) cat <<'LIST'
essential qemu-system-x86 kernels_in_guests          have_program qemu-system-x86_64
essential xz-utils        packages_of_kernels        have_program xz
LIST
    ;;
    *) echo "usage: setup/packages.sh run|test|programs|bench|guests" >&2; exit 2 ;;
    esac
}

missing=""       # packages, essential or not
missing_must=""  # those that pterefd cannot do without
look() {
    missing=""
    missing_must=""
    needs_of "$1" >"$list"
    while read -r weight package use check; do
        if eval "$check"; then continue; fi
        missing="$missing $package"
        if [ "$weight" = essential ]; then missing_must="$missing_must $package"; fi
        if [ "${2:-}" = aloud ]; then echo "setup: missing: $package (for $(echo "$use" | tr _ ' '))" >&2; fi
    done <"$list"
}

# -- services stay off ----------------------------------------------------------------

# Everything that enables a service: units' links and rc links, one path a line.
enabled_links() {
    find /etc/systemd/system /etc/systemd/user /etc/rc[0-9S].d -type l \
        \( -path '*.wants/*' -o -path '*.requires/*' -o -path '*.upholds/*' -o -path '/etc/rc?.d/S*' \) \
        2>/dev/null | sort
}

disable_new() {
    enabled_links >"$after"
    comm -13 "$before" "$after" | while read -r link; do
        if [ ! -L "$link" ]; then continue; fi  # went with one before it
        name=$(basename "$link")
        case $link in
        /etc/systemd/*)
            # deb-systemd-helper keeps the packages' own record of it, and works where systemd does not run.
            deb-systemd-helper disable "$name" >/dev/null 2>&1 || true ;;
        *)
            update-rc.d "$(echo "$name" | sed 's/^S[0-9]*//')" disable >/dev/null 2>&1 || true ;;
        esac
        if [ -L "$link" ]; then rm -f "$link"; fi
        echo "setup: $name was enabled by its package; disabled it"
    done
}

policy_denies() {
    status=0
    if [ -x "$POLICY" ]; then "$POLICY" pterefd-probe start >/dev/null 2>&1 || status=$?; fi
    [ "$status" -eq 101 ]
}

policy_on() {
    policy_off  # of a set-up that was killed
    if policy_denies; then return; fi
    if [ -e "$POLICY" ] || [ -L "$POLICY" ]; then mv "$POLICY" "$POLICY.pterefd-saved"; fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$MARK" >"$POLICY"
    chmod 755 "$POLICY"
}

policy_off() {
    if [ -e "$POLICY" ] && grep -qF "$MARK" "$POLICY"; then rm -f "$POLICY"; fi
    if [ -e "$POLICY.pterefd-saved" ]; then mv "$POLICY.pterefd-saved" "$POLICY"; fi
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# install PACKAGE...: the package lists of this machine may be missing or old, and are brought up to date only then.
updated=""
install() {
    if apt_install "$@" >"$log" 2>&1; then return 0; fi
    if [ -z "$updated" ]; then
        updated=yes
        apt-get update -q </dev/null >"$log" 2>&1 || true
        if apt_install "$@" >"$log" 2>&1; then return 0; fi
    fi
    tail -n 5 "$log" >&2
    return 1
}

# -- main -------------------------------------------------------------------------------

work=$(mktemp -d)
list=$work/list before=$work/before after=$work/after log=$work/log
cleanup() {
    if [ "$(id -u)" -eq 0 ]; then policy_off; fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

look "$1"
if [ -z "$missing" ]; then exit 0; fi

if [ "$(id -u)" -ne 0 ] || ! have_program apt-get; then
    look "$1" aloud
    echo "setup: as root on Debian: apt-get install$missing" >&2
    if [ -n "$missing_must" ]; then exit 3; fi
    exit 0
fi

echo "setup: installing$missing"
enabled_links >"$before"
policy_on
# One package that this distribution does not have must not keep the others out.
# shellcheck disable=SC2086  # a list of names
install $missing || for package in $missing; do install "$package" || true; done
disable_new
policy_off

look "$1" aloud
if [ -n "$missing_must" ]; then
    echo "setup: still missing after the installation:$missing_must" >&2
    exit 3
fi
