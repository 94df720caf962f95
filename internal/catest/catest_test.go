package catest_test

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/catest"
)

func TestChainVerifies(t *testing.T) {
	t.Parallel()
	now := time.Now()
	rootKey, key := catest.Key(t), catest.Key(t)
	root := catest.Sign(t, catest.Authority("Example", "root", now.Add(-time.Hour), now.Add(time.Hour)), nil, rootKey.Public(), rootKey)
	below := catest.Sign(t, catest.Authority("Example", "issuing", now.Add(-time.Hour), now.Add(time.Hour)), root, key.Public(), rootKey)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(catest.PEM(root))
	if _, err := below.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
	if below.SerialNumber.Cmp(root.SerialNumber) == 0 {
		t.Error("both certificates have one serial number")
	}
	first, rest := pem.Decode(catest.PEM(below, root))
	if second, rest := pem.Decode(rest); string(first.Bytes) != string(below.Raw) || string(second.Bytes) != string(root.Raw) || len(rest) != 0 {
		t.Error("the PEM isn't the two certificates")
	}
}

func TestServerVerifiesWithItsLeaf(t *testing.T) {
	t.Parallel()
	server := catest.Server(t, "kms.test")
	roots := x509.NewCertPool()
	roots.AddCert(server.Leaf)
	for _, host := range []string{"kms.test", "127.0.0.1"} {
		if _, err := server.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}
