#!/usr/bin/env bash
# Starts one log of certificate-transparency-go (CTFE) on the Trillian of
# trillian.sh, with a tree and a key of its own, and becomes it:
#
#   ctfe.sh FOLDER ROOTS.pem ADDRESS
#
# The log is at http://ADDRESS/log. It writes its key to FOLDER/log.pub.pem.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CONFORMANCE_BIN:?run this with make conformance}
# shellcheck source=internal/tools/conformance/versions.sh
. "$here/versions.sh"
folder=$1 roots=$2 address=$3

tree=$("$bin/createtree-$TRILLIAN" --admin_server="$TRILLIAN_RPC" 2>"$folder/createtree.log") ||
  { cat "$folder/createtree.log" >&2; exit 1; }
# CTFE reads a key file only when it has a password, in PEM's own encryption.
password=conformance
openssl ecparam -name prime256v1 -genkey -noout |
  openssl ec -aes256 -passout "pass:$password" -out "$folder/log.key.pem" 2>"$folder/openssl.log" ||
  { cat "$folder/openssl.log" >&2; exit 1; }
openssl pkey -in "$folder/log.key.pem" -passin "pass:$password" -pubout -out "$folder/log.pub.pem"
cat >"$folder/ctfe.cfg" <<CONFIG
config {
  log_id: $tree
  prefix: "log"
  roots_pem_file: "$roots"
  private_key: {
    [type.googleapis.com/keyspb.PEMKeyFile] {
      path: "$folder/log.key.pem"
      password: "$password"
    }
  }
  ext_key_usages: "CodeSigning"
  max_merge_delay_sec: 86400
  expected_merge_delay_sec: 1
}
CONFIG
exec "$bin/ct_server-$CT_GO" --log_config="$folder/ctfe.cfg" --log_rpc_server="$TRILLIAN_RPC" \
  --http_endpoint="$address" --metrics_endpoint= --mask_internal_errors --logtostderr
