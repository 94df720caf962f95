#!/usr/bin/env bash
# make check: everything that must hold before a change is taken in, short of
# the foreign clients (make conformance). Every step runs even if one before it
# failed; the summary at the end says what ran, failed and did not run.
#
#   check.sh [STEP…]     e.g. check.sh lint vulnerabilities; all of them by default
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. internal/tools/steps.sh

fuzztime=${FUZZTIME:-5s}

tool() { go tool -modfile=internal/tools/pins/go.mod "$@"; }
buf() { go tool -modfile=internal/tools/buf/go.mod buf "$@"; }

# The files of this tree that are, or would be, committed and are there.
tree() {
  git ls-files -z --cached --others --exclude-standard "$@" |
    while IFS= read -r -d '' file; do
      [ -e "$file" ] && printf '%s\0' "$file"
    done
}

packages() {
  internal/tools/packages.sh ca-certificates curl gcc openssl postgresql redis-server rsyslog shellcheck systemd
}

format() {
  local unformatted
  unformatted=$(tree '*.go' | xargs -0 gofmt -l) || return 1
  [ -z "$unformatted" ] && return 0
  echo "gofmt would change (mend with gofmt -w):"
  echo "$unformatted"
  return 1
}

# go.mod and go.sum say exactly what is used, and what is used is what the
# checksums say. Not for those of internal/tools/conformance: they say with which modules
# foreign programs are built; their dependencies are hundreds, and only the scripts that
# build them download them.
modules_tidy() {
  local module status=0
  while IFS= read -r -d '' module; do
    module=$(dirname "$module")
    (cd "$module" && go mod tidy -diff && go mod verify) || {
      echo "$module: mend with (cd $module && go mod tidy)"
      status=1
    }
  done < <(tree go.mod '*/go.mod' ':!internal/tools/conformance/*')
  return $status
}

# Generated code is what the generators write today. They run on a copy, so
# that changes that aren't committed yet neither hide nor count.
generated() {
  local copy status=0
  copy=$(mktemp -d) || return 1
  tree | tar --create --null --files-from=- | tar --extract --directory "$copy"
  make -s -C "$copy" generate || status=1
  if [ $status -eq 0 ]; then
    tree | while IFS= read -r -d '' file; do
      cmp -s "$file" "$copy/$file" || echo "$file"
    done | tee "$copy.changed"
    [ -s "$copy.changed" ] && {
      echo "make generate changes the files above: run it and commit them"
      status=1
    }
    rm -f "$copy.changed"
  fi
  rm -rf "$copy"
  return $status
}

api() {
  buf lint && buf format --diff --exit-code &&
    buf breaking --against proto/baseline.binpb
}

vet() {
  go vet ./... && windows && go vet -tags pkcs11 ./ca/kms/... ./cmd/mayfly && go vet -tags conformance ./... &&
    (cd internal/tools && go vet ./...)
}

# For Windows nothing may take Unix's own calls. Only a release builds for Windows, which from an
# empty cache is five minutes of a processor's work; `GOOS=windows go vet ./cmd/...` sees the rest.
windows() {
  local unix
  # shellcheck disable=SC2016 # go list's own variables
  unix=$(GOOS=windows go list -deps -f '{{$p := .ImportPath}}{{range .Imports}}{{if eq . "golang.org/x/sys/unix"}}{{$p}}{{end}}{{end}}' ./cmd/...) || return 1
  [ -z "$unix" ] || { echo "for Windows these import golang.org/x/sys/unix: move that to a file _unix.go: $unix"; return 1; }
}

lint() {
  tool golangci-lint run ./... || return 1
  (cd internal/tools && go tool -modfile=pins/go.mod golangci-lint run --config ../../.golangci.yaml ./...)
}

policies() {
  local opa="go tool -modfile=internal/tools/opa/go.mod opa"
  $opa check --strict deploy/policies && $opa test deploy/policies
}

shell() {
  tree '*.sh' .ci/run | xargs -0 shellcheck --external-sources && plain
}

# No script but the demo steers a terminal, and that only where one reads it that hasn't
# NO_COLOR; script plays the terminal. With `false` for mayfly the demo ends at its first title.
plain() {
  local escape=$'\033' title='internal/tools/demo/run.sh --exit false'
  if tree '*.sh' .ci/run ':!internal/tools/demo/run.sh' | xargs -0 grep -nE '\\(033|e|x1b)\[|\btput\b'; then
    echo "the lines above write escape codes to whatever reads them"
    return 1
  fi
  NO_COLOR='' script -qc "$title" /dev/null | grep "$escape" >/dev/null || { echo "no bold titles in a terminal"; return 1; }
  if { $title; NO_COLOR=1 script -qc "$title" /dev/null; } | grep "$escape"; then
    echo "the demo writes escape codes into a pipe, or despite NO_COLOR"
    return 1
  fi
}

# A database of vulnerabilities that can't be reached is said in the summary; a
# vulnerability that is found fails.
vulnerabilities() {
  local log status
  log=$(mktemp)
  tool govulncheck ./... >"$log" 2>&1
  status=$?
  cat "$log"
  if [ $status -ne 0 ] && grep -q '^govulncheck: fetching vulnerabilities:' "$log"; then
    rm -f "$log"
    absent vulnerabilities "govulncheck (its database can't be reached)"
    return
  fi
  rm -f "$log"
  step vulnerabilities test $status -eq 0
}

# Tests that need a disk of their own skip where none can be mounted, and go test
# doesn't tell of a package that passes: so it is told here.
disks() {
  local dir status=0
  dir=$(mktemp -d) || return 1
  truncate --size=8M "$dir/image" && mkfs.ext4 -q -F "$dir/image" && mkdir "$dir/at" &&
    mount -o loop "$dir/image" "$dir/at" && umount "$dir/at" || status=1
  rm -rf "$dir"
  return $status
}

run_step() {
  case $1 in
    packages) step "packages" packages ;;
    format) step "format" format ;;
    modules) step "modules" modules_tidy ;;
    generated) step "generated" generated ;;
    api) step "api" api ;;
    vet) step "vet" vet ;;
    lint) step "lint" lint ;;
    shell) step "shell" shell ;;
    policies) step "policies" policies ;;
    vulnerabilities) vulnerabilities ;;
    fuzz) step "fuzz" internal/tools/fuzz.sh "$fuzztime" ;;
    test)
      step "test" make -s test
      disks 2>/dev/null || absent "  power loss and full disks" "only root mounts a disk on a loop device"
      ;;
    demo) step "demo" make -s demo ;;
    *)
      echo "no step is called $1"
      step "$1" false
      ;;
  esac
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] ||
  steps=(packages format modules generated api vet lint shell policies vulnerabilities fuzz demo test)
for name in "${steps[@]}"; do
  run_step "$name"
done
summary
