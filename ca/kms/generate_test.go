package kms_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// newNames are references of keys that aren't there yet, by vendor.
var newNames = map[string]string{
	"aws": "alias/root", "azure": "https://demo.vault.azure.net/keys/root",
	"gcp": kmstest.GCPRing + "/cryptoKeys/root", "vault": "hashivault://transit/keys/root",
}

// TestGenerate makes a key of each kind, which opens by the reference that comes
// back and by its name, and is never made again.
func TestGenerate(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		if vendor == "aws" {
			s.Options.Access.Region = "eu-central-1"
		}
		teach(t, vendor, s, nil)
		for _, a := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.ECDSAP521, kms.RSA2048, kms.RSA3072} {
			name := newNames[vendor] + strings.ToLower(string(a))
			ref, err := keystore.Generate(t.Context(), name, a, s.Options)
			if vendor == "gcp" && a == kms.ECDSAP521 {
				wantError(t, err, "Google Cloud KMS has no keys of ECDSA-P521")
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", a, err)
				continue
			}
			for _, by := range []string{ref, name} {
				if got, err := kms.AlgorithmOf(opened(t, by, s.Options).Public()); err != nil || got != a {
					t.Errorf("%s: %s, %v; want %s", by, got, err, a)
				}
			}
			if _, err := keystore.Generate(t.Context(), name, a, s.Options); !errors.Is(err, kms.ErrKeyExists) {
				t.Errorf("%s: made again: %v; want ErrKeyExists", a, err)
			}
		}
	})
}

// TestGenerateOnce: a key that may have been made isn't made again, and what is
// in the way is said.
func TestGenerateOnce(t *testing.T) {
	t.Parallel()
	making := map[string]string{"aws": "CreateKey", "azure": "create", "gcp": "create"} // Vault makes no second key of a name
	eachVendor(t, func(t *testing.T, vendor string) {
		operation, ok := making[vendor]
		if !ok {
			return
		}
		s := standIn(t, vendor, kms.ECDSAP256)
		if vendor == "aws" {
			s.Options.Access.Region = "eu-central-1"
		}
		for name, f := range map[string]kmstest.Fault{"dropped": {Drop: true}, "internal": s.Codes["internal"], "denied": s.Codes["denied"]} {
			s.Always(f, operation)
			before := s.Count(operation)
			_, err := keystore.Generate(t.Context(), newNames[vendor], kms.ECDSAP256, s.Options)
			wantError(t, err, s.Host)
			if n := s.Count(operation) - before; n != 1 {
				t.Errorf("%s: %d requests for a key", name, n)
			}
			if name == "denied" {
				wantError(t, err, map[string]string{
					"aws": "allow it kms:DescribeKey, kms:CreateKey and kms:CreateAlias", "azure": "allow it get and create", "gcp": "permission denied",
				}[vendor])
			}
		}
		teach(t, vendor, s, nil)
		if _, err := keystore.Generate(t.Context(), newNames[vendor], kms.ECDSAP256, s.Options); err != nil {
			t.Error(err)
		}
	})
}

// TestGenerateRefuses what names no new key.
func TestGenerateRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ vendor, ref, want string }{
		{"aws", "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", "AWS chooses a new key's id: name an alias, alias/NAME"},
		{"azure", "https://demo.vault.azure.net/keys/root/" + azureVersion, "a new key has no version yet: leave it out"},
		{"gcp", kmstest.GCPRing + "/cryptoKeys/root/cryptoKeyVersions/1", "a new key has no version yet"},
		{"vault", "hashivault://transit/keys/root?version=1", "a new key has no version yet"},
	} {
		_, err := keystore.Generate(t.Context(), tt.ref, kms.ECDSAP256, standIn(t, tt.vendor, kms.ECDSAP256).Options)
		wantError(t, err, tt.want)
	}
}

// TestGenerateAliasLost: a key that was made and couldn't be named is told by its ARN.
func TestGenerateAliasLost(t *testing.T) {
	t.Parallel()
	s := standIn(t, "aws", kms.ECDSAP256)
	s.Options.Access.Region = "eu-central-1"
	teach(t, "aws", s, map[string]kmstest.Fault{"CreateAlias": s.Codes["denied"]})
	_, err := keystore.Generate(t.Context(), "alias/root", kms.ECDSAP256, s.Options)
	wantError(t, err, "arn:aws:kms:eu-central-1:111122223333:key/", " was made, and has no alias: use it by that name, or schedule its deletion: ")
}
