package kms

import (
	"strings"
	"testing"
)

// TestVaultAndGCPReferences: what people paste, the canonical form of it, or the
// exact error.
func TestVaultAndGCPReferences(t *testing.T) {
	t.Parallel()
	const name = "projects/my-project/locations/europe-west3/keyRings/ca/cryptoKeys/issuing"
	const vaultMend = ": write hashivault://MOUNT/keys/NAME, with ?version=N for another than the latest"
	const gcpMend = ": write gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K, with /cryptoKeyVersions/N for another than the newest"
	for _, tt := range []struct{ in, want, err string }{
		{in: "hashivault://transit/keys/issuing", want: "hashivault://transit/keys/issuing"},
		{in: "hashivault://transit/keys/issuing?version=3", want: "hashivault://transit/keys/issuing?version=3"},
		{in: "hashivault://issuing", want: "hashivault://transit/keys/issuing"},
		{in: "openbao://transit/keys/issuing", want: "hashivault://transit/keys/issuing"},
		{in: "HASHIVAULT://transit/keys/Issuing.2", want: "hashivault://transit/keys/Issuing.2"},
		{in: "hashivault://teams/ca/transit/keys/issuing", want: "hashivault://teams/ca/transit/keys/issuing"},
		{in: "hashivault://keys/keys/keys", want: "hashivault://keys/keys/keys"},
		{in: "hashivault:transit/keys/x", err: "names no key" + vaultMend},
		{in: "hashivault://", err: "names no key" + vaultMend},
		{in: "hashivault://transit/x", err: "has no /keys/ between mount and name" + vaultMend},
		{in: "hashivault://transit/keys/", err: `"" isn't a key's name: letters, digits, _ . and - between them`},
		{in: "hashivault:///keys/x", err: `"" isn't the path of a mount` + vaultMend},
		{in: "hashivault://a/../b/keys/x", err: `"a/../b" isn't the path of a mount` + vaultMend},
		{in: "hashivault://transit/keys/a%2fb", err: `"a%2fb" isn't a key's name: letters, digits, _ . and - between them`},
		{in: "hashivault://transit/keys/x?version=0", err: `"version=0" isn't version=N, N from 1`},
		{in: "hashivault://transit/keys/x?version=latest", err: `"version=latest" isn't version=N, N from 1`},
		{in: "hashivault://transit/keys/x?version=01", err: `"version=01" isn't version=N, N from 1`},
		{in: "hashivault://transit/keys/x?v=1", err: `"v=1" isn't version=N, N from 1`},
		{in: "hashivault://transit/keys/x?", err: `"" isn't version=N, N from 1`},

		{in: name, want: "gcpkms://" + name},
		{in: "gcpkms://" + name, want: "gcpkms://" + name},
		{in: "gcpkms:" + name, want: "gcpkms://" + name},
		{in: "gcpkms:///" + name, want: "gcpkms://" + name},
		{in: "//cloudkms.googleapis.com/" + name, want: "gcpkms://" + name},
		{in: name + "/cryptoKeyVersions/12", want: "gcpkms://" + name + "/cryptoKeyVersions/12"},
		{in: "gcpkms://" + name + "/versions/12", want: "gcpkms://" + name + "/cryptoKeyVersions/12"},
		{in: strings.Replace(name, "my-project", "example.com:my-project", 1), want: "gcpkms://" + strings.Replace(name, "my-project", "example.com:my-project", 1)},
		{in: strings.Replace(name, "my-project", "123456789012", 1), want: "gcpkms://" + strings.Replace(name, "my-project", "123456789012", 1)},
		{in: "gcpkms://", err: "names no key" + gcpMend},
		{in: "projects/my-project", err: "isn't the resource name of a key" + gcpMend},
		{in: name + "/", err: "isn't the resource name of a key" + gcpMend},
		{in: name + "/cryptoKeyVersions/latest", err: `"latest" isn't a name in cryptoKeyVersions`},
		{in: name + "/cryptoKeyVersions/0", err: `"0" isn't a name in cryptoKeyVersions`},
		{in: strings.Replace(name, "keyRings", "keyrings", 1), err: `has "keyrings" where keyRings is expected` + gcpMend},
		{in: strings.Replace(name, "my-project", "p", 1), err: `"p" isn't a name in projects`},
		{in: strings.Replace(name, "issuing", "is suing", 1), err: `"is suing" isn't a name in cryptoKeys`},
	} {
		got, err := Canonical(tt.in, Access{})
		switch {
		case tt.err != "" && (err == nil || !strings.HasSuffix(err.Error(), ": "+tt.err)):
			t.Errorf("%q: %q, %v; want the error %q", tt.in, got, err, tt.err)
		case tt.err == "" && (err != nil || got != tt.want):
			t.Errorf("%q: %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	if _, err := Canonical("pkcs11:object=a?module-path=/x.so&pin-value=1234", Access{}); err == nil || strings.Contains(err.Error(), "1234") {
		t.Errorf("a PIN in the URI: %v", err)
	}
}

// fuzzReference: a reference is refused, or has a canonical form that is its own.
func fuzzReference(f *testing.F, b *backend, seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := b.parse(s, Access{})
		if err != nil {
			return
		}
		again, err := Canonical(r.String(), Access{})
		if err != nil || again != r.String() {
			t.Fatalf("%q: canonical %q, then %q, %v", s, r, again, err)
		}
	})
}

func FuzzVaultReference(f *testing.F) {
	fuzzReference(f, vaultBackend, "//transit/keys/issuing?version=3", "//issuing", "//a/b/keys/c", "//keys/keys/keys", "//../keys/x")
}

func FuzzGCPReference(f *testing.F) {
	fuzzReference(f, gcpBackend, "//projects/my-project/locations/global/keyRings/r/cryptoKeys/k/versions/1",
		"projects/example.com:my-project/locations/global/keyRings/r/cryptoKeys/k", gcpFullName+"projects/1/locations/l/keyRings/r/cryptoKeys/k")
}

// FuzzVaultAnswer: an answer of any bytes is read or refused.
func FuzzVaultAnswer(f *testing.F) {
	f.Add(200, []byte(`{"data":{"type":"ecdsa-p256","latest_version":1,"keys":{"1":{"public_key":"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"}}}}`))
	f.Add(503, []byte(`{"errors":["Vault is sealed"]}`))
	f.Add(200, []byte(`{"data":{"keys":{"1":0}}}`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		var key vaultKey
		if err := decodeVault(status, answer, &struct{ Data any }{&key}); err != nil {
			return
		}
		if public, _, err := key.public(key.Latest); (public == nil) == (err == nil) {
			t.Errorf("%v with %v", public, err)
		}
	})
}
