#!/usr/bin/env bash
# A release is built twice, in two folders with caches of their own, and compared; verified
# as docs/releases.md says; held to foreign validators; and installed in a fresh Debian.
# It is part of make conformance-full. PLATFORMS narrows or widens what is built.
set -euo pipefail
cd "$(dirname "$0")/../../.."
internal/tools/packages.sh ca-certificates curl debootstrap mandoc openssl python3-venv rpm systemd
eval "$(internal/tools/conformance/tools.sh release)"
export NFPM PLATFORMS=${PLATFORMS-linux/amd64 darwin/arm64 windows/amd64} VERSION=v0.0.1
COMMIT=$(git rev-parse HEAD) DATE=$(git log -1 --format=%cI)
export COMMIT DATE

work=$(mktemp -d)
finish() {
  local status=$?
  chmod -R u+w "$work" && rm -rf "$work" # modules are read-only
  exit $status
}
trap finish EXIT
for copy in one another/folder; do
  mkdir -p "$work/$copy"
  git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory "$work/$copy"
done
(cd "$work/one" && internal/tools/release/release.sh "$work/dist" 2>&1) | tee "$work/log"
issuer=$(sed -n "s/^signed by .* issuer is //p" "$work/log")
(cd "$work/another/folder" && GOCACHE=$work/cache SIGN=no internal/tools/release/release.sh "$work/again")
rm -rf "$work/cache"
for file in "$work"/again/*; do
  cmp "$file" "$work/dist/${file##*/}"
done
for platform in $PLATFORMS; do # and each is among them
  compgen -G "$work/again/mayfly-verify-$VERSION-${platform/\//-}*" >/dev/null || { echo "nothing for $platform"; exit 1; }
done
echo "reproducible: $(find "$work/again" -type f | wc -l) files of two builds are the same"

mkdir "$work/bin"
ln -s "${CONFORMANCE_BIN:?}/cosign-v3.1.3" "$work/bin/cosign"
ln -s "$work/dist/mayfly-verify-$VERSION-linux-$(dpkg --print-architecture)" "$work/bin/mayfly-verify"
tests() { (cd internal/tools && PATH=$work/bin:$PATH RELEASE_DIST=$work/dist RELEASE_ISSUER=$issuer go test -count=1 -v "$@" ./release); }
tests
if [ "$(dpkg --print-architecture)" = amd64 ]; then
  rm "$work/bin/mayfly-verify"
  internal/tools/release/wine.sh "$work/dist/mayfly-verify-$VERSION-windows-amd64.exe" "$work/bin/mayfly-verify" "$work/wine"
  tests -run '^TestVerify$/^mayfly$'
  echo "the verifier for Windows, under Wine: verifies and refuses"
  internal/tools/release/windows.sh "$work/dist/mayfly"{,-verify}"-$VERSION-windows-amd64.exe" "$work/dist/mayfly-$VERSION-linux-amd64"
fi

venv=$(internal/tools/conformance/venv.sh sbom-1 'cyclonedx-python-lib[json-validation]==11.11.0' spdx-tools==0.8.5)
for list in "$work"/dist/*.cdx.json; do
  "$venv/bin/python" - "$list" <<'PY'
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(f"{sys.argv[1]}: {fault}" if fault else 0)
PY
done
for list in "$work"/dist/*.spdx.json; do
  "$venv/bin/pyspdxtools" --infile "$list"
done
"$CONFORMANCE_BIN/oras-v1.3.6" manifest fetch --oci-layout "$work/dist/mayfly-$VERSION-image.tar:$VERSION" >/dev/null
rpm --query --package --list "$work"/dist/*.rpm | grep -qx /usr/lib/systemd/system/mayfly.service
internal/tools/release/stranger.sh "$work"/dist/*-linux-"$(dpkg --print-architecture)".deb "$work/dist/mayfly-$VERSION-linux-$(dpkg --print-architecture)"
