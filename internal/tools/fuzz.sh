#!/usr/bin/env bash
# Runs every fuzz target of the module for a while, one after the other.
#
#   fuzz.sh DURATION [PACKAGE]    e.g. fuzz.sh 10s ./identity/proof
#
# A target that finds a failing input ends with status 1 at once; go test has
# then written the input to the package's testdata/fuzz, to be committed.
set -euo pipefail

duration=$1
within=${2:-./...}
targets=0 failed=0

# run PACKAGE TARGET
run() {
  local log
  log=$(mktemp)
  # An input that finds new code isn't made smaller: that took all of a short time.
  go test -run '^$' -fuzz "^$2\$" -fuzztime "$duration" -fuzzminimizetime 1x "$1" >"$log" 2>&1 && {
    printf '%-52s %-34s %s\n' "${1#github.com/mayfly-ca/mayfly/}" "$2" "$(grep -o 'execs: [0-9]*' "$log" | tail -n 1)"
    rm -f "$log"
    return 0
  }
  # At its deadline go test may take the end of the time for a failure of the
  # target (golang/go#75804): it is one only with a failing input or a message.
  if ! grep -q 'Failing input written' "$log" && grep -q '^ *context deadline exceeded$' "$log"; then
    printf '%-52s %-34s ended at its deadline\n' "${1#github.com/mayfly-ca/mayfly/}" "$2"
    rm -f "$log"
    return 0
  fi
  cat "$log"
  rm -f "$log"
  return 1
}

while read -r package folder; do
  while read -r target; do
    targets=$((targets + 1))
    run "$package" "$target" || failed=$((failed + 1))
  done < <(cat "$folder"/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' | sort -u)
done < <(go list -f '{{.ImportPath}} {{.Dir}}' "$within")

if [ "$targets" -eq 0 ]; then
  echo "no fuzz target found in $within" >&2
  exit 1
fi
echo "fuzz targets: $targets, failed: $failed"
[ "$failed" -eq 0 ]
