# shellcheck shell=bash
# Sourced by the scripts that check Mayfly: runs named steps, goes on after one
# that failed, and ends with a summary that leaves nothing out.
#
#   step NAME COMMAND…       runs COMMAND; its exit status decides ran or failed
#   absent NAME REASON       says that NAME did not run, and why
#   summary                  prints every line; its status is 1 if a step failed
#
# STEPS_LOG names the file that the lines are kept in: a caller that sets it
# can print the lines of several scripts in one summary.

STEPS_LOG=${STEPS_LOG:-$(mktemp)}
export STEPS_LOG
steps_first=$(($(wc -l <"$STEPS_LOG") + 1))

# record RESULT NAME DETAIL
record() {
  printf '%-12s %-34s %s\n' "$1" "$2" "$3" >>"$STEPS_LOG"
}

step() {
  local name=$1 began=$SECONDS result=ran
  shift
  printf '\n=== %s\n' "$name"
  "$@" </dev/null || result=failed
  record "$result" "$name" "$((SECONDS - began)) s"
  printf '=== %s: %s after %d s\n' "$name" "$result" "$((SECONDS - began))"
}

absent() {
  printf '\n=== %s: did not run: %s\n' "$1" "$2"
  record "did not run" "$1" "$2"
}

# show_steps FIRST prints the lines from number FIRST on; 1 if one failed.
show_steps() {
  printf '\n=== summary\n'
  tail -n "+$1" "$STEPS_LOG"
  ! tail -n "+$1" "$STEPS_LOG" | grep -q '^failed '
}

summary() { show_steps "$steps_first"; }
