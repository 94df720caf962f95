package kms_test

import (
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
)

const azureVersion = "0123456789abcdef0123456789abcdef"

const (
	uuid  = "1234abcd-12ab-34cd-56ef-1234567890ab"
	mrk   = "mrk-1234abcd12ab34cd56ef1234567890ab"
	vault = "https://demo.vault.azure.net/keys/issuing"
)

// TestReferencesAreTakenAsConsolesShowThem: what vendors' consoles show is taken in every form, and what
// isn't is refused with what to write.
func TestReferencesAreTakenAsConsolesShowThem(t *testing.T) {
	t.Parallel()
	arn := "arn:aws:kms:eu-central-1:111122223333:"
	long := strings.Repeat("a", 3900)
	for _, tt := range []struct {
		ref    string
		access kms.Access
		want   string // the canonical form
		err    string
	}{
		// AWS
		{ref: arn + "key/" + uuid, want: arn + "key/" + uuid},
		{ref: arn + "key/" + mrk, want: arn + "key/" + mrk},
		{ref: arn + "alias/issuing", want: arn + "alias/issuing"},
		{ref: "arn:aws-cn:kms:cn-north-1:111122223333:key/" + uuid, want: "arn:aws-cn:kms:cn-north-1:111122223333:key/" + uuid},
		{ref: "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/" + uuid, want: "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/" + uuid},
		{ref: "arn:aws-iso-b:kms:us-isob-east-1:111122223333:key/" + uuid, want: "arn:aws-iso-b:kms:us-isob-east-1:111122223333:key/" + uuid},
		{ref: "arn:aws-eusc:kms:eusc-de-east-1:111122223333:key/" + uuid, want: "arn:aws-eusc:kms:eusc-de-east-1:111122223333:key/" + uuid},
		{ref: "awskms:" + arn + "key/" + uuid, want: arn + "key/" + uuid},
		{ref: "awskms:///" + arn + "key/" + uuid, want: arn + "key/" + uuid},
		{ref: "awskms://" + arn + "alias/a/b_c-D", want: arn + "alias/a/b_c-D"},
		{ref: "alias/issuing", want: "awskms:alias/issuing"},
		{ref: "alias/Issuing", want: "awskms:alias/Issuing"},
		{ref: "awskms:alias/issuing", want: "awskms:alias/issuing"},
		{ref: "awskms://alias/issuing", want: "awskms:alias/issuing"},
		{ref: "awskms:///alias/issuing", want: "awskms:alias/issuing"},
		{ref: uuid, want: "awskms:" + uuid},
		{ref: "awskms:" + uuid, want: "awskms:" + uuid},
		{ref: "awskms://" + uuid, want: "awskms:" + uuid},
		{ref: "awskms:///" + uuid, want: "awskms:" + uuid},
		{ref: "AWSKMS:" + strings.ToUpper(uuid), want: "awskms:" + strings.ToUpper(uuid)},
		{ref: mrk, want: "awskms:" + mrk},
		{ref: "awskms:///" + mrk, want: "awskms:" + mrk},
		{ref: arn + "key/" + uuid, access: kms.Access{Region: "eu-central-1"}, want: arn + "key/" + uuid},
		{ref: arn + "key/" + uuid, access: kms.Access{Region: "us-east-1"}, err: "the ARN is in eu-central-1, but the region is set to us-east-1: remove the region"},
		{ref: uuid, access: kms.Access{Region: "Frankfurt"}, err: `region "Frankfurt" isn't one, such as eu-central-1`},
		{ref: "awskms:", err: "names no key: write a key or alias ARN"},
		{ref: "awskms://localhost:4566/alias/x", err: "names the endpoint localhost:4566: write awskms:alias/x and set the endpoint apart"},
		{ref: "awskms:key-id=" + uuid + ";region=us-east-1", err: "has attributes: write a key or alias ARN"},
		{ref: "awskms:issuing", err: "isn't a key of AWS KMS"},
		{ref: "alias/aws/s3", err: "is a key that AWS manages"},
		{ref: "alias/", err: "has an alias that can't be"},
		{ref: "alias/a b", err: "has an alias that can't be"},
		{ref: "arn:aws:s3:::bucket", err: "is an ARN of s3: one of kms is expected"},
		{ref: "arn:aws:kms:::key/" + uuid, err: `has no region that is one ("")`},
		{ref: "arn:aws:kms:eu-central-1:1:key/" + uuid, err: "has no account of 12 digits"},
		{ref: arn + "key/issuing", err: "names neither key/ID nor alias/NAME"},
		{ref: "arn:aws:kms", err: "isn't a whole ARN"},
		// Azure
		{ref: vault, want: vault},
		{ref: vault + "/", want: vault},
		{ref: vault + "/" + azureVersion, want: vault + "/" + azureVersion},
		{ref: "HTTPS://Demo.Vault.Azure.Net/keys/issuing", want: vault},
		{ref: "https://demo.vault.azure.net:443/keys/issuing", want: vault},
		{ref: "azurekms:" + vault, want: vault},
		{ref: "azurekms://demo.vault.azure.net/keys/issuing", want: vault},
		{ref: "azurekms://demo.vault.azure.net/issuing/" + azureVersion, want: vault + "/" + azureVersion},
		{ref: "azurekms:demo/issuing", access: kms.Access{Cloud: "public"}, want: vault},
		{ref: "azurekms:///demo/issuing", access: kms.Access{Cloud: "china"}, want: "https://demo.vault.azure.cn/keys/issuing"},
		{ref: "https://demo.vault.usgovcloudapi.net/keys/k", want: "https://demo.vault.usgovcloudapi.net/keys/k"},
		{ref: "https://demo.vault.azure.cn/keys/k", want: "https://demo.vault.azure.cn/keys/k"},
		{ref: "https://demo.managedhsm.azure.net/keys/k", want: "https://demo.managedhsm.azure.net/keys/k"},
		{ref: "https://demo.managedhsm.usgovcloudapi.net/keys/k", want: "https://demo.managedhsm.usgovcloudapi.net/keys/k"},
		{ref: "azurekms:demo/issuing", err: `"demo" is a short name: write demo.vault.azure.net, or set the cloud`},
		{ref: "azurekms:demo/issuing", access: kms.Access{Cloud: "mars"}, err: `cloud "mars" is unknown`},
		{ref: vault, access: kms.Access{Cloud: "china"}, err: "is in the cloud public, but the cloud is set to china"},
		{ref: "http://demo.vault.azure.net/keys/issuing", err: "is plain http"},
		{ref: "https://demo.vault.azure.net.example.com/keys/issuing", err: "isn't a host of Azure Key Vault or Managed HSM"},
		{ref: "https://example.com/keys/issuing", err: "isn't a host of Azure Key Vault"},
		{ref: "https://a.b.vault.azure.net/keys/issuing", err: `"a.b" isn't a vault's name`},
		{ref: "https://demo.vault.azure.net:8443/keys/issuing", err: "has the port 8443: leave it out"},
		{ref: "https://demo.vault.azure.net/secrets/issuing", err: "names one of the secrets: name the key"},
		{ref: "https://demo.vault.azure.net/certificates/issuing", err: "names one of the certificates"},
		{ref: "https://demo.vault.azure.net/issuing", err: "names no key"},
		{ref: "https://demo.vault.azure.net/keys/", err: "names no key"},
		{ref: "https://demo.vault.azure.net", err: "names no key"},
		{ref: vault + "/1", err: `"1" isn't a version: 32 hexadecimal digits are`},
		{ref: vault + "/" + azureVersion + "/sign", err: "has more than a key and a version"},
		{ref: vault + "?version=1", err: "has more than host and path"},
		{ref: "https://me@demo.vault.azure.net/keys/issuing", err: "has more than host and path"},
		{ref: "https://demo.vault.azure.net/keys/a_b", err: `"a_b" isn't a key's name`},
		{ref: "/subscriptions/1/resourceGroups/g/providers/Microsoft.KeyVault/vaults/demo/keys/issuing", err: "is a resource ID: write the key identifier"},
		{ref: "azurekms:name=issuing;vault=demo", err: "has attributes"},
		{ref: "azurekms:", err: "names no key"},
		// any
		{ref: "file:", err: "no path: write file:PATH"},
		// too long to repeat
		{ref: "awskms://" + long + ".aws/alias/x", err: "names the endpoint aaa"},
		{ref: "arn:aws:" + long + ":eu-central-1:111122223333:key/" + uuid, err: "isn't a whole ARN"},
		{ref: "arn:aws-" + long + ":s3:::bucket", err: "isn't a whole ARN"},
		{ref: "arn:aws:kms:" + long + ":111122223333:key/" + uuid, err: "isn't a whole ARN"},
		{ref: uuid, access: kms.Access{Region: "eu-" + long + "-1"}, err: "isn't one, such as eu-central-1"},
		{ref: "https://demo.vault.azure.net:" + strings.Repeat("1", 3900) + "/keys/issuing", err: "has the port 111"},
		{ref: "pkcs11:" + long + "=1", err: "is unknown"},
		{ref: "pkcs11:type=" + long, err: "a signing key is of type private"},
		{ref: long, err: "has no scheme"},
		{ref: "awskms:alias/x\n", err: "has a control character"},
	} {
		got, err := keystore.Backends().Canonical(tt.ref, tt.access)
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) || len(err.Error()) > 1000 {
				t.Errorf("%s: %q, error %v; want %q, in 1000 bytes at most", tt.ref, got, err, tt.err)
			}
			continue
		case err != nil || got != tt.want:
			t.Errorf("%s: %q, error %v; want %q", tt.ref, got, err, tt.want)
			continue
		}
		if again, err := keystore.Backends().Canonical(got, tt.access); err != nil || again != got {
			t.Errorf("%s: the canonical form %s parses as %q, %v", tt.ref, got, again, err)
		}
	}
}

