package ceremony

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestCreateFiles(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	passphrase := filepath.Join(parent, "passphrase")
	if err := os.WriteFile(passphrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := CreateOptions{Dir: filepath.Join(parent, "ca"), Organization: "Example", Passphrase: []byte("correct horse"), Now: noon}
	made, err := CreateFiles(o)
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{
		o.Dir: 0o700, made.RootKey: 0o600, made.IssuingKey: 0o600, made.Chain: 0o644, made.Root: 0o644,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %o", path, info, err, mode)
		}
	}
	for _, key := range []string{made.RootKey, made.IssuingKey} {
		if b, err := os.ReadFile(key); err != nil || !bytes.HasPrefix(b, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----")) {
			t.Errorf("%s isn't encrypted: %v", key, err)
		}
	}

	text, err := os.ReadFile(made.Chain)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := chain.Parse(text)
	if err != nil || len(certs) != 2 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	if faults := cacert.Check(certs, chain.Need{Now: noon, Lifetime: time.Hour}); len(faults) > 0 {
		t.Errorf("%v", faults)
	}
	key, err := keystore.Open(t.Context(), "file:"+made.IssuingKey, kms.Options{Passphrase: setting.Secret{File: setting.Path(passphrase)}})
	if err != nil || !pubkey.Equal(certs[0].PublicKey, key.Public()) {
		t.Errorf("the issuing key isn't the first certificate's: %v", err)
	}
	intermediate, root := certs[0], certs[1]
	if !intermediate.MaxPathLenZero || intermediate.NotAfter.After(root.NotAfter) || algorithmOf(t, intermediate) != kms.ECDSAP256 || algorithmOf(t, root) != kms.ECDSAP384 {
		t.Errorf("intermediate %v, root %v", intermediate, root)
	}
	zlintAgrees(t, intermediate)
	zlintAgrees(t, root)
}

func algorithmOf(t *testing.T, c *x509.Certificate) kms.Algorithm {
	t.Helper()
	a, err := kms.AlgorithmOf(c.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestCreateFilesNeverOverwrites(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "ca")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFiles(CreateOptions{Dir: dir, Organization: "Example", Now: noon}); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v; want os.ErrExist", err)
	}
	if _, err := CreateFiles(CreateOptions{Dir: filepath.Join(parent, "new"), Now: noon}); err == nil || !strings.Contains(err.Error(), "organization") {
		t.Errorf("no organization: %v", err)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 1 {
		t.Errorf("refusals left %v, %v", left, err)
	}
	if _, err := CreateFiles(CreateOptions{Dir: filepath.Join(parent, "new"), Organization: "Example", Algorithm: "DSA", Now: noon}); err == nil {
		t.Error("an unknown algorithm")
	}
}
