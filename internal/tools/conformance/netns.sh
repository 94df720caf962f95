#!/usr/bin/env bash
# Makes two network namespaces, one for the CA and one for its KMS, and runs in
# the CA's the tests of a key that no packet reaches: MAYFLY_BIN as it is, with
# a resolver and addresses that never answer. It needs root and iproute2.
set -euo pipefail
cd "$(dirname "$0")/../../.."
: "${MAYFLY_BIN:?names the mayfly to test}"

ca=mayfly-ca-$$
kms=mayfly-kms-$$
tests=$(mktemp -d)
cleanup() {
  ip netns del "$ca" 2>/dev/null || true
  ip netns del "$kms" 2>/dev/null || true
  rm -rf "/etc/netns/$ca" "$tests"
}
trap cleanup EXIT

go test -c -tags conformance -o "$tests/mayfly.test" ./cmd/mayfly

ip netns add "$ca"
ip netns add "$kms"
ip -n "$ca" link set lo up
ip -n "$kms" link set lo up
ip -n "$ca" link add ca0 type veth peer name kms0 netns "$kms"
ip -n "$kms" link set kms0 address 02:00:00:00:00:02
ip -n "$ca" addr add 10.83.0.1/24 dev ca0
ip -n "$kms" addr add 10.83.0.2/24 dev kms0
ip -n "$ca" link set ca0 up
ip -n "$kms" link set kms0 up
# Black holes: frames to a station that isn't there. 53 is the resolver, 66 what
# the names below stand for.
ip -n "$ca" neigh add 10.83.0.53 lladdr 02:00:00:00:00:66 nud permanent dev ca0
ip -n "$ca" neigh add 10.83.0.66 lladdr 02:00:00:00:00:66 nud permanent dev ca0

mkdir -p "/etc/netns/$ca"
echo "nameserver 10.83.0.53" >"/etc/netns/$ca/resolv.conf"
cat >"/etc/netns/$ca/hosts" <<HOSTS
127.0.0.1 localhost
10.83.0.2 kms.test
10.83.0.66 kms.eu-central-1.amazonaws.com sts.eu-central-1.amazonaws.com
10.83.0.66 login.microsoftonline.com demo.vault.azure.net
10.83.0.66 cloudkms.googleapis.com
10.83.0.66 vault.hole.test
HOSTS

cd cmd/mayfly
MAYFLY_NAMESPACE=$kms ip netns exec "$ca" "$tests/mayfly.test" -test.run "${1:-^TestNamespace}" -test.v -test.timeout 5m