// TestVaultAndGCPReferences: what people paste, the canonical form of it, or the
// exact error.
func TestVaultAndGCPReferences(t *testing.T) {
	t.Parallel()
	const name = "projects/my-project/locations/europe-west3/keyRings/ca/cryptoKeys/issuing"
	const vaultFix = ": write hashivault://MOUNT/keys/NAME, with ?version=N for another than the latest"
	const gcpFix = ": write gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K, with /cryptoKeyVersions/N for another than the newest"
	for _, tt := range []struct{ in, want, err string }{
		{in: "hashivault://transit/keys/issuing", want: "hashivault://transit/keys/issuing"},
		{in: "hashivault://transit/keys/issuing?version=3", want: "hashivault://transit/keys/issuing?version=3"},
		{in: "hashivault://issuing", want: "hashivault://transit/keys/issuing"},
		{in: "openbao://transit/keys/issuing", want: "hashivault://transit/keys/issuing"},
		{in: "HASHIVAULT://transit/keys/Issuing.2", want: "hashivault://transit/keys/Issuing.2"},
		{in: "hashivault://teams/ca/transit/keys/issuing", want: "hashivault://teams/ca/transit/keys/issuing"},
		{in: "hashivault://keys/keys/keys", want: "hashivault://keys/keys/keys"},
		{in: "hashivault:transit/keys/x", err: "names no key" + vaultFix},
		{in: "hashivault://", err: "names no key" + vaultFix},
		{in: "hashivault://transit/x", err: "has no /keys/ between mount and name" + vaultFix},
		{in: "hashivault://transit/keys/", err: `"" isn't a key's name: letters, digits, _ . and - between them`},
		{in: "hashivault:///keys/x", err: `"" isn't the path of a mount` + vaultFix},
		{in: "hashivault://a/../b/keys/x", err: `"a/../b" isn't the path of a mount` + vaultFix},
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
		{in: "gcpkms://", err: "names no key" + gcpFix},
		{in: "projects/my-project", err: "isn't the resource name of a key" + gcpFix},
		{in: name + "/", err: "isn't the resource name of a key" + gcpFix},
		{in: name + "/cryptoKeyVersions/latest", err: `"latest" isn't a name in cryptoKeyVersions`},
		{in: name + "/cryptoKeyVersions/0", err: `"0" isn't a name in cryptoKeyVersions`},
		{in: strings.Replace(name, "keyRings", "keyrings", 1), err: `has "keyrings" where keyRings is expected` + gcpFix},
		{in: strings.Replace(name, "my-project", "p", 1), err: `"p" isn't a name in projects`},
		{in: strings.Replace(name, "issuing", "is suing", 1), err: `"is suing" isn't a name in cryptoKeys`},
	} {
		got, err := keystore.Backends().Canonical(tt.in, kms.Access{})
		switch {
		case tt.err != "" && (err == nil || !strings.HasSuffix(err.Error(), ": "+tt.err)):
			t.Errorf("%q: %q, %v; want the error %q", tt.in, got, err, tt.err)
		case tt.err == "" && (err != nil || got != tt.want):
			t.Errorf("%q: %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	if _, err := keystore.Backends().Canonical("pkcs11:object=a?module-path=/x.so&pin-value=1234", kms.Access{}); err == nil || strings.Contains(err.Error(), "1234") {
		t.Errorf("a PIN in the URI: %v", err)
	}
}

// fuzzReference: any reference is read or refused in one bounded line, and its
// canonical form is canonical.
func fuzzReference(f *testing.F, scheme string, seeds ...string) {
	for _, seed := range seeds {
		f.Add(seed, "", "")
		f.Add(seed, "eu-central-1", "public")
	}
	f.Fuzz(func(t *testing.T, rest, region, cloud string) {
		a := kms.Access{Region: region, Cloud: cloud}
		got, err := keystore.Backends().Canonical(scheme+rest, a)
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if again, err := keystore.Backends().Canonical(got, a); err != nil || again != got {
			t.Errorf("%q: canonical %q, then %q, %v", rest, got, again, err)
		}
	})
}

func FuzzAWSReference(f *testing.F) {
	fuzzReference(f, "awskms:", "alias/x", "///alias/x", uuid, mrk, "arn:aws:kms:eu-central-1:111122223333:key/"+uuid, "//localhost:4566/alias/x")
}

func FuzzAzureReference(f *testing.F) {
	fuzzReference(f, "azurekms:", vault, vault+"/"+azureVersion, "demo/issuing", "//demo.managedhsm.azure.net/keys/k", "//[::1]/keys/k")
}

func FuzzVaultReference(f *testing.F) {
	fuzzReference(f, "hashivault:", "//transit/keys/issuing?version=3", "//issuing", "//a/b/keys/c", "//keys/keys/keys", "//../keys/x")
}

func FuzzGCPReference(f *testing.F) {
	fuzzReference(f, "gcpkms:", "//projects/my-project/locations/global/keyRings/r/cryptoKeys/k/versions/1",
		"projects/example.com:my-project/locations/global/keyRings/r/cryptoKeys/k", "//cloudkms.googleapis.com/projects/1/locations/l/keyRings/r/cryptoKeys/k")
}
