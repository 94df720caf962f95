#!/bin/sh
# Makes sure that the commands that tests and checks call are there. Names are
# those of Debian's packages; what is missing is installed where that is
# possible, and named where it isn't.
#
#   packages.sh PACKAGE…
set -eu

# provided PACKAGE: is what the package is wanted for there?
provided() {
  case $1 in
    ca-certificates) [ -d /etc/ssl/certs ] ;;
    gcc) printf '#include <stdlib.h>\n' | cc -E - >/dev/null 2>&1 ;; # with the C library's headers: go test -race links them
    curl) command -v curl || command -v wget ;;
    default-jdk-headless) command -v javac && command -v keytool ;;
    maven) command -v mvn ;;
    mariadb-server) command -v mariadbd && command -v mariadb-install-db ;;
    libnss3-tools) command -v certutil ;;
    python3-venv) python3 -c 'import ensurepip, venv' ;;
    opensc) command -v pkcs11-tool ;;
    rsyslog) command -v rsyslogd ;;
    softhsm2) command -v softhsm2-util ;;
    systemd) command -v systemd-analyze ;;
    wine64) [ -x /usr/lib/wine/wine64 ] ;;
    gcc-mingw-w64-x86-64) command -v x86_64-w64-mingw32-gcc ;;
    postgresql) ls /usr/lib/postgresql/*/bin/initdb ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

missing=
for package in "$@"; do
  provided "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

case " $missing " in
  *" gcc "*) missing="$missing libc6-dev" ;;
esac
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" -ne 0 ]; then
  echo "missing:$missing" >&2
  echo "install them first (on Debian, as root: apt-get install$missing)" >&2
  exit 1
fi
echo "installing$missing"
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
