#!/bin/sh
# A private CA on this machine in one command: starts `mayfly dev`, obtains one
# certificate through its development issuer over HTTP, shows it, and a signature
# with it that verifies when it has expired.
#
#   run.sh [--exit] MAYFLY     MAYFLY is the binary
#
# The service then runs until Ctrl-C; with --exit it works in a folder that is
# thrown away, on whatever ports are free, and ends at once. MAYFLY_DIR names
# another folder than ./mayfly-data, EMAIL another identity, and MAYFLY_FLAGS
# adds flags of `mayfly dev`.
set -eu

stay=yes
if [ "${1-}" = --exit ]; then
  stay=
  shift
fi
mayfly=${1:?usage: run.sh [--exit] MAYFLY}
email=${EMAIL:-you@example.com}
flags=${MAYFLY_FLAGS:-}
work=$(mktemp -d)
if [ -n "$stay" ]; then
  dir=${MAYFLY_DIR:-./mayfly-data}
else
  dir=$work/data
  for listener in http grpc issuer metrics; do
    flags="--$listener-address 127.0.0.1:0 $flags"
  done
fi

service=
tail=
interrupted=
finish() {
  status=$?
  trap - INT TERM EXIT
  if [ -n "$service" ]; then
    # A second signal would cut its end short, so it gets two seconds for that.
    tries=0
    while [ -n "$interrupted" ] && [ "$tries" -lt 20 ] && kill -0 "$service" 2>/dev/null; do
      sleep 0.1
      tries=$((tries + 1))
    done
    kill -TERM "$service" 2>/dev/null || true
    wait "$service" || status=$?
  fi
  # Ctrl-C doesn't end what a shell runs in the background.
  [ -z "$tail" ] || kill "$tail" 2>/dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
# The terminal's Ctrl-C reaches the service too: it ends by itself, and so do we.
trap 'interrupted=yes; exit 0' INT
trap 'exit 0' TERM

# Bold in a terminal alone, and not there for who wants no colours (no-color.org).
style='' plain=''
[ ! -t 1 ] || [ -n "${NO_COLOR-}" ] || { style=$(printf '\033[1m') && plain=$(printf '\033[0m'); }
say() { printf '\n%s%s%s\n' "$style" "$*" "$plain"; }
fetch() {
  if command -v curl >/dev/null 2>&1; then
    curl --fail --silent --show-error "$1"
  else
    wget --quiet --output-document=- "$1"
  fi
}
# endpoint NAME reads one of the addresses that the service chose.
endpoint() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$dir/endpoints.json"; }

say "1. Start a certificate authority, its log and a development issuer (data: $dir)"
touch "$work/begun" # endpoints that are older are those of a run that was killed
# shellcheck disable=SC2086 # flags are words
"$mayfly" dev --dir "$dir" $flags >"$work/log" 2>&1 &
service=$!
until [ -n "$(find "$dir" -name endpoints.json -newer "$work/begun" 2>/dev/null)" ]; do
  if ! kill -0 "$service" 2>/dev/null; then
    cat "$work/log" >&2
    if grep -q 'address already in use' "$work/log"; then
      echo "  flags and folder are given like this: make run MAYFLY_DIR=./another MAYFLY_FLAGS='--http-address 127.0.0.1:0 --metrics-address 127.0.0.1:0'" >&2
    fi
    exit 1
  fi
  sleep 0.1
done
http=$(endpoint http)
grpc=$(endpoint grpc)
issuer=$(endpoint issuer)
metrics=$(endpoint metrics)
echo "REST      $http"
echo "gRPC      $grpc"
echo "issuer    $issuer"
echo "metrics   $metrics/metrics"

say "2. Obtain a certificate for $email"
fetch "$http/trusted_root.json" >"$work/trusted_root.json"
fetch "$issuer/dev/token?email=$email" >"$work/token"
"$mayfly" request --ca "$http" --token-file "$work/token" --trusted-root "$work/trusted_root.json" \
  --output-key "$work/key.pem" --output-certificate "$work/cert.pem"

say "3. Read it"
"$mayfly" cert show --trusted-root "$work/trusted_root.json" "$work/cert.pem"

say "4. Sign something, and verify it a month later, long after the certificate has expired"
date >"$work/hello.txt"
"$mayfly" request --ca "$http" --token-file "$work/token" --trusted-root "$work/trusted_root.json" --sign "$work/hello.txt"
if command -v openssl >/dev/null 2>&1; then
  cd "$work"
  # What cosign and others read from the bundle by themselves.
  part() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' hello.txt.sigstore.json | base64 -d; }
  part rawBytes | openssl x509 -inform der -out leaf.pem
  part signature >hello.sig
  part signedTimestamp >reply.tsr
  openssl x509 -in leaf.pem -noout -pubkey >public.pem
  openssl dgst -sha256 -verify public.pem -signature hello.sig hello.txt
  # The root is the last certificate of the chain that came with the certificate.
  awk '/BEGIN/ { pem = "" } { pem = pem $0 "\n" } END { printf "%s", pem }' cert.pem >root.pem
  later=$(($(date +%s) + 30 * 86400))
  if openssl verify -attime "$later" -CAfile root.pem -untrusted cert.pem leaf.pem >expired 2>&1; then
    echo "the certificate should have expired" >&2
    exit 1
  fi
  echo "In 30 days the certificate alone says: $(sed -n 's/.*lookup: //p' expired | head -n 1)"
  openssl ts -verify -attime "$later" -data hello.sig -in reply.tsr -CAfile root.pem 2>/dev/null
  stamped=$(openssl ts -reply -in reply.tsr -text 2>/dev/null | sed -n 's/^Time stamp: //p')
  echo "The timestamp says, in 30 days too, that the signature was there at $stamped;"
  echo "at that time the certificate was valid: $(openssl verify -attime "$(date -u -d "$stamped" +%s)" -CAfile root.pem -untrusted cert.pem leaf.pem)"
  cd - >/dev/null
else
  echo "openssl isn't here, and would show it."
fi

if [ -z "$stay" ]; then
  say "That was all. \`make run\` keeps one up, and says how to sign a file with cosign."
  exit 0
fi
say "5. Sign a file with cosign v3 and verify the signature"
cat <<TEXT
  export TUF_ROOT=$dir/cosign   # not among your own trust roots
  cosign initialize --mirror $http/tuf --root $http/tuf/1.root.json
  date > hello.txt
  cosign sign-blob --yes --identity-token "\$(curl -s '$issuer/dev/token?email=$email')" --bundle hello.json hello.txt
  cosign verify-blob --bundle hello.json --insecure-ignore-tlog --use-signed-timestamps \\
    --certificate-identity $email --certificate-oidc-issuer $issuer hello.txt
TEXT

say "Running. Ctrl-C ends it; what it says from now on follows."
tail -n 0 -f "$work/log" &
tail=$!
code=0
wait "$service" || code=$?
service=
[ "$code" -eq 0 ] || exit "$code"
