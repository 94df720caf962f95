#!/usr/bin/env bash
# Runs a command beside a Trillian on a MariaDB of its own, and ends both with it:
#
#   trillian.sh COMMAND…
#
# The command gets CTFE, which starts a log of certificate-transparency-go on this
# Trillian: `$CTFE FOLDER ROOTS.pem ADDRESS` (see ctfe.sh). The programs are those
# that tools.sh built into CONFORMANCE_BIN.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CONFORMANCE_BIN:?run this with make conformance}
# shellcheck source=internal/tools/conformance/versions.sh
. "$here/versions.sh"

dir=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done # nothing of it is kept
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT

# until_ready WHAT PID COMMAND…: waits for the command to succeed while PID lives.
until_ready() {
  local what=$1 pid=$2
  shift 2
  for _ in $(seq 600); do
    "$@" >/dev/null 2>&1 && return 0
    kill -0 "$pid" 2>/dev/null || break
    read -rt 0.1 <> <(:) || true
  done
  echo "$what did not start:" >&2
  cat "$dir"/*.log >&2
  return 1
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }

# serve COMMAND…: runs it at a port of 127.0.0.1. Another program may have that, as the
# near end of a connection too, which doesn't answer: then it runs at the next.
serve() {
  local name pid
  name=$(basename "$1")
  for _ in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 12000)) # below those that connections get
    ! answers "$port" 2>/dev/null || continue
    "$@" --rpc_endpoint="127.0.0.1:$port" >"$dir/$name.log" 2>&1 &
    pid=$!
    pids+=("$pid")
    until_ready "$name" "$pid" answers "$port" && return 0
  done
  return 1
}

# The database, reached through a socket alone. mariadbd runs as root only when told to.
as=()
[ "$(id -u)" -ne 0 ] || as=(--user=root)
mkdir "$dir/data"
socket=$dir/data/mysql.sock
mariadb-install-db --no-defaults "${as[@]}" --datadir="$dir/data" \
  --auth-root-authentication-method=normal --skip-test-db >"$dir/install.log" 2>&1 ||
  { cat "$dir/install.log" >&2; exit 1; }
mariadbd --no-defaults "${as[@]}" --datadir="$dir/data" --socket="$socket" --skip-networking \
  --pid-file="$dir/data/pid" >"$dir/mariadb.log" 2>&1 &
pids+=($!)
sql() { mariadb --no-defaults --user=root --socket="$socket" "$@"; }
until_ready mariadbd $! sql -e 'SELECT 1'
sql -e 'CREATE DATABASE trillian'
# The schema is a file of Trillian's own module.
sql trillian <"$(cd "$here" && GOFLAGS=-mod=mod go mod download -json "github.com/google/trillian@$TRILLIAN" |
  sed -n 's/^.*"Dir": "\(.*\)",$/\1/p')/storage/mysql/schema/storage.sql"

storage=(--mysql_uri="root@unix($socket)/trillian" --quota_system=noop --http_endpoint= --logtostderr)
serve "$bin/trillian_log_server-$TRILLIAN" "${storage[@]}"
export TRILLIAN_RPC=127.0.0.1:$port
serve "$bin/trillian_log_signer-$TRILLIAN" "${storage[@]}" --force_master --sequencer_interval=100ms --num_sequencers=2

database=$(mariadbd --version | sed -n 's/^.* Ver \([0-9]*\.[0-9]*\)[^ ]*-MariaDB.*$/MariaDB \1/p')
export CTFE=$here/ctfe.sh
export CTFE_KIND="CTFE (certificate-transparency-go $CT_GO on Trillian $TRILLIAN, ${database:-MariaDB})"
"$@" || {
  failed=$?
  tail -n 30 "$dir"/*.log >&2
  exit "$failed"
}
