#!/usr/bin/env bash
# Installs moto, a stand-in for AWS KMS, at a fixed version outside the checkout,
# runs the conformance suite of ca/kms against it, and has it hold an issuing key.
set -euo pipefail
cd "$(dirname "$0")/../../.."

# shellcheck source=internal/tools/conformance/versions.sh
. internal/tools/conformance/versions.sh
venv=$(internal/tools/conformance/venv.sh "moto-$MOTO" "moto[server]==$MOTO")

log=$(mktemp)
AWS_EC2_METADATA_DISABLED=true "$venv/bin/python" internal/tools/conformance/aws_kms.py >"$log" 2>&1 &
moto=$!
trap 'kill "$moto" 2>/dev/null; rm -f "$log"' EXIT
url=
for _ in $(seq 300); do
  url=$(grep -o 'http://127.0.0.1:[0-9]*' "$log" | head -1) && break
  kill -0 "$moto" 2>/dev/null || { cat "$log" >&2; exit 1; }
  read -rt 0.1 <> <(:) || true
done
[ -n "$url" ] || { cat "$log" >&2; exit 1; }

export MAYFLY_MOTO=$url AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
go test -count=1 -timeout=5m -tags conformance -run 'Moto' -v ./ca/kms
internal/tools/conformance/issuances.sh '^moto$'
