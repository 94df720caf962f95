//go:build conformance

package kms_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// sealedKeys holds a sealed key by one KMS to the suite of signers, and what
// another sealed to a refusal.
func sealedKeys(t *testing.T, ref, other string, o kms.Options) {
	t.Helper()
	t.Run("sealed keys", func(t *testing.T) { sealedKeysSign(t, ref, other, o) }) // its parallel parts end with it
}

func sealedKeysSign(t *testing.T, ref, other string, o kms.Options) {
	runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
		o := o
		o.SealedKey = setting.Path(filepath.Join(t.TempDir(), "issuing.json"))
		if _, err := keystore.Generate(t.Context(), ref, a, o); err != nil {
			t.Fatal(err)
		}
		if _, err := keystore.Open(t.Context(), other, o); err == nil || !strings.Contains(err.Error(), "was sealed by the key") {
			t.Errorf("another key: %v", err)
		}
		return opened(t, ref, o)
	}, kms.ECDSAP256, kms.RSA2048)
}

// TestMotoSealing runs the suite of sealers against moto.
func TestMotoSealing(t *testing.T) {
	endpoint := os.Getenv("MAYFLY_MOTO")
	if endpoint == "" {
		t.Fatal("MAYFLY_MOTO is not set: run internal/tools/conformance/kms.sh")
	}
	api := awskms.New(awskms.Options{
		Region: "eu-central-1", BaseEndpoint: &endpoint,
		Credentials: awscredentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "secret", ""),
	})
	var refs [3]string
	symmetric := awskms.CreateKeyInput{KeySpec: types.KeySpecSymmetricDefault, KeyUsage: types.KeyUsageTypeEncryptDecrypt} // AWS's defaults, which moto wants to be told
	for i, in := range []awskms.CreateKeyInput{symmetric, symmetric, {KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify}} {
		made, err := api.CreateKey(t.Context(), &in)
		if err != nil {
			t.Fatal(err)
		}
		refs[i] = aws.ToString(made.KeyMetadata.Arn)
	}
	o := kms.Options{
		Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: endpoint, IdentityEndpoint: endpoint},
		Getenv: kmstest.Environment("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", "secret"),
	}
	// Of what another key encrypted, moto says AccessDeniedException, and AWS's API
	// reference IncorrectKeyException: that one is the stand-in's alone.
	runSealer(t, openedSealer(t, refs[0], o), nil, true)
	sealedKeys(t, refs[0], refs[1], o)
	_, err := keystore.OpenSealer(t.Context(), refs[2], o)
	wantError(t, err, "its usage is SIGN_VERIFY: make one of the usage ENCRYPT_DECRYPT")
}

// TestRealVaultSealing runs the suite of sealers against HashiCorp Vault itself,
// with the policy that the documentation names.
func TestRealVaultSealing(t *testing.T) {
	v := startVault(t)
	for name, kind := range map[string]string{"sealing": "aes256-gcm96", "chacha": "chacha20-poly1305", "other": "aes256-gcm96", "signing": "ecdsa-p256"} {
		v.post(t, "transit/keys/"+name, map[string]any{"type": kind}, nil)
	}
	v.post(t, "sys/policies/acl/maker", map[string]string{"policy": `
path "transit/keys/sealing" { capabilities = ["read"] }
path "transit/encrypt/sealing" { capabilities = ["update"] }
path "transit/decrypt/sealing" { capabilities = ["update"] }`}, nil)
	v.post(t, "sys/policies/acl/service", map[string]string{"policy": `
path "transit/keys/sealing" { capabilities = ["read"] }
path "transit/decrypt/sealing" { capabilities = ["update"] }`}, nil)
	token := func(policy string) string {
		var made struct {
			Auth struct {
				ClientToken string `json:"client_token"`
			}
		}
		v.post(t, "auth/token/create", map[string]any{"policies": []string{policy}, "no_parent": true}, &made)
		return made.Auth.ClientToken
	}
	maker, service := v.options(token("maker")), v.options(token("service"))
	const ref, other = "hashivault://transit/keys/sealing", "hashivault://transit/keys/other"
	for _, seals := range []string{ref, "hashivault://transit/keys/chacha"} {
		runSealer(t, openedSealer(t, seals, v.options(v.Token)), openedSealer(t, other, v.options(v.Token)), true)
	}
	sealedKeys(t, ref, other, maker)

	maker.SealedKey = setting.Path(filepath.Join(t.TempDir(), "issuing.json"))
	service.SealedKey = maker.SealedKey
	pinned, err := keystore.Generate(t.Context(), ref, kms.ECDSAP256, maker)
	if err != nil || pinned != ref+"?version=1" {
		t.Fatalf("%s, %v", pinned, err)
	}
	signer := opened(t, ref, service) // what a service may is enough
	service.SealedKey += "2"
	if _, err := keystore.Generate(t.Context(), ref, kms.ECDSAP256, service); err == nil || !strings.Contains(err.Error(), "`update` on transit/decrypt/sealing, and on transit/encrypt/sealing to make a sealed key") {
		t.Errorf("a service makes a key: %v", err)
	}
	service.SealedKey = maker.SealedKey
	v.post(t, "transit/keys/sealing/rotate", nil, nil)
	opened(t, ref, service) // Vault knows the version that sealed
	v.post(t, "transit/keys/sealing/config", map[string]any{"min_decryption_version": 2}, nil)
	if _, err := keystore.Open(t.Context(), ref, service); !errors.Is(err, kms.ErrSealed) {
		t.Errorf("a version that may no longer decrypt: %v", err)
	}
	if _, err := keystore.OpenSealer(t.Context(), "hashivault://transit/keys/signing", v.options(v.Token)); err == nil || !strings.Contains(err.Error(), `a key of type "ecdsa-p256" doesn't seal: make one of type aes256-gcm96`) {
		t.Errorf("a signing key: %v", err)
	}
	v.post(t, "sys/seal", nil, nil)
	if err := kms.Try(t.Context(), signer); err != nil {
		t.Errorf("a sealed key needs Vault while it runs: %v", err)
	}
	if _, err := keystore.Open(t.Context(), ref, service); err == nil || !strings.Contains(err.Error(), "Vault is sealed: unseal it") {
		t.Errorf("a start with Vault sealed: %v", err)
	}
}
