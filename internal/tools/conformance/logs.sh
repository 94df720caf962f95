#!/usr/bin/env bash
# Holds every kind of log that runs here to one suite (ctlog/conformance_test.go), lets a
# whole Mayfly issue through a foreign log, and says which ran:
#
#   logs.sh            compares the table with docs/log-conformance.md
#   logs.sh --write    writes it there
#
# It needs MariaDB, the programs of tools.sh in CONFORMANCE_BIN, and MAYFLY_BIN.
set -euo pipefail
cd "$(dirname "$0")/../../.."
doc=docs/log-conformance.md
suite_out=$(mktemp -d)
export suite_out
trap 'rm -rf "$suite_out"' EXIT

# suite runs go test with the arguments, shows what it says, and keeps its events.
suite() {
  go test -count=1 -timeout=5m -json "$@" | tee -a "$suite_out/events" | jq -j 'select(.Action | IN("output", "build-output")).Output'
}
beside_ctfe() {
  suite -tags conformance -run '^TestCTFE$' ./ctlog
  cd internal/tools/conformance && go test -count=1 -timeout=5m -run '^TestCTFE$' -v .
}
export -f suite beside_ctfe
suite -run '^TestConformance$' ./ctlog
internal/tools/conformance/trillian.sh bash -eo pipefail -c beside_ctfe

# rows are the kinds of log, each with what came of the parts of the suite, in their order.
rows() {
  jq -r -s --arg head "$1" '. as $all | .[] | select(.Action == "attr" and .Key == "log") | . as $log
    | [$all[] | select(.Package == $log.Package and (.Test // "" | startswith($log.Test + "/")) and (.Action | IN("pass", "fail", "skip")))]
    | if $head != "" then [$head, (.[].Test | ltrimstr($log.Test + "/") | gsub("_"; " "))]
      else [$log.Value, (.[].Action | {pass: "passes", fail: "failed", skip: "did not run"}[.])] end
    | "| " + join(" | ") + " |"' "$suite_out/events"
}
table() {
  sed -n '1,/^<!-- table -->$/p' "$doc"
  echo
  rows log | sed -n 1p
  rows log | sed -n '1s/[^|]\{1,\}/---/gp'
  rows "" | LC_ALL=C sort -r
  echo
  sed -n '/^<!-- end -->$/,$p' "$doc"
}
table >"$suite_out/doc"
if [ "${1-}" = --write ]; then
  cp "$suite_out/doc" "$doc"
elif ! diff "$doc" "$suite_out/doc"; then
  echo "$doc says otherwise: mend it with internal/tools/conformance/logs.sh --write" >&2
  exit 1
fi
sed -n '/^| /p' "$doc"
