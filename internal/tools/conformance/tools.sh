#!/usr/bin/env bash
# Installs the foreign programs that Mayfly is tested with, each at a fixed
# version, into the folder that is printed last. What is there is kept: cosign
# takes some minutes to build. The version is part of the name, so a change of
# version installs anew. `tools.sh peer` builds Fulcio and its log alone, for the bench.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-conformance
bin=$cache/bin
mkdir -p "$bin"

# install_go NAME PACKAGE VERSION
install_go() {
  local began=$SECONDS
  [ -x "$bin/$1-$3" ] && return 0
  echo "building $1 $3" >&2
  mkdir -p "$bin/.new"
  GOBIN=$bin/.new CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install "$2@$3" >&2
  mv "$bin/.new/$(basename "$2")" "$bin/$1-$3"
  echo "built $1 $3 in $((SECONDS - began)) s" >&2
}

# shellcheck source=internal/tools/conformance/versions.sh
. "$(dirname "$0")/versions.sh"
# certificate-transparency-go's log and the Trillian that it needs: 4 minutes of CPU.
install_go ct_server github.com/google/certificate-transparency-go/trillian/ctfe/ct_server "$CT_GO"
for program in createtree trillian_log_server trillian_log_signer; do
  install_go "$program" "github.com/google/trillian/cmd/$program" "$TRILLIAN"
done
if [ "${1-}" = peer ]; then
  install_go fulcio github.com/sigstore/fulcio "$FULCIO"
  exit
fi

# The newest of each that builds with the Go version of this project.
install_go cosign github.com/sigstore/cosign/v3/cmd/cosign v3.1.3
install_go cosign github.com/sigstore/cosign/v2/cmd/cosign v2.6.5
install_go timestamp-server github.com/sigstore/timestamp-authority/v2/cmd/timestamp-server v2.1.3
# The example server of an OpenID-certified library, an identity provider.
install_go zitadel-op github.com/zitadel/oidc/v3/example/server v3.51.17
# A witness of logs (c2sp.org/tlog-witness).
install_go omniwitness github.com/transparency-dev/witness/cmd/omniwitness v0.0.0-20260720115447-2e1c6971d19e
# certificate-transparency-go's command-line client.
install_go ctclient github.com/google/certificate-transparency-go/client/ctclient "$CT_GO"

# Node packages, exactly those of the lock file.
here=$(cd "$(dirname "$0")" && pwd)
lock=$(cksum <"$here/node/package-lock.json" | tr ' ' -)
node=$cache/node-$lock
if [ ! -e "$node/.complete" ]; then
  echo "installing the Node packages" >&2
  rm -rf "$node"
  mkdir -p "$node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$here/node/.npmrc" "$node/"
  (cd "$node" && npm ci --no-progress >&2)
  touch "$node/.complete"
fi
# Node looks for packages beside the script that imports them.
cp "$here"/node/*.mjs "$node/"

printf 'BIN=%s\nNODE=%s\n' "$bin" "$node"
