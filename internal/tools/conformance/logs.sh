#!/usr/bin/env bash
# Holds every kind of log that runs here to one suite (ctlog/ctlogtest), lets a
# whole Mayfly issue through a foreign log, and says which ran:
#
#   logs.sh            compares the table with docs/log-conformance.md
#   logs.sh --write    writes it there
#
# It needs MariaDB, the programs of tools.sh in CONFORMANCE_BIN, and MAYFLY_BIN.
set -euo pipefail
cd "$(dirname "$0")/../../.."
doc=docs/log-conformance.md
MAYFLY_LOG_TABLE=$(mktemp -d)
export MAYFLY_LOG_TABLE
trap 'rm -rf "$MAYFLY_LOG_TABLE"' EXIT

go test -count=1 -timeout=5m -run '^TestConformance$' ./ctlog/embedded ./ctlog/external
beside_ctfe() {
  go test -count=1 -timeout=5m -tags conformance -run '^TestCTFE$' -v ./ctlog/external
  cd internal/tools/conformance && go test -count=1 -timeout=5m -run '^TestCTFE$' -v .
}
export -f beside_ctfe
internal/tools/conformance/trillian.sh bash -ec beside_ctfe

table() {
  sed -n '1,/^<!-- table -->$/p' "$doc"
  echo
  cat "$MAYFLY_LOG_TABLE"/0-head.md
  head -1 "$MAYFLY_LOG_TABLE"/0-head.md | sed 's/[^|]\{1,\}/---/g'
  LC_ALL=C sort -r "$MAYFLY_LOG_TABLE"/1-*.md
  echo
  sed -n '/^<!-- end -->$/,$p' "$doc"
}
table >"$MAYFLY_LOG_TABLE/doc"
if [ "${1-}" = --write ]; then
  cp "$MAYFLY_LOG_TABLE/doc" "$doc"
elif ! diff "$doc" "$MAYFLY_LOG_TABLE/doc"; then
  echo "$doc says otherwise: mend it with internal/tools/conformance/logs.sh --write" >&2
  exit 1
fi
sed -n '/^| /p' "$doc"
