#!/usr/bin/env bash
# make release: everything that is published of a version, into a folder. What is
# built is the same bytes wherever and whenever it is built from one commit with one version
# of Go, but for signatures.
#
#   release.sh DIST
#
# VERSION, COMMIT and DATE (of the commit) come from the Makefile. PLATFORMS and PACKAGES
# ("deb rpm") narrow it down. MAYFLY_CA and SIGSTORE_ID_TOKEN name who signs, and as whom;
# without them a Mayfly is started for it, whose root nobody else knows: SIGN=no leaves it out.
set -euo pipefail
cd "$(dirname "$0")/../../.."
dist=${1:?usage: release.sh DIST}
: "${VERSION:?}" "${COMMIT:?}" "${DATE:?}" "${PLATFORMS:?}"
SOURCE_DATE_EPOCH=$(date -d "$DATE" +%s)
export VERSION COMMIT SOURCE_DATE_EPOCH
export TZ=UTC LC_ALL=C
umask 022

work=$(mktemp -d)
signer=
finish() {
  local status=$?
  if [ -n "$signer" ]; then
    kill "$signer" 2>/dev/null || true
    wait "$signer" 2>/dev/null || true
  fi
  rm -rf "$work"
  exit $status
}
trap finish EXIT

rm -rf "$dist"
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
name=mayfly-$VERSION
ldflags="-s -w -buildid= -X main.version=$VERSION -X main.commit=$COMMIT -X main.date=$DATE"
build() { CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$1" "./cmd/$2"; }
go build -C internal/tools -o "$work/release" ./release
touch_all() { find "$1" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; }
packed() { # packed FILE FOLDER: a tar that is the same each time
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=ustar -C "$2" -cf - . | gzip -n -9 >"$1"
}

binaries=()
for platform in $PLATFORMS; do
  os=${platform%/*} arch=${platform#*/} suffix=''
  [ "$os" != windows ] || suffix=.exe
  for program in mayfly mayfly-verify; do
    file=$dist/$program-$VERSION-$os-$arch$suffix
    GOOS=$os GOARCH=$arch build "$file" "$program"
    binaries+=("$file")
  done
done
"$work/release" sbom "${binaries[@]}"

# Manual pages and completion, from the binary itself.
stage=$work/stage
mkdir -p "$stage/man" "$stage/completion" "$stage/doc/examples"
for program in mayfly mayfly-verify; do
  build "$work/$program" "$program" # `mayfly verify` runs the other, beside it
done
"$work/release" man "$work/mayfly" "$stage/man"
for shell in bash zsh fish; do
  "$work/mayfly" completion "$shell" >"$stage/completion/$shell"
done
cp deploy/mayfly.service deploy/mayfly-backup.service deploy/mayfly-backup.timer deploy/mayfly.sysusers "$stage/"
cp LICENSE "$stage/doc/copyright"
cp README.md CHANGELOG.md "$stage/doc/"
cp -L deploy/mayfly.example.yaml deploy/prometheus/mayfly.rules.yaml deploy/grafana/mayfly.dashboard.json "$stage/doc/examples/"

# The image of Linux' binaries, the packages, the chart.
mapfile -t linux < <(printf '%s\n' "${binaries[@]}" | grep -F "/$name-linux-" || true)
if [ ${#linux[@]} -gt 0 ]; then
  "$work/release" image "$dist/$name-image.tar" "${linux[@]}"
fi
PACKAGE_VERSION=${VERSION#v}
case $PACKAGE_VERSION in [0-9]*.*) ;; *) PACKAGE_VERSION=0.0.0~$PACKAGE_VERSION ;; esac
export PACKAGE_VERSION STAGE=$stage
for binary in "${linux[@]}"; do
  export ARCH=${binary##*-}
  cp "$binary" "$stage/mayfly"
  cp "$dist/mayfly-verify-$VERSION-linux-$ARCH" "$stage/mayfly-verify"
  touch_all "$stage"
  for kind in ${PACKAGES-deb rpm}; do
    "${NFPM:?tools.sh release prints it}" package --config deploy/packages/nfpm.yaml --packager "$kind" --target "$dist/$name-linux-$ARCH.$kind" >/dev/null
  done
done
cp -r deploy/helm "$work/helm"
sed -i "s/^appVersion: .*/appVersion: \"$VERSION\"/; s/^version: .*/version: ${PACKAGE_VERSION/\~/-}/" "$work/helm/mayfly/Chart.yaml"
packed "$dist/$name-chart.tgz" "$work/helm"

(cd "$dist" && sha256sum -- * >"$work/sums" && mv "$work/sums" SHA256SUMS)
RELEASE_BUILDER=${RELEASE_BUILDER:-https://github.com/mayfly-ca/mayfly/blob/main/internal/tools/release/release.sh} "$work/release" provenance "$dist"
[ "${SIGN-}" != no ] || exit 0

if [ -z "${MAYFLY_CA-}" ]; then
  "$work/mayfly" dev --dir "$work/ca" --http-address 127.0.0.1:0 --grpc-address 127.0.0.1:0 --issuer-address 127.0.0.1:0 \
    --metrics-address 127.0.0.1:0 >"$work/ca.log" 2>&1 &
  signer=$!
  until [ -e "$work/ca/endpoints.json" ]; do
    kill -0 $signer 2>/dev/null || { cat "$work/ca.log" >&2; exit 1; }
    sleep 0.1
  done
  endpoint() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$work/ca/endpoints.json"; }
  MAYFLY_CA=$(endpoint http)
  SIGSTORE_ID_TOKEN=$(curl -fsS "$(endpoint issuer)/dev/token?email=release@mayfly-ca.example")
  export MAYFLY_CA SIGSTORE_ID_TOKEN
  echo "signed by a CA of this build alone, whose issuer is $(endpoint issuer)" >&2
fi
"$work/release" sign "$dist"
