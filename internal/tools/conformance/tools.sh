#!/usr/bin/env bash
# Installs the foreign programs that Mayfly is tested with, each at a fixed
# version, into folders that it prints last, as settings of a shell. What is there is
# kept. The version is part of the name, so a change of version installs anew.
#
#   tools.sh [--full]     with those that take more than three minutes of processor
#   tools.sh peer         Fulcio and its log alone, for the bench
#   tools.sh deploy       what reads deploy/ in clusters, alone
#   tools.sh release      what makes packages, alone
#
# Beside each stands what it costs where nothing is there: processor seconds, after
# those above it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=internal/tools/conformance/versions.sh
. "$here/versions.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-conformance
bin=$cache/bin
mkdir -p "$bin"

# built NAME-VERSION FUNCTION ARGUMENT…: has the function write a program, unless it
# is there. Its first argument is where to.
built() {
  local name=$1 began=$SECONDS
  [ -x "$bin/$name" ] && return 0
  echo "building $name" >&2
  mkdir -p "$bin/.new"
  "$2" "$bin/.new/$name" "${@:3}" >&2
  mv "$bin/.new/$name" "$bin/$name"
  echo "built $name in $((SECONDS - began)) s" >&2
}

# install_go NAME PACKAGE VERSION [TAGS]: with exactly the modules of its authors' go.mod.
install_go() { built "$1-$3" go_install "${@:2}"; }
go_install() {
  GOBIN=$bin/.new CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install ${4:+-tags "$4"} "$2@$3"
  mv "$bin/.new/$(basename "$2")" "$1"
}

# install_module NAME PACKAGE MODULE VERSION: the same for a module whose versions
# the module proxy doesn't list, which `go install` asks for.
install_module() { built "$1-$4" go_module "$2" "$3" "$4"; }
go_module() {
  local dir status=0
  dir=$(mktemp -d)
  printf 'module build\n\ngo 1.26.0\n\nrequire %s %s\n' "$3" "$4" >"$dir/go.mod"
  (cd "$dir" && CGO_ENABLED=0 GOFLAGS='-buildvcs=false -mod=mod' go build -o "$1" "$2") || status=1
  rm -rf "$dir"
  return $status
}

