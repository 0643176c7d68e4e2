#!/bin/bash
# Packages of another architecture (what a cross compiler links with), or of this one (what emulated machines run), unpacked into a folder. They come from this machine's own sources, by
# an apt with a state of its own: nothing is installed, and no architecture is added to this machine's.
# usage: launcher/sysroot.sh DEBIAN_ARCHITECTURE DIR PACKAGE…     (on Debian; nothing is done where DIR holds these packages already)
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
arch=$1 dir=$2
shift 2
stamp="$dir/PACKAGES"
[ "$(cat "$stamp" 2>/dev/null)" != "$arch $*" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/root"
: >"$work/status"
options=(-q -o "Dir::State=$work/state" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch"
    -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
echo "fetching $* for $arch"
apt-get "${options[@]}" update >"$work/log" 2>&1 &&
    apt-get "${options[@]}" -y --download-only --no-install-recommends install "$@" >>"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    echo "$0: the packages cannot be fetched (apt's sources must carry $arch)" >&2
    exit 1
}
for package in "$work"/cache/archives/*_"$arch".deb; do dpkg -x "$package" "$work/root"; done
# Links to absolute paths would lead out of the folder.
find "$work/root" -type l -lname '/*' | while read -r link; do
    ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$work/root$(readlink "$link")")" "$link"
done
rm -rf "$dir"
mkdir -p "$(dirname "$dir")"
mv "$work/root" "$dir"
echo "$arch $*" >"$stamp"
