#!/usr/bin/env bash
# Goes from a ceremony to a served certificate with the issuing key in each
# backend, or in those that match the pattern given, and has sigstore-go verify
# each certificate. MAYFLY_MOTO (the URL of a running moto) and VAULT_BIN (a Vault
# to be started) add those two.
set -euo pipefail
cd "$(dirname "$0")/../../.."

MAYFLY_ISSUANCES=$(mktemp -d)
export MAYFLY_ISSUANCES
trap 'rm -rf "$MAYFLY_ISSUANCES"' EXIT
go test -count=1 -timeout=10m -tags pkcs11,conformance -run "^TestWholeIssuance\$/^of\$/${1-}" ./cmd/mayfly
cd internal/tools/conformance
go test -count=1 -timeout=2m -run '^TestWholeIssuance$' -v .
