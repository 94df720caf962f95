package gcp_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// TestNewestEnabled is taken at the start, where no version is named.
func TestNewestEnabled(t *testing.T) {
	t.Parallel()
	s := kmstest.NewGCP(t, kmstest.Key(t, kms.ECDSAP256))
	s.Add(s.Name, kmstest.Key(t, kms.ECDSAP384))
	s.Change(s.Name, s.Add(s.Name, kmstest.Key(t, kms.ECDSAP256)), func(v *kmstest.Version) { v.Disabled = true })
	if got, want := fmt.Sprint(s.Open(t)), strings.TrimSuffix(s.Pinned, "1")+"2"; got != want {
		t.Errorf("pinned %s; want %s", got, want)
	}
}

// TestDamagedAnswer: an answer that was damaged on the way is asked for again,
// and never released.
func TestDamagedAnswer(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*kmspb.AsymmetricSignResponse){
		"signature":                      func(r *kmspb.AsymmetricSignResponse) { r.Signature[9] ^= 1 },
		"checksum left out":              func(r *kmspb.AsymmetricSignResponse) { r.SignatureCrc32C = nil },
		"digest's checksum not verified": func(r *kmspb.AsymmetricSignResponse) { r.VerifiedDigestCrc32C = false },
		"another version's":              func(r *kmspb.AsymmetricSignResponse) { r.Name += "1" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := kmstest.NewGCP(t, kmstest.Key(t, kms.ECDSAP256))
			signer := s.Open(t)
			s.Always(kmstest.Fault{Spoil: func(answer any) { spoil(answer.(*kmspb.AsymmetricSignResponse)) }}, s.Sign)
			err := kms.Try(t.Context(), signer)
			if err == nil || !strings.Contains(err.Error(), s.Host+": sign: a checksum (CRC32C) or name doesn't match") || !strings.Contains(err.Error(), "(3 attempts, ") {
				t.Error(err)
			}
			s.Mend()
			if err := kms.Try(t.Context(), signer); err != nil {
				t.Errorf("no recovery: %v", err)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	k := kmstest.NewGCP(t, kmstest.Key(t, kms.ECDSAP256))
	der, err := x509.MarshalPKCS8PrivateKey(kmstest.Key(t, kms.RSA2048))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	credential := func(file string, fields map[string]string) string {
		b, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	account := credential("account.json", map[string]string{
		"type": "service_account", "client_email": "ca@mayfly-test.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": k.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	person := credential("application_default_credentials.json", map[string]string{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"})
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open.json")
	if err := os.WriteFile(open, []byte("{}"), 0o644); err != nil { // #nosec G306 -- what is to be refused
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name       string
		credential kms.Credential
		env        map[string]string
		want       string // in the error; "" opens
	}{
		{"a service account's key", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": account}, ""},
		{"env that isn't set, with somebody logged in", kms.CredentialEnv, map[string]string{"CLOUDSDK_CONFIG": dir}, "GOOGLE_APPLICATION_CREDENTIALS isn't set"},
		{"a person's as env", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": person}, `is of type "authorized_user", which isn't one of [service_account impersonated_service_account]`},
		{"a key file as workload", kms.CredentialWorkload, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": account}, `is of type "service_account", which isn't one of [external_account]`},
		{"cli not logged in", kms.CredentialCLI, map[string]string{"HOME": "/nowhere"}, "/nowhere/.config/gcloud/application_default_credentials.json"},
		{"a file that is none", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": large}, "larger than 65536 bytes"},
		{"a key that everybody may read", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": open}, "everybody may use it (mode 0644): chmod 600 " + open},
		{"none named", "", nil, "needs a credential: set it to one of env, workload, managed-identity, cli"},
		{"auto", kms.CredentialAuto, nil, `has no credential "auto"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := keystore.Open(t.Context(), k.Ref, kms.Options{
				Access: kms.Access{Credential: tt.credential, Endpoint: k.URL}, Getenv: func(name string) string { return tt.env[name] },
			})
			if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}
