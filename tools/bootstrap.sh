#!/usr/bin/env bash
# Set up what the targets of the Makefile need on this machine: bootstrap.sh PART...
#
#   control    .venv with Ansible, the linters, the test tools and the glue
#   hosts      podman and what makes a Debian root, for the local hosts
#   artefacts  Go and Maven, which build the archives of NSQ and Kafka
#   lint       shellcheck
#   tests      PostgreSQL's server programs (no cluster is made, nothing is started)
#   bench      Redis' programs (nothing is started), and Celery and RQ in an environment of their own
#
# Quick where nothing is missing. On Debian and Ubuntu missing packages are installed, with sudo where not root;
# elsewhere it names them and exits with 2.
set -euo pipefail
cd "$(dirname "$0")/.."
# Debian gives users a PATH without the folders where iptables is.
PATH=$PATH:/usr/sbin:/sbin

#: nsq's dependencies and the build flags need this Go at least
GO_MINIMUM=1.21
#: Kafka 4 needs this Java at least
JAVA_MINIMUM=17
#: what Ansible 12 and the glue need
PYTHON_MINIMUM=3.11

say() { printf '==> %s\n' "$*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
has() { command -v "$1" >/dev/null; }

has_python() { python3 -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (${PYTHON_MINIMUM/./, }))" 2>/dev/null; }
has_go() { has go && at_least "$GO_MINIMUM" "$(go env GOVERSION | tr -d go)"; }
has_java() { has java && at_least "$JAVA_MINIMUM" "$(java -version 2>&1 | sed -n 's/.*version "\([0-9.]*\).*/\1/p')"; }
has_netavark() { [ -x /usr/lib/podman/netavark ] || [ -x /usr/libexec/podman/netavark ] || has netavark; }
has_aardvark() { [ -x /usr/lib/podman/aardvark-dns ] || [ -x /usr/libexec/podman/aardvark-dns ] || has aardvark-dns; }
has_debian_keys() { [ -e /usr/share/keyrings/debian-archive-keyring.gpg ]; }
has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || has initdb; }

missing=()
want() { "$2" "${3:-}" || missing+=("$1"); }

look() {
    case $1 in
        control) want python3-venv has_python; want git has git ;;
        hosts)
            want podman has podman; want netavark has_netavark; want aardvark-dns has_aardvark
            want runc has runc; want iptables has iptables; want uidmap has newuidmap
            want mmdebstrap has mmdebstrap; want debian-archive-keyring has_debian_keys
            ;;
        artefacts) want golang-go has_go; want java-runtime has_java; want maven has mvn ;;
        lint) want shellcheck has shellcheck ;;
        tests) want postgresql has_postgresql ;;
        bench) want redis-tools has redis-check-rdb ;;
        *) echo "bootstrap.sh: no part is named $1" >&2; exit 2 ;;
    esac
}

newest_package() { # the first of the names that the package index knows
    local name
    for name in "$@"; do
        if apt-cache show "$name" >/dev/null 2>&1; then echo "$name"; return; fi
    done
    echo "$1"
}

install_missing() {
    if ! has apt-get; then
        printf 'Missing on this machine, by the names that Debian gives the packages: %s\nInstall them, then run this again.\n' \
            "${missing[*]}" >&2
        exit 2
    fi
    say "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # A source of somebody else's that does not answer is no reason to stop; a package that is not found will be.
    as_root apt-get update -qq || say "Some package sources did not answer; going on with those that did"

    local packages=() package
    for package in "${missing[@]}"; do
        case $package in
            java-runtime) packages+=("$(newest_package openjdk-21-jre-headless openjdk-17-jre-headless)") ;;
            golang-go)
                # Where Debian's is too old, .venv gets one from the Python package index, below.
                if at_least "$GO_MINIMUM" "$(apt-cache policy golang-go | sed -n 's/.*Candidate: \(.*:\)\?//p')"; then
                    packages+=(golang-go)
                fi
                ;;
            postgresql)
                # Only programs: a cluster of the distribution's would be made and started otherwise.
                if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
                    as_root mkdir -p /etc/postgresql-common
                    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
                fi
                packages+=(postgresql)
                ;;
            *) packages+=("$package") ;;
        esac
    done
    [ ${#packages[@]} -eq 0 ] ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 "${packages[@]}" >&2
}

make_venv() {
    local inputs=(.config/control-node-requirements.txt glue/requirements.txt glue/pyproject.toml) made_from
    made_from=$({ cat "${inputs[@]}"; python3 --version; } | sha256sum)
    [ "$(cat .venv/made-from 2>/dev/null)" != "$made_from" ] || return 0

    say "Installing Ansible, the test tools and the glue into .venv (about a minute)"
    python3 -m venv --upgrade-deps .venv >&2
    .venv/bin/pip install --quiet --requirement .config/control-node-requirements.txt --requirement glue/requirements.txt >&2
    .venv/bin/pip install --quiet --no-deps --no-build-isolation --editable glue >&2
    # Last: a run that was ended starts again.
    echo "$made_from" >.venv/made-from
}

make_bench_venv() {
    local venv=${XDG_CACHE_HOME:-$HOME/.cache}/slowjobs/bench made_from
    made_from=$({ cat bench/requirements.txt; python3 --version; } | sha256sum)
    [ "$(cat "$venv/made-from" 2>/dev/null)" != "$made_from" ] || return 0

    say "Installing Celery and RQ into $venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --requirement bench/requirements.txt >&2
    echo "$made_from" >"$venv/made-from"
}

for part in "$@"; do look "$part"; done
[ ${#missing[@]} -eq 0 ] || install_missing

for part in "$@"; do
    case $part in
        control)
            has_python || { echo "Python $PYTHON_MINIMUM or newer with venv is needed; python3 is $(python3 --version)" >&2; exit 2; }
            make_venv
            ;;
        artefacts)
            if ! PATH=$PWD/.venv/bin:$PATH has_go; then
                say "This release's Go is older than $GO_MINIMUM: installing one into .venv (about 70 MB)"
                [ -x .venv/bin/pip ] || python3 -m venv .venv
                .venv/bin/pip install --quiet --requirement .config/go-requirements.txt >&2
            fi
            ;;
        bench) make_bench_venv ;;
    esac
done
