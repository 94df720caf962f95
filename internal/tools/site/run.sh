#!/usr/bin/env bash
# make site: docs/ as pages with a search, into a folder. A link that leads nowhere fails it
# (by --strict, which --quiet would make deaf).
#
#   run.sh FOLDER
set -euo pipefail
site=$(realpath -m "${1:?usage: run.sh FOLDER}")
cd "$(dirname "$0")"
../packages.sh python3-venv
venv=$(../conformance/venv.sh "site-$(cksum <requirements.txt | tr ' ' -)" -r requirements.txt)
"$venv/bin/mkdocs" build --strict --site-dir "$site"
echo "$(find "$site" -name '*.html' | wc -l) pages: $site/index.html (python3 -m http.server -d $site, for the search)"
