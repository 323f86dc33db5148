# shellcheck shell=bash
# What the scripts share: packages, the toolchain, the release binary, the image, and a containerd of our own.
# To be sourced, with `set -euo pipefail` in force. Everything said here goes to stderr: stdout is the caller's.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # used by the scripts that source this
RUNTIME=${DRAY_RUNTIME:-io.containerd.dray.v2}
IMAGE=localhost/busybox:latest
PAUSE_IMAGE=localhost/pause:latest
SHIM_NAME=containerd-shim-dray-v2

# A static glibc binary is linked from libc6-dev's archives and libseccomp-dev's; busybox-static is the content of the image.
PACKAGES=(containerd busybox-static gcc libc6-dev libseccomp-dev ca-certificates)

say() { printf 'dray: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

need_root() {
    [ "$(id -u)" -eq 0 ] || die "must be run as root: it makes mounts, cgroups and namespaces"
}

installed() { dpkg-query -W -f='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

# Installs by apt what is missing of PACKAGES, and touches nothing when nothing is.
install_packages() {
    local missing=() package
    command -v dpkg-query >/dev/null || die "this is not Debian: install by hand: ${PACKAGES[*]}"
    for package in "${PACKAGES[@]}"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root
    say "installing ${missing[*]} ..."
    local log; log=$(mktemp)
    # The lists may be absent (a fresh image) or older than the mirror: only then are they fetched.
    if ! apt_install "${missing[@]}" >"$log" 2>&1; then
        say "fetching the package lists ..."
        { apt-get -q update && apt_install "${missing[@]}"; } >"$log" 2>&1 </dev/null || { cat "$log" >&2; rm -f "$log"
            die "apt-get could not install ${missing[*]}"; }
    fi
    rm -f "$log"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@" </dev/null; }

# Fails, with the way to get it, unless cargo and rustc are of the crate's rust-version at least.
check_toolchain() {
    # rustup's directory is on the PATH of login shells only.
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    local want have
    want=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$REPO/Cargo.toml")
    local how="get it with:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy,rustfmt --default-toolchain $want
or, where rustup is already there:
    rustup toolchain install $want --profile minimal -c clippy,rustfmt && rustup default $want"
    if ! command -v cargo >/dev/null || ! have=$(rustc --version 2>/dev/null); then
        die "no Rust toolchain found; $want or later is needed; $how"
    fi
    have=${have#rustc } have=${have%% *}
    [ "$(printf '%s\n' "$want" "${have%%-*}" | sort -V | head -n1)" = "$want" ] ||
        die "Rust $have is too old: $want or later is needed; $how"
}

# Builds the release binary and sets SHIM to its path, which cargo tells: it depends on .cargo/config.toml, the host
# and the user's CARGO_TARGET_DIR.
build_release() {
    say "building the release binary ..."
    SHIM=$(cd "$REPO" && cargo build --release --locked --bin "$SHIM_NAME" --message-format=json-render-diagnostics </dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n1)
    [ -x "$SHIM" ] || die "cargo named no executable"
}

target_dir() {
    (cd "$REPO" && cargo metadata --locked --no-deps --format-version 1) | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Makes the image, an OCI layout in a tar (image-spec: image-layout.md), and sets IMAGE_TAR to its path. It is kept
# below target/, named after what it was made of.
make_image() {
    local busybox key dir arch
    busybox=$(command -v busybox) || die "no busybox found"
    key=$({ cat "$busybox"; declare -f image_rootfs image_layout image_manifest; } | sha256sum | cut -c1-16)
    dir=$(target_dir)/image
    IMAGE_TAR=$dir/busybox-$key.tar
    [ ! -e "$IMAGE_TAR" ] || return 0
    say "making the image ..."
    case $(uname -m) in
        x86_64) arch=amd64 ;;
        aarch64) arch=arm64 ;;
        *) die "$(uname -m) is not supported" ;;
    esac
    local work; mkdir -p "$dir"; work=$(mktemp -d "$dir/work.XXXXXX")
    image_rootfs "$busybox" "$work/rootfs"
    image_layout "$work" "$arch"
    mv "$work/image.tar" "$IMAGE_TAR"
    rm -rf "$work"
}

image_rootfs() {
    local busybox=$1 root=$2 applet
    mkdir -p "$root"/{bin,dev,etc,home,proc,root,run,sys,tmp,usr,var}
    chmod 1777 "$root/tmp"
    cp "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    ln -s ../bin "$root/usr/bin"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh user:x:1000:1000:user:/home:/bin/sh >"$root/etc/passwd"
    printf '%s\n' root:x:0: user:x:1000: extra:x:2000:user >"$root/etc/group"
}

# Packs $1/rootfs as the one layer of two images into $1/image.tar: IMAGE, and PAUSE_IMAGE, which does nothing until it is
# killed, as the container that holds a pod's namespaces is to.
image_layout() {
    local work=$1 arch=$2
    local layout=$work/layout
    mkdir -p "$layout/blobs/sha256"
    reproducible_tar "$work/rootfs" "$work/layer"
    local layer_size layer
    layer_size=$(stat -c %s "$work/layer")
    layer=$(add_blob "$work/layer")
    cat >"$layout/index.json" <<JSON
{"schemaVersion":2,"manifests":[
$(image_manifest "$IMAGE" '"Env":["PATH=/bin:/usr/bin"],"Cmd":["/bin/sh"]'),
$(image_manifest "$PAUSE_IMAGE" '"Entrypoint":["/bin/sleep","2147483647"]')]}
JSON
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    reproducible_tar "$layout" "$work/image.tar"
}

# Adds the image $1, whose configuration is $2, to the layout; prints its entry in the index.
image_manifest() {
    local name=$1 config=$2
    local config_size digest manifest_size oci=application/vnd.oci.image
    cat >"$work/config" <<JSON
{"architecture":"$arch","os":"linux","config":{$config},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
JSON
    config_size=$(stat -c %s "$work/config")
    digest=$(add_blob "$work/config")
    cat >"$work/manifest" <<JSON
{"schemaVersion":2,"mediaType":"$oci.manifest.v1+json",
"config":{"mediaType":"$oci.config.v1+json","digest":"sha256:$digest","size":$config_size},
"layers":[{"mediaType":"$oci.layer.v1.tar","digest":"sha256:$layer","size":$layer_size}]}
JSON
    manifest_size=$(stat -c %s "$work/manifest")
    digest=$(add_blob "$work/manifest")
    cat <<JSON
{"mediaType":"$oci.manifest.v1+json","digest":"sha256:$digest","size":$manifest_size,
"platform":{"architecture":"$arch","os":"linux"},"annotations":{"io.containerd.image.name":"$name"}}
JSON
}

add_blob() {
    local digest; digest=$(sha256sum <"$1" | cut -d' ' -f1)
    mv "$1" "$(dirname "$1")/layout/blobs/sha256/$digest"
    echo "$digest"
}

reproducible_tar() {
    tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$2" .
}

# Starts a containerd of our own in SCRATCH, a new directory: its root, state, sockets and configuration. The system's
# is neither used nor touched. CTR is the command that talks to ours; the shim's directory is first on its PATH.
containerd_start() {
    # Below /tmp whatever TMPDIR says: the path of a socket has 107 bytes at most.
    SCRATCH=$(mktemp -d /tmp/dray-run.XXXXXX)
    local address=$SCRATCH/c.sock
    CTR=(ctr --address "$address")
    cat >"$SCRATCH/config.toml" <<TOML
version = 2
root = "$SCRATCH/root"
state = "$SCRATCH/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "$address"
[plugins."io.containerd.internal.v1.opt"]
  path = "$SCRATCH/opt"
TOML
    # A session of its own: ^C at the terminal is for this script, which then stops things in their order.
    PATH=$(dirname "$SHIM"):$PATH setsid containerd --config "$SCRATCH/config.toml" </dev/null >"$SCRATCH/log" 2>&1 &
    CONTAINERD=$!
    local i
    for ((i = 0; i < 200; i++)); do
        if "${CTR[@]}" version >/dev/null 2>&1; then return 0; fi
        kill -0 "$CONTAINERD" 2>/dev/null || break
        sleep 0.05
    done
    tail -n 20 "$SCRATCH/log" >&2
    die "containerd did not start"
}

# The snapshotter that works in SCRATCH: the upper layer of an overlay cannot lie on an overlay itself.
choose_snapshotter() {
    local probe=$SCRATCH/probe
    mkdir -p "$probe"/{lower,upper,work,merged}
    SNAPSHOTTER=native
    if mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" 2>/dev/null; then
        umount "$probe/merged"
        SNAPSHOTTER=overlayfs
    else
        say "no overlay can be mounted in $SCRATCH: the native snapshotter copies the image instead"
    fi
    rm -rf "$probe"
}

import_image() {
    local out
    out=$("${CTR[@]}" image import --snapshotter "$SNAPSHOTTER" "$IMAGE_TAR" 2>&1) || die "the image cannot be imported: $out"
}

# The processes that belong to SCRATCH: containerd's shims and ctr by their arguments, environment or directory, and
# what is left of containers by the cgroup $1. Never this shell or its parents, which may hold the words by chance.
scratch_processes() {
    local cgroup=$1 dir pid
    for dir in /proc/[0-9]*; do
        pid=${dir#/proc/}
        # This shell and its subshells do not mention SCRATCH in what the kernel keeps of them.
        if grep -qsaF -- "$SCRATCH/" "$dir/cmdline" "$dir/environ" || [[ $(readlink "$dir/cwd") == "$SCRATCH"/* ]] ||
            grep -qsE ":$cgroup(/|\$)" "$dir/cgroup"; then
            echo "$pid"
        fi 2>/dev/null
    done | grep -vx -e "$$" -e "$BASHPID" || true
}

cgroup_roots() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }

# Ends all that runs under SCRATCH and removes every trace: containers, shims, containerd, sockets, mounts, the cgroup
# /$1 in every hierarchy, the directory. To be called from an EXIT trap; may be called at any moment, twice too.
scratch_remove() {
    local cgroup=$1 id pids i root
    [ -n "${SCRATCH:-}" ] || return 0
    if kill -0 "${CONTAINERD:-0}" 2>/dev/null; then
        for id in $(timeout 10 "${CTR[@]}" container ls -q 2>/dev/null); do
            timeout 10 "${CTR[@]}" task rm --force "$id" || true
            timeout 10 "${CTR[@]}" container rm "$id" || true
        done >/dev/null 2>&1
        kill "$CONTAINERD" 2>/dev/null || true
        for ((i = 0; i < 100; i++)); do
            kill -0 "$CONTAINERD" 2>/dev/null || break
            sleep 0.05
        done
    fi
    # What a shim should have ended itself, had it not failed.
    for ((i = 0; i < 50; i++)); do
        pids=$(scratch_processes "/$cgroup")
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086 # one word each
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
    done
    awk -v dir="$SCRATCH/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r i; do
        umount -l "$i" || true
    done
    for root in $(cgroup_roots); do
        [ ! -d "$root/$cgroup" ] || find "$root/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    if [ -n "${CONTAINER:-}" ]; then
        awk -v dir="/run/dray/default/$CONTAINER" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | xargs -r umount -l || true
        rm -rf --one-file-system "/run/dray/default/$CONTAINER"
        # containerd: pkg/shim SocketAddress, sha256 of <address>/<namespace>/<id>.
        rm -f "/run/containerd/s/$(printf %s "$SCRATCH/c.sock/default/$CONTAINER" | sha256sum | cut -d' ' -f1)"
    fi
    rm -rf --one-file-system "$SCRATCH"
    SCRATCH=
}
