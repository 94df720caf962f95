#!/usr/bin/env bash
# Builds HashiCorp Vault, unless it is there, holds the transit backend to it, and
# has it hold an issuing key. Vault is a peer for tests and never part of Mayfly.
# Its build takes about 11 minutes of CPU, once.
set -euo pipefail
cd "$(dirname "$0")/../../.."

version=1.21.1 # as in internal/tools/conformance/vault/go.mod
bin=${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-conformance/bin
vault=$bin/vault-$version
if [ ! -x "$vault" ]; then
  began=$SECONDS
  echo "building vault $version" >&2
  mkdir -p "$bin"
  (cd internal/tools/conformance/vault &&
    GOFLAGS='-buildvcs=false -mod=mod' nice go build -tags minimal -trimpath -ldflags '-s -w' -o "$vault.new" github.com/hashicorp/vault)
  mv "$vault.new" "$vault"
  echo "built vault $version in $((SECONDS - began)) s" >&2
fi
export VAULT_BIN=$vault
go test -count=1 -timeout=10m -v -tags conformance -run RealVault ./ca/kms/...
internal/tools/conformance/issuances.sh '^real-vault$'
