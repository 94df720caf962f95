// HashiCorp Vault, built as a peer for tests only: Mayfly links nothing of it.
module github.com/mayfly-ca/mayfly/internal/tools/conformance/vault

go 1.26.8

require github.com/hashicorp/vault v1.21.1

require github.com/hashicorp/vault/sdk v0.20.0 // indirect

replace (
	github.com/99designs/keyring => github.com/Jeffail/keyring v1.2.3
	github.com/ma314smith/signedxml => github.com/moov-io/signedxml v1.1.1
)
