#!/bin/sh
# The user, and a folder for configuration and keys. Nothing is started: there is no CA yet.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
  systemd-sysusers mayfly.conf
elif ! getent passwd mayfly >/dev/null; then
  useradd --system --home-dir /var/lib/mayfly --no-create-home --shell /usr/sbin/nologin mayfly
fi
if [ ! -d /etc/mayfly ]; then
  install -d -m 0750 -o root -g mayfly /etc/mayfly
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  if systemctl is-active --quiet mayfly; then
    systemctl restart mayfly
  fi
fi
