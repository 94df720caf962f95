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
    mariadb-server gcc softhsm2 libnss3-tools
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
log=$(mktemp)
clients() { (cd internal/tools/conformance && go test -count=1 -timeout=10m -skip '^(TestCTFE|TestWholeIssuance)$' -v ./... 2>&1) | tee "$log"; }
step "conformance" clients
issuances() { internal/tools/conformance/issuances.sh 2>&1 | tee -a "$log"; }
step "whole issuances, by the issuing key" issuances
logs() { internal/tools/conformance/logs.sh 2>&1 | tee -a "$log"; }
step "logs, CTFE among them" logs

# One line for each client, from go test's own.
sed -n 's/^    --- \(PASS\|FAIL\|SKIP\): Test[A-Za-z0-9_]*\/\([^ ]*\) (\([0-9.]*\)s)$/\1 \2 \3/p' "$log" |
  while read -r result name seconds; do
    case $result in
      PASS) result=ran ;;
      FAIL) result=failed ;;
      *) result="did not run" ;;
    esac
    record "$result" "  $name" "$seconds s"
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
absent "  gitsign" "it signs only with a Rekor transparency log beside the CA"
summary
