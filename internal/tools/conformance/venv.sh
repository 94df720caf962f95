#!/usr/bin/env bash
# Makes a Python environment outside the checkout, unless it is there whole, and
# prints its folder:
#
#   venv.sh NAME PIP-ARGUMENT…
set -euo pipefail
venv=${XDG_CACHE_HOME:-$HOME/.cache}/mayfly-conformance/$1
shift
if [ ! -e "$venv/.complete" ]; then
  echo "installing ${venv##*/}" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
  touch "$venv/.complete"
fi
echo "$venv"
