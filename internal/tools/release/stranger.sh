#!/usr/bin/env bash
# What somebody meets who has nothing but the deb, on a fresh Debian in a folder: installs it,
# makes a CA, serves as the unit's user, gets a certificate, removes the package and keeps the CA.
# There is no systemd in a chroot: the unit is verified, and its user and folders are
# made by hand; that its directives hold is deploy/'s tests.
#
#   stranger.sh DEB MAYFLY     MAYFLY, the same binary, is the issuer of tokens outside
set -euo pipefail
deb=${1:?} mayfly=${2:?}
root=$(mktemp -d)
chmod 0755 "$root" # the user of the service goes through
running=()
finish() {
  local status=$?
  for process in "${running[@]}"; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  umount "$root/proc" 2>/dev/null || true
  rm -rf "$root" "$root.dev"
  exit $status
}
trap finish EXIT
debootstrap --variant=minbase --include=ca-certificates,procps,systemd stable "$root" >"$root.log" 2>&1 || { tail -n 20 "$root.log"; exit 1; }
rm -f "$root.log"
mount -t proc proc "$root/proc"
inside() { chroot "$root" "$@"; }

cp "$deb" "$root/tmp/mayfly.deb"
inside dpkg --install /tmp/mayfly.deb
inside getent passwd mayfly >/dev/null
[ "$(inside stat -c '%U:%G %a' /etc/mayfly)" = "root:mayfly 750" ]
inside mayfly version | head -n 1
inside mayfly verify --version
inside systemd-analyze verify --man=no mayfly.service mayfly-backup.timer
for page in "$root"/usr/share/man/man1/mayfly*.1; do
  mandoc -T lint -W error "$page"
done
inside bash -c '. /usr/share/bash-completion/completions/mayfly && complete -p mayfly' >/dev/null

"$mayfly" dev --dir "$root.dev" --http-address 127.0.0.1:0 --grpc-address 127.0.0.1:0 --metrics-address 127.0.0.1:0 --issuer-address 127.0.0.1:0 >/dev/null 2>&1 &
running+=($!)
until [ -e "$root.dev/endpoints.json" ]; do sleep 0.1; done
issuer=$(sed -n 's/.*"issuer": *"\([^"]*\)".*/\1/p' "$root.dev/endpoints.json")
inside install -d -m 0700 -o mayfly -g mayfly /var/lib/mayfly
as_service() { inside setpriv --reuid=mayfly --regid=mayfly --clear-groups "$@"; }
as_service mayfly init --dir /var/lib/mayfly/ca --url http://127.0.0.1:15555
config=$root/var/lib/mayfly/ca/mayfly.yaml
sed -i 's/^server:/&\n  http_address: 127.0.0.1:15555\n  grpc_address: 127.0.0.1:15554\n  metrics_address: 127.0.0.1:12112/' "$config"
cat >>"$config" <<YAML
issuers:
  - {url: "$issuer", audiences: [sigstore], type: email, allow: "true", allow_insecure_loopback: true}
YAML
serve() {
  chroot "$root" setpriv --reuid=mayfly --regid=mayfly --clear-groups mayfly serve --config /var/lib/mayfly/ca/mayfly.yaml >"$root.dev/log" 2>&1 &
  running+=($!)
  service=$!
  until curl -fs http://127.0.0.1:15555/readyz >/dev/null; do
    kill -0 $service 2>/dev/null || { cat "$root.dev/log"; exit 1; }
    sleep 0.1
  done
}
issue() {
  curl -fsS "$issuer/dev/token?email=alice@example.com" |
    inside mayfly request --ca http://127.0.0.1:15555 --token-stdin --force --output-key /tmp/key --output-certificate /tmp/crt
  inside mayfly cert show /tmp/crt | grep -F alice@example.com
}
serve
issue
kill $service
wait $service
inside dpkg --remove mayfly
[ ! -e "$root/usr/bin/mayfly" ] && [ -e "$root/var/lib/mayfly/ca/mayfly.yaml" ]
inside dpkg --install /tmp/mayfly.deb
serve
issue
echo "a stranger with the deb alone: installed, served, issued, removed, installed and issued again"
