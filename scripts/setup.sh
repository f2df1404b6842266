# Shared by ./run, ./test and .ci/run: installing what a build misses, cache folders, build folders. Sourced by bash, from the root
# of the tree. Messages go to stderr; only results go to stdout.

CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/weir"
BUILD_PACKAGES="gcc libc6-dev meson ninja-build pkg-config libcmocka-dev libevent-dev libjansson-dev libpcre2-dev libutf8proc-dev
    libcurl4-openssl-dev libssl-dev libsimde-dev libxxhash-dev python3 ca-certificates"
PYTHON_PACKAGES="python3-venv"

say() { printf '%s\n' "$*" >&2; }
die() { say "Error: $*"; exit 1; }

# need_packages NAME...: installs those Debian packages that are missing.
need_packages() {
    local missing=() package sudo=()
    command -v dpkg-query > /dev/null || return 0 # another distribution: meson names what it misses
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | head -n 1)" = installed ] || missing+=("$package")
    done
    [ "${#missing[@]}" -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo > /dev/null || die "these packages are missing, and neither root nor sudo is at hand:
    apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    if ! "${sudo[@]}" apt-get install -y --no-install-recommends "${missing[@]}" >&2 < /dev/null; then
        { "${sudo[@]}" apt-get update && "${sudo[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } >&2 < /dev/null ||
            die "apt-get could not install ${missing[*]}"
    fi
}

# python_with NAME...: prints the path of a Python that has these PyPI packages (a virtual environment in the cache folder).
python_with() {
    local venv="$CACHE/venv" stamp
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version > /dev/null 2>&1 ||
        { mkdir -p "$CACHE" && python3 -m venv --clear "$venv" >&2; } || return 1
    for package in "$@"; do
        stamp="$venv/.has-$package"
        [ -e "$stamp" ] && continue
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package" >&2 < /dev/null || return 1
        touch "$stamp"
    done
    printf '%s\n' "$venv/bin/python"
}

# configure FOLDER MESON-OPTION...: a build folder with these options, made anew when they changed.
configure() {
    local folder="$1" wanted
    shift
    wanted="${CC:-cc} $*"
    if [ ! -f "$folder/build.ninja" ] || [ "$(cat "$folder/.configured" 2> /dev/null)" != "$wanted" ]; then
        rm -rf "$folder"
        mkdir -p "$(dirname "$folder")"
        meson setup "$folder" "$@" >&2 || return 1
        printf '%s\n' "$wanted" > "$folder/.configured"
    fi
}

# build_release TARGET...: an optimised build in build/release.
build_release() {
    configure build/release --buildtype=release || die "meson could not set up build/release"
    ninja -C build/release "$@" >&2 < /dev/null || die "the build failed"
}
