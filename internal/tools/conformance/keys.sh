#!/usr/bin/env bash
# make conformance-keys: holds every key backend to what there is of it here,
# foreign servers first, and says which ran:
#
#   keys.sh            compares the table with docs/keys.md
#   keys.sh --write    writes it there
#
# It needs MAYFLY_BIN, SoftHSM and NSS, and for the namespaces root and iproute2.
# The first run builds Vault, in 11 minutes of CPU.
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit 1
. internal/tools/steps.sh
. internal/tools/conformance/versions.sh
doc=docs/keys.md
table=$(mktemp)
trap 'rm -f "$table" "$table.doc"' EXIT
echo '| Backend | Held against | Which is | What ran | Outcome |' >"$table"
echo '|---|---|---|---|---|' >>"$table"

# row BACKEND PEER WHAT HOW OUTCOME
row() { printf '| %s | %s | %s | %s | %s |\n' "$@" >>"$table"; }

# held BACKEND PEER WHAT HOW COMMAND…
held() {
  local backend=$1 peer=$2 what=$3 how=$4
  shift 4
  step "  $peer ($backend)" "$@"
  row "$backend" "$peer" "$what" "$how" "$(tail -1 "$STEPS_LOG" | sed 's/ .*//')"
}

# missing BACKEND PEER WHAT HOW REASON
missing() {
  absent "  $2 ($1)" "$5"
  row "$1" "$2" "$3" "$4" "did not run: $5"
}

# version_of SCRIPT is the line version=… in it.
version_of() { sed -n 's/^version=\([0-9.]*\).*/\1/p' "internal/tools/conformance/$1"; }
debian() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null | sed 's/^[0-9]*://; s/-.*//'; }
kms() { go test -count=1 -timeout=10m "${@:2}" "./ca/kms$1"; } # FOLDER FLAG...

suite='the suite, each kind of key and scheme'
own='our stand-in, real keys'
faults='the suite; every fault of a signature or a start'

held 'a file' 'files, plain and encrypted' 'this machine' "$suite; OpenSSL reads the keys" kms /... -run '^(TestFile|TestEncryptedFile|TestOpenSSLAgrees|TestGenerateFile)'

held 'AWS KMS' "moto $MOTO" 'a foreign server' "$suite; a key made; a whole issuance" internal/tools/conformance/kms.sh
held 'Vault transit' "HashiCorp Vault $(version_of vault.sh)" 'the server itself' "$suite; its refusals; rotation, sealing; a whole issuance" internal/tools/conformance/vault.sh

# Microsoft's recordings of its own tests, in old modules of its SDK.
azkeys=github.com/Azure/azure-sdk-for-go/sdk/keyvault/azkeys
recordings() {
  local folders='' line version sum
  for line in 'v0.9.0 h1:TOFrNxfjslms5nLLIMjW7N0+zSALX4KiGsptmpb16AA=' 'v0.5.1 h1:AXFNQ6kLaPODEpGSMWjmbkt6iP7fa1DIEzjx6JRFC9U='; do
    read -r version sum <<<"$line"
    line=$(cd "$(mktemp -d)" && go mod download -json "$azkeys@$version") || { echo "$line"; return 1; }
    grep -qF "\"Sum\": \"$sum\"" <<<"$line" || { echo "$azkeys@$version isn't what it was: $line"; return 1; }
    folders+=:$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$line")
  done
  MAYFLY_AZKEYS=${folders#:} kms '' -tags conformance -run '^TestRecorded' -v
}
held 'Azure Key Vault' 'azkeys v0.9.0 and v0.5.1' "Microsoft's recordings of vaults and managed HSMs" \
  'each recorded key read, the recorded RS256 signature verified, each refusal classified' recordings
missing 'Azure Key Vault' 'lowkey-vault' 'a foreign server' "$suite" \
  "Maven Central answers that it has no artifact com.github.nagyesta.lowkey-vault:lowkey-vault-app (2.5.0 and 1.20.10 were asked for)"

pkcs11() { kms /... -tags pkcs11 -run "$1"; }
if [ -e /usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so ] || command -v softhsm2-util >/dev/null; then
  held 'PKCS #11' "SoftHSM $(debian softhsm2), NSS softokn $(debian libnss3)" 'two foreign libraries' "$suite; keys of other tools; a library that hangs" pkcs11 PKCS11
else
  missing 'PKCS #11' 'SoftHSM, NSS softokn' 'two foreign libraries' "$suite" 'softhsm2 is not installed'
fi

stand_ins() { kms '' -run '^(TestRemoteConformance|TestSignature|TestServiceDown|TestForgotten|TestSlow|TestOneInTen|TestOpenNames|TestHealth|TestKeyReplaced|TestUnversionedIsPinned|TestCredential)'; }
stand_ins_of=("AWS KMS|$own" "Azure Key Vault|$own" "Google Cloud KMS|Google's own types (kmspb), real keys, checksums" "Vault transit|$own")
step "  stand-ins of every vendor" stand_ins
outcome=$(tail -1 "$STEPS_LOG" | sed 's/ .*//')
for one in "${stand_ins_of[@]}"; do
  row "${one%%|*}" 'kmstest' "${one#*|}" "$faults" "$outcome"
done

service() { go test -count=1 -timeout=10m -run '^TestKMS' ./cmd/mayfly/internal/service; }
held 'all of the network' 'the whole service' 'stand-ins behind it' 'every fault of a key in use and at the start: 503 in time, /readyz, recovery' service
if [ "$(id -u)" = 0 ] && ip netns add "mayfly-probe-$$" 2>/dev/null; then
  ip netns del "mayfly-probe-$$"
  held 'all of the network' 'a network namespace' 'black holes and a dead resolver' 'the binary: mayfly kms check, and the running service' internal/tools/conformance/netns.sh
else
  missing 'all of the network' 'a network namespace' 'black holes and a dead resolver' 'the binary: mayfly kms check, and the running service' 'it needs root and iproute2'
fi

summary || exit 1
{
  sed -n '1,/^<!-- table -->$/p' "$doc"
  echo
  cat "$table"
  echo
  sed -n '/^<!-- end -->$/,$p' "$doc"
} >"$table.doc"
if [ "${1-}" = --write ]; then
  cat "$table.doc" >"$doc"
elif ! diff "$doc" "$table.doc"; then
  # A machine without one of the peers says so above, and proves nothing.
  grep -q 'did not run: it needs\|not installed' "$table" || {
    echo "$doc says otherwise: mend it with internal/tools/conformance/keys.sh --write" >&2
    exit 1
  }
fi
