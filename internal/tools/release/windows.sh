#!/usr/bin/env bash
# What somebody with Windows has of mayfly.exe, tried under Wine with a CA that runs here: a
# certificate, a bundle that verifies, and the refusal of what doesn't run there.
#
#   windows.sh MAYFLY.exe MAYFLY-VERIFY.exe MAYFLY     MAYFLY runs the CA
set -euo pipefail
umask 022
cd "$(dirname "$0")/../../.."
work=$(mktemp -d)
ca=
finish() {
  local status=$?
  [ -z "$ca" ] || { kill "$ca" 2>/dev/null && wait "$ca"; } || true
  rm -rf "$work"
  exit $status
}
trap finish EXIT
cp "${1:?}" "$work/mayfly.exe"
cp "${2:?}" "$work/mayfly-verify.exe"
internal/tools/release/wine.sh "$work/mayfly.exe" "$work/mayfly" "$work/wine"
"${3:?}" dev --dir "$work/ca" --http-address 127.0.0.1:0 --grpc-address 127.0.0.1:0 --metrics-address 127.0.0.1:0 --issuer-address 127.0.0.1:0 >"$work/log" 2>&1 &
ca=$!
until [ -e "$work/ca/endpoints.json" ]; do
  kill -0 $ca 2>/dev/null || { cat "$work/log"; exit 1; }
  sleep 0.1
done
endpoint() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$work/ca/endpoints.json"; }
cd "$work"
mayfly() { timeout 300 ./mayfly "$@"; }
refused() { # refused WORDS ARGUMENT…
  local words=$1 status=0
  shift
  mayfly "$@" >out 2>&1 || status=$?
  if [ $status -ne 1 ] || ! grep -qF "$words" out; then
    echo "mayfly.exe $*: exit code $status"
    cat out
    exit 1
  fi
}

curl -fsS "$(endpoint issuer)/dev/token?email=alice@example.com" >token
curl -fsS "$(endpoint trusted_root)" >trusted_root.json
for again in '' --force; do
  mayfly request --ca "$(endpoint http)" --token-file token --output-key key --output-certificate crt $again
  mayfly cert show crt --trusted-root trusted_root.json | grep -F alice@example.com
  # Wine shows an access list as a mode, its user's rights as the group's too.
  [ "$(stat -c %a key crt | tr '\n' ' ')" = '750 644 ' ] || { stat key crt; exit 1; }
done
refused 'exists already' request --ca "$(endpoint http)" --token-file token --output-key key --output-certificate crt

echo hello >file
mayfly request --ca "$(endpoint http)" --token-file token --sign file
verify=(verify --bundle file.sigstore.json --trusted-root trusted_root.json --crl none --certificate-identity alice@example.com --certificate-oidc-issuer "$(endpoint issuer)" file)
mayfly "${verify[@]}"
echo other >file
refused 'invalid signature' "${verify[@]}"
for _ in {1..50}; do # the index follows the log
  ! mayfly search --ca "$(endpoint http)" alice@example.com >found || break
done
grep -F alice@example.com found
mayfly log verify --dir ca/ctlog --mark ca/ctlog.mark

for words in dev serve 'kms keygen file:key' 'tuf status --config ca/mayfly.yaml'; do
  # shellcheck disable=SC2086 # words
  refused "doesn't run on Windows" $words
done
refused "who may use it can't be told on Windows" ca verify crt --key file:ca/ctlog.key.pem
echo "mayfly for Windows, under Wine: asks, signs, verifies, searches, and refuses to run a CA"
