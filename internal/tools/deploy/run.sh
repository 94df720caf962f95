#!/usr/bin/env bash
# make check-deploy: installs what renders, judges and reads deploy/, and runs the tests of
# it with bin/mayfly, or the binary that MAYFLY_BIN names. Arguments are go test's.
set -euo pipefail
cd "$(dirname "$0")/../../.."
if [ "$(id -u)" -ne 0 ]; then
  echo "make check-deploy has to be root: it starts pods' containers in folders of their own (chroot), as their user" >&2
  exit 1
fi
export MAYFLY_BIN=${MAYFLY_BIN:-$PWD/bin/mayfly}
while IFS= read -r setting; do
  export "${setting?}"
done < <(internal/tools/conformance/tools.sh deploy)
cd internal/tools
go test -count=1 -timeout=10m ./deploy "$@"
