#!/usr/bin/env bash
# Builds the CPU image without a container engine and runs it as it will run in a cluster: as its own user, on a
# read-only root. Needs root, buildah, and debootstrap unless BASE_IMAGE names a base. About ten minutes, 12 GB of disk.
#   tests/k8s/image_check.sh            WORK=/var/tmp/lodestar-image keeps the base between runs
set -euo pipefail
cd "$(dirname "$0")/../.."

work=${WORK:-$(mktemp -d /var/tmp/lodestar-image.XXXXXX)}
needed=(buildah)
[[ -n ${BASE_IMAGE:-} || -d $work/base ]] || needed+=(debootstrap)
for program in "${needed[@]}"; do
    command -v "$program" >/dev/null || { echo "image-check needs $program (Debian: apt install $program)"; exit 1; }
done
[[ $(id -u) == 0 ]] || { echo "image-check needs root: it mounts the image's file system"; exit 1; }
mkdir -p "$work"
[[ -n ${WORK:-} ]] || trap 'rm -rf "$work"' EXIT

store=(--storage-driver vfs --root "$work/store" --runroot "$work/runroot")
if [[ -z ${BASE_IMAGE:-} ]]; then
    if [[ ! -x $work/base/bin/sh ]]; then
        debootstrap --variant=minbase bookworm "$work/base" http://deb.debian.org/debian >"$work/debootstrap.log"
    fi
    container=$(buildah "${store[@]}" from scratch)
    buildah "${store[@]}" add -q "$container" "$work/base" /
    buildah "${store[@]}" commit -q --rm "$container" localhost/lodestar-base
    BASE_IMAGE=localhost/lodestar-base
fi

# Where pip is told to look on this machine, the build looks too: indexes, local folders and certificates. What to
# install is said by constraints.txt alone.
where='index-url|extra-index-url|find-links|no-index|trusted-host|proxy|cert|(default-)?timeout|retries'
settings=$(python3 -m pip config list | sed -nE "s/^(global|install|:env:)\.($where)='(.*)'$/\2 = \4/p" | awk '!seen[$1]++')
certificates=$(sed -nE 's/^cert = //p' <<<"$settings")
{ echo '[global]'; sed -E 's#^cert = .*#cert = /etc/pip.crt#' <<<"$settings"; } >"$work/pip.conf"
pip=(--volume "$work/pip.conf:/etc/pip.conf:ro" ${certificates:+--volume "$certificates:/etc/pip.crt:ro"})
for folder in $(grep -v '^cert' <<<"$settings" | grep -oE '(file://)?/[^ ]+' | sed 's#^file://##; s#/simple$##'); do
    [[ ! -d $folder ]] || pip+=(--volume "$folder:$folder:ro")
done
arguments=()
if grep -q '^find-links' <<<"$settings"; then arguments+=(--build-arg TORCH_CPU_INDEX=); fi

echo "== build"
time buildah "${store[@]}" build --isolation chroot --target cpu --build-arg "BASE=$BASE_IMAGE" \
    "${arguments[@]}" "${pip[@]}" --tag localhost/lodestar:check . >"$work/build.log" 2>&1 ||
    { tail -n 40 "$work/build.log"; exit 1; }

container=$(buildah "${store[@]}" from localhost/lodestar:check)
root=$(buildah "${store[@]}" mount "$container")
mapfile -t environment < <(buildah "${store[@]}" inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | grep .)
user=$(buildah "${store[@]}" inspect --format '{{.OCIv1.Config.User}}' "$container")
entrypoint=$(buildah "${store[@]}" inspect --format '{{range .OCIv1.Config.Entrypoint}}{{.}}{{end}}' "$container")
echo "size $(du -sh "$root" | cut -f1), user $user, entrypoint $entrypoint"
[[ $user == 10001:10001 && $entrypoint == lodestar ]]

# Runs a command as the image's user in a mount namespace of its own, where all but /tmp is read-only.
inside() {
    unshare --mount bash -euc '
        root=$1 user=$2; shift 2
        mount --bind "$root" "$root"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount -o remount,ro,bind "$root"
        exec chroot --userspec="$user" "$root" env -i "$@"' inside "$root" "$user" "${environment[@]}" "$@"
}

echo "== lodestar --help"
inside "$entrypoint" --help >/dev/null
echo "== the root is read-only"
if inside sh -c 'touch /opt/lodestar/written' 2>/dev/null; then echo "the root can be written to"; exit 1; fi
echo "== serve reward"
inside python3 - <tests/k8s/image_check.py
buildah "${store[@]}" umount "$container" >/dev/null
echo "image-check passed"