# admission FOLDER VERSION [NAME PACKAGE]: a program of ours around a policy engine's own
# code, or a package that a go.mod of ours builds.
admission() { built "${3-$1}-$2" admission_program "$1" "${4-.}"; }
admission_program() {
  local dir status=0
  dir=$(mktemp -d)
  cp "$here/admission/$2"/* "$dir"
  (cd "$dir" && CGO_ENABLED=0 GOFLAGS='-buildvcs=false -mod=mod' go build -o "$1" "$3") || status=1
  rm -rf "$dir"
  return $status
}

# rust_program PROGRAM: Debian's cargo is too old for it (1.86 or later).
rust_program() {
  local target
  target=$(mktemp -d)
  CARGO_TARGET_DIR=$target cargo build --quiet --locked --manifest-path "$here/rust/Cargo.toml"
  mv "$target/debug/sigstore-conformance" "$1"
  rm -rf "$target"
}

# What renders, judges and reads deploy/.
if [ "${1-}" = deploy ]; then
  install_go kubeconform github.com/yannh/kubeconform/cmd/kubeconform v0.8.0
  install_go helm helm.sh/helm/v3/cmd/helm v3.22.0
  install_go kube-score github.com/zegl/kube-score/cmd/kube-score v1.20.0
  install_go promtool github.com/prometheus/prometheus/cmd/promtool v0.316.0 remove_all_sd # without the clouds' clients
  printf '%s=%s\n' KUBECONFORM "$bin/kubeconform-v0.8.0" HELM "$bin/helm-v3.22.0" \
    KUBE_SCORE "$bin/kube-score-v1.20.0" PROMTOOL "$bin/promtool-v0.316.0"
  exit
fi

if [ "${1-}" = release ]; then
  install_go nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm v2.45.2
  printf 'NFPM=%s\n' "$bin/nfpm-v2.45.2"
  exit
fi

# certificate-transparency-go's log and the Trillian that it needs: 240 in all.
install_go ct_server github.com/google/certificate-transparency-go/trillian/ctfe/ct_server "$CT_GO"
for program in createtree trillian_log_server trillian_log_signer; do
  install_go "$program" "github.com/google/trillian/cmd/$program" "$TRILLIAN"
done
if [ "${1-}" = peer ]; then
  install_go fulcio github.com/sigstore/fulcio "$FULCIO"
  exit
fi

# The newest of each that builds with the Go version of this project.
install_go cosign github.com/sigstore/cosign/v3/cmd/cosign v3.1.3                                # 450
install_go cosign github.com/sigstore/cosign/v2/cmd/cosign v2.6.5                                # 345
install_go timestamp-server github.com/sigstore/timestamp-authority/v2/cmd/timestamp-server v2.1.3 # 105
# Rekor v2, its log in a folder.
install_go rekor-server-posix github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix v2.3.0 # 37
# Copies images with what refers to them.
install_go oras oras.land/oras/cmd/oras v1.3.6 # 15
# The example server of an OpenID-certified library, an identity provider.
install_go zitadel-op github.com/zitadel/oidc/v3/example/server v3.51.17 # 12
# A witness of logs (c2sp.org/tlog-witness).
install_go omniwitness github.com/transparency-dev/witness/cmd/omniwitness v0.0.0-20260720115447-2e1c6971d19e
# A collector of logs, with what our test has it do.
install_go telegraf github.com/influxdata/telegraf/cmd/telegraf v1.37.2 \
  custom,inputs.http_listener_v2,outputs.file,parsers.json_v2,serializers.template # 43
# certificate-transparency-go's command-line client.
install_go ctclient github.com/google/certificate-transparency-go/client/ctclient "$CT_GO"

if [ "${1-}" = --full ]; then
  # Rekor v1, on that Trillian, and the client that can't do without.
  install_go rekor-server github.com/sigstore/rekor/cmd/rekor-server v1.5.4                   # 213
  install_module gitsign github.com/sigstore/gitsign github.com/sigstore/gitsign v0.14.0      # 304
  install_module gh github.com/cli/cli/v2/cmd/gh github.com/cli/cli/v2 v2.83.0                  # 203
  admission kyverno v1.19.1                                                                     # 39
  # sigstore-rust, and our program around it.
  built sigstore-rust-0.15.1 rust_program                                                       # 150
  admission policy-controller v0.13.1 policy-webhook                                            # 300
  # Kyverno's own command.
  admission kyverno-cli v1.19.1 kyverno-cli github.com/kyverno/kyverno/cmd/cli/kubectl-kyverno
fi

# Node packages, exactly those of the lock file, a Node among them.
lock=$(cksum <"$here/node/package-lock.json" | tr ' ' -)
node=$cache/node-$lock
if [ ! -e "$node/.complete" ]; then
  echo "installing the Node packages" >&2
  rm -rf "$node"
  mkdir -p "$node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$here/node/.npmrc" "$node/"
  (cd "$node" && npm ci --no-progress --loglevel=error >&2)
  touch "$node/.complete"
fi
# Node looks for packages beside the script that imports them.
cp "$here"/node/*.mjs "$node/"

# Python's packages: 18.
python=$("$here/venv.sh" "python-$(cksum <"$here/python/requirements.txt" | tr ' ' -)" -r "$here/python/requirements.txt")
aws=$("$here/venv.sh" "moto-$MOTO" "moto[server]==$MOTO")

# sigstore-java with what it needs, and our program around it: 15.
java=$cache/java-$(cat "$here/java/pom.xml" "$here/java/Sigstore.java" | cksum | tr ' ' -)
if [ ! -e "$java/.complete" ]; then
  echo "installing sigstore-java" >&2
  rm -rf "$java"
  mkdir -p "$java"
  mvn -B -q -ntp -f "$here/java/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DoutputDirectory="$java" >&2
  javac -cp "$java/*" -d "$java" "$here/java/Sigstore.java"
  touch "$java/.complete"
fi

printf '%s=%s\n' BIN "$bin" NODE "$node" PYTHON "$python" MOTO "$aws" JAVA "$java"
