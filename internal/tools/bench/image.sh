#!/usr/bin/env bash
# Runs a command with an ext4 file system in a sparse file as its last argument:
#
#   image.sh FOLDER SIZE COMMAND…
#
# A disk of memory is as fast, but the kernel counts no writes to it. Without root
# there is nothing to mount with, and the command gets FOLDER itself.
set -euo pipefail
folder=$1 size=$2
shift 2
if [ "$(id -u)" -ne 0 ]; then
  echo "image.sh: not root, so what is written to disk isn't counted" >&2
  exec "$@" "$folder"
fi
dir=$(mktemp -d "$folder/mayfly-bench-XXXXXX")
cleanup() {
  umount "$dir/disk" 2>/dev/null || true
  rm -rf "$dir/image" && rmdir "$dir/disk" "$dir"
}
trap cleanup EXIT
truncate -s "$size" "$dir/image"
mkfs.ext4 -q -E nodiscard "$dir/image"
mkdir "$dir/disk"
mount -o loop "$dir/image" "$dir/disk"
"$@" "$dir/disk"
