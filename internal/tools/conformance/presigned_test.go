package conformance

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/google/certificate-transparency-go/x509"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// testPresigned lets foreign programs work with a CA whose precertificates have a
// signing certificate of their own (RFC 6962 §3.1), which none of them is told of.
func testPresigned(t *testing.T, _ *mayfly, _ *timestampAuthority) {
	first := startDev(t)
	first.stopDev(t)
	path := filepath.Join(first.dir, "mayfly.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(content), "\n      chain: ", "\n      precertificate_signer: on\n      chain: ", 1)
	if changed == string(content) {
		t.Fatalf("no authority in %s", content)
	}
	write(t, path, []byte(changed))
	m := startDevIn(t, first.dir)

	t.Run("sigstore-go", func(t *testing.T) { signAndVerify(t, m, m.trustedRoot, nil, verify.WithCurrentTime()) })
	t.Run("cosign-v3", func(t *testing.T) { testCosign3(t, m, nil) })
	t.Run("openssl", func(t *testing.T) { testOpenSSL(t, m, nil) })
	t.Run("ct-go", func(t *testing.T) { testCTClient(t, m, nil) })
	t.Run("ct-go, one entry", func(t *testing.T) { testPresignedEntry(t, m) })
	t.Run("tessera-fsck", func(t *testing.T) { testFsck(t, m, nil) })
	said := command(t, nil, setting(t, "MAYFLY_BIN"), "log", "verify", "--dir", filepath.Join(m.dir, "ctlog"))
	if !strings.Contains(said, "The log is whole") {
		t.Errorf("mayfly log verify said %s", said)
	}
}

// testPresignedEntry reads the last entry as a monitor does: its chain begins with
// the signing certificate, what the log committed to is what ct-go makes of the
// submission, and it is issued in the name of the CA itself.
func testPresignedEntry(t *testing.T, m *mayfly) {
	t.Helper()
	reader, err := client.New(strings.TrimSuffix(m.CTLog, "/"), http.DefaultClient, jsonclient.Options{PublicKeyDER: m.logKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := reader.GetRawEntries(t.Context(), int64(m.leaf), int64(m.leaf))
	if err != nil || len(raw.Entries) != 1 {
		t.Fatalf("entry %d: %v", m.leaf, err)
	}
	entry, err := ct.LogEntryFromLeaf(int64(m.leaf), &raw.Entries[0])
	if err != nil || entry.Precert == nil || len(entry.Chain) != 3 {
		t.Fatalf("entry %d: %v, want a precertificate under three certificates: %+v", m.leaf, err, entry)
	}
	parse := func(der []byte) *x509.Certificate {
		c, err := x509.ParseCertificate(der)
		if c == nil || x509.IsFatal(err) {
			t.Fatal(err)
		}
		return c
	}
	chain := []*x509.Certificate{parse(entry.Precert.Submitted.Data)}
	for _, c := range entry.Chain {
		chain = append(chain, parse(c.Data))
	}
	if !ct.IsPreIssuer(chain[1]) {
		t.Error("the chain doesn't begin with a precertificate signing certificate")
	}
	leaf, err := ct.MerkleTreeLeafFromChain(chain, ct.PrecertLogEntryType, entry.Leaf.TimestampedEntry.Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	got, want := entry.Leaf.TimestampedEntry.PrecertEntry, leaf.TimestampedEntry.PrecertEntry
	if got.IssuerKeyHash != want.IssuerKeyHash || string(got.TBSCertificate) != string(want.TBSCertificate) {
		t.Error("the entry isn't the one that ct-go makes of its precertificate and chain")
	}
	if issuer := m.chain(t)[0]; string(entry.Precert.TBSCertificate.RawIssuer) != string(issuer.RawSubject) {
		t.Error("the entry isn't in the name of the issuing CA")
	}
}
