# shellcheck shell=bash
# common.sh - what quickstart and test share: packages, steps, building. Sourced, not run.
# Both start from a Debian 12 that has nothing but its base packages, as root or with sudo.

export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PATH=/usr/bin:$PATH # Debian's python3 is the one that sees Debian's python3-numpy

# shellcheck disable=SC2034  # used by those who source this
BUILD_PACKAGES=(gcc libc6-dev cmake ninja-build pkg-config libjansson-dev libevent-dev libpcre2-dev
                libutf8proc-dev libssl-dev libcmocka-dev libcurl4-openssl-dev libgrpc-dev libprotobuf-c-dev
                protobuf-c-compiler libucx-dev liburing-dev etcd-server)

step() { printf '==> %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

as_root() {
    if [[ $(id -u) -eq 0 ]]; then "$@"
    elif command -v sudo >/dev/null; then sudo -E "$@"
    else die "installing packages needs root or sudo: $*"; fi
}

# Installs the packages that are missing; quiet unless it fails.
install_packages() {
    local missing=() package log
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        step "not a Debian system: assuming these are installed: $*"
        return 0
    fi
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || { step "packages: all there"; return 0; }
    step "installing packages: ${missing[*]}"
    log=$(mktemp)
    if ! { as_root apt-get update -qq &&
           as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1
    then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "the packages could not be installed"
    fi
    rm -f "$log"
}

# build FOLDER "TARGET ..." [CMAKE OPTION ...]: configures and builds with every core.
build() {
    local folder=$1 targets
    read -ra targets <<<"$2"
    shift 2
    cmake -S . -B "$folder" -G Ninja "$@" >/dev/null &&
        ninja -C "$folder" -j "$(nproc)" "${targets[@]}"
}
