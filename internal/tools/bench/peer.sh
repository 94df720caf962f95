#!/usr/bin/env bash
# Runs the CA that Mayfly is compared with, beside a log of its own and the log's
# database, until standard input ends:
#
#   peer.sh FOLDER ISSUER HTTP GRPC METRICS LOG
#
# FOLDER has root.pem, chain.pem and issuing.key.pem; the rest are the token issuer's
# URL and free ports. It says what it is in a line, and ends with status 3 and a
# line of reason where a program of it isn't there (`make bench-peer` builds them).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
conformance=$here/../conformance
# shellcheck source=internal/tools/conformance/versions.sh
. "$conformance/versions.sh"

if [ "$1" != --beside ]; then
  export CONFORMANCE_BIN=${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-conformance/bin
  for program in "fulcio-$FULCIO" "ct_server-$CT_GO" {createtree,trillian_log_server,trillian_log_signer}-"$TRILLIAN"; do
    [ -x "$CONFORMANCE_BIN/$program" ] || { echo "$program isn't built: make bench-peer"; exit 3; }
  done
  command -v mariadbd >/dev/null || { echo "MariaDB isn't installed: make bench-peer"; exit 3; }
  exec "$conformance/trillian.sh" "$here/peer.sh" --beside "$@"
fi

folder=$2 issuer=$3 http=$4 grpc=$5 metrics=$6 log=$7
"$CTFE" "$folder" "$folder/root.pem" "127.0.0.1:$log" >"$folder/ctfe.log" 2>&1 &
pids=($!)
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  (exec 3<>"/dev/tcp/127.0.0.1/$log") 2>/dev/null && break
  kill -0 "${pids[0]}" 2>/dev/null || { cat "$folder/ctfe.log" >&2; exit 1; }
  read -rt 0.1 <> <(:) || true
done
cat >"$folder/fulcio.yaml" <<CONFIG
oidc-issuers:
  $issuer:
    issuer-url: $issuer
    client-id: sigstore
    type: email
CONFIG
# It takes a key in a file only when that is encrypted.
password=bench
openssl pkcs8 -topk8 -v2 aes256 -in "$folder/issuing.key.pem" -out "$folder/fulcio.key.pem" -passout "pass:$password"
# Its settings are its own defaults, but for a log format that costs less.
"$CONFORMANCE_BIN/fulcio-$FULCIO" serve --log_type=prod --config-path="$folder/fulcio.yaml" \
  --ca=fileca --fileca-cert="$folder/chain.pem" --fileca-key="$folder/fulcio.key.pem" --fileca-key-passwd="$password" --fileca-watch=false \
  --ct-log-url="http://127.0.0.1:$log/log" --ct-log-public-key-path="$folder/log.pub.pem" \
  --host=127.0.0.1 --port="$http" --grpc-host=127.0.0.1 --grpc-port="$grpc" --metrics-port="$metrics" \
  --legacy-unix-domain-socket="$folder/fulcio.sock" >"$folder/fulcio.log" 2>&1 &
pids+=($!)
echo "Fulcio $FULCIO with $CTFE_KIND"
cat >/dev/null
