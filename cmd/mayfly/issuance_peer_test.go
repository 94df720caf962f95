//go:build conformance

package main

import (
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// The servers that others wrote, where they are: VAULT_BIN, MAYFLY_MOTO.
func init() {
	if os.Getenv("VAULT_BIN") != "" {
		backendKeys["real-vault"] = realVaultKey
	}
	if os.Getenv("MAYFLY_MOTO") != "" {
		backendKeys["moto"] = motoKey
	}
}

// realVaultKey is a key to be made in a HashiCorp Vault of its own.
func realVaultKey(t *testing.T, a kms.Algorithm) backendKey {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address, token, program := l.Addr().String(), "root-"+rand.Text(), os.Getenv("VAULT_BIN")
	if err := l.Close(); err != nil { // Vault wants the number of a free port
		t.Fatal(err)
	}
	env := []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "VAULT_ADDR=http://" + address, "VAULT_TOKEN=" + token}
	p, err := launch(t.TempDir(), "vault", env, program, "server", "-dev", "-dev-no-store-token", "-dev-listen-address="+address, "-dev-root-token-id="+token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.until("Vault had a transit engine", func() (bool, error) {
		enable := exec.CommandContext(t.Context(), program, "secrets", "enable", "transit") // #nosec G204 G702 -- a test's own program
		enable.Env = env
		return enable.Run() == nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	return backendKey{
		ref: "hashivault://transit/keys/issuing", algo: a, access: [][2]string{{"credential", "env"}, {"endpoint", "http://" + address}},
		env: []string{"VAULT_TOKEN=" + token}, secrets: []string{token},
	}
}

// motoKey is a key in moto's AWS KMS.
func motoKey(t *testing.T, a kms.Algorithm) backendKey {
	endpoint := os.Getenv("MAYFLY_MOTO")
	api := awskms.New(awskms.Options{
		Region: "eu-central-1", BaseEndpoint: &endpoint,
		Credentials: awscredentials.NewStaticCredentialsProvider("AKIAEXAMPLE", kmstest.Secret, ""),
	})
	spec := map[kms.Algorithm]types.KeySpec{kms.ECDSAP256: types.KeySpecEccNistP256, kms.ECDSAP384: types.KeySpecEccNistP384, kms.RSA3072: types.KeySpecRsa3072}[a]
	made, err := api.CreateKey(t.Context(), &awskms.CreateKeyInput{KeySpec: spec, KeyUsage: types.KeyUsageTypeSignVerify})
	if err != nil {
		t.Fatal(err)
	}
	return backendKey{
		ref: aws.ToString(made.KeyMetadata.Arn), made: true,
		access: [][2]string{{"credential", "env"}, {"endpoint", endpoint}, {"identity-endpoint", endpoint}},
		env:    []string{"AWS_ACCESS_KEY_ID=AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY=" + kmstest.Secret}, secrets: []string{kmstest.Secret},
	}
}
