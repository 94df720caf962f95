#!/usr/bin/env bash
# make conformance: installs the foreign programs, runs them against bin/mayfly or
# the binary that MAYFLY_BIN names, and ends with a line for each client: ran, failed
# or did not run. `run.sh --full` is make conformance-full: those too whose build takes
# long.
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit 1
root=$PWD
. internal/tools/steps.sh

full=${1-}

packages() {
  internal/tools/packages.sh ca-certificates openssl npm python3-venv default-jdk-headless maven chromium \
    git mariadb-server redis-server gcc softhsm2 libnss3-tools
}
step "packages (conformance)" packages

tools=$(mktemp)
install_tools() { internal/tools/conformance/tools.sh ${full:+"$full"} >"$tools"; }
step "foreign programs" install_tools
# shellcheck source=/dev/null
. "$tools"
rm -f "$tools"

export MAYFLY_BIN=${MAYFLY_BIN:-$root/bin/mayfly}
export CONFORMANCE_BIN=${BIN-} CONFORMANCE_NODE=${NODE-} CONFORMANCE_PYTHON=${PYTHON-}
export CONFORMANCE_MOTO=${MOTO-} CONFORMANCE_JAVA=${JAVA-}
if [ -n "$full" ] || compgen -G "$CONFORMANCE_BIN/promtool-*" >/dev/null; then
  step "deploy/, as clusters read it" internal/tools/deploy/run.sh
else
  absent "deploy/, as clusters read it" "its readers' build is long: make check-deploy"
fi
step "docs/, as a site" internal/tools/site/run.sh bin/site
log=$(mktemp)
# The tests that other steps run, and those of programs that aren't built.
skip='^(TestCTFE|TestRekorV1|TestWholeIssuance)$'
[ -n "$full" ] || skip+='|^(TestAdmission(OfRevoked)?|TestPageOfMany)$|/^(gh|sigstore-rust.*)$'
clients() { (cd internal/tools/conformance && go test -count=1 -timeout=30m -skip "$skip" -v ./... 2>&1) | tee "$log"; }
step "conformance" clients
issuances() { internal/tools/conformance/issuances.sh 2>&1 | tee -a "$log"; }
step "whole issuances, by the issuing key" issuances
logs() { internal/tools/conformance/logs.sh 2>&1 | tee -a "$log"; }
step "logs, CTFE among them" logs
if [ -n "$full" ]; then
  beside_rekor() { cd internal/tools/conformance && go test -count=1 -timeout=5m -run '^TestRekorV1$' -v .; }
  export -f beside_rekor
  rekor() { internal/tools/conformance/trillian.sh bash -ec beside_rekor 2>&1 | tee -a "$log"; }
  step "clients of a Rekor v1" rekor
  step "a release: built twice, verified, installed" internal/tools/release/check.sh
fi

# One line for each client, from go test's own.
sed -n 's/^    --- \(PASS\|FAIL\|SKIP\): Test[A-Za-z0-9_]*\/\([^ ]*\) (\([0-9.]*\)s)$/\1 \2 \3/p' "$log" |
  while read -r result name seconds; do
    case $result in
      PASS) record ran "  $name" "$seconds s" ;;
      FAIL) record failed "  $name" "$seconds s" ;;
      *) absent "  $name" "its reason is above" ;;
    esac
  done
# A test that skips as a whole has no such line of a client.
sed -n 's/^--- SKIP: \([^ ]*\) .*/\1/p' "$log" |
  while read -r name; do absent "  $name" "it skipped: its reason is above"; done
rm -f "$log"
absent "  TesseraCT" "its module can't be fetched: the checksum database doesn't know it"
absent "  Sunlight, as a log" "it takes certificates for server authentication alone"
attacks() { MAYFLY_ATTACK=1m go test -count=1 -timeout=5m -v -run '^TestAttacks' ./cmd/mayfly; }
step "all attacks at once, for a minute" attacks
step "keys, by backend" internal/tools/conformance/keys.sh
[ -n "$full" ] || for name in gitsign gh sigstore-rust kyverno policy-controller; do
  absent "  $name" "its build is long: make conformance-full"
done
absent "  a replay, against cosign" "its initialize forgets what it knew"
summary
