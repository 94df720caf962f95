#!/bin/sh
# When it goes for good, and not for the next version (deb: "upgrade", rpm: 1).
# Configuration, keys, log and audit trail stay where they are.
set -e
if [ -d /run/systemd/system ]; then
  case ${1-} in
    upgrade | 1) ;;
    *) systemctl disable --now mayfly mayfly-backup.timer || true ;;
  esac
fi
