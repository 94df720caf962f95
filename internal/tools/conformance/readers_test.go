package conformance

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/sunlight"
	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"
)

const (
	logged       = 10000 // certificates that are issued before anybody reads
	orderers     = 64    // clients that ask for them at the same time
	sampled      = 97    // every how manyth entry is looked at closely
	ctclientName = "ctclient-v1.4.0"
)

// TestReaders lets programs of others read, over HTTP, the log of a running
// mayfly that has issued ten thousand certificates, with a real witness that cosigns
// what they read. Its first tree head is from before them, for proofs that the log
// only grew.
func TestReaders(t *testing.T) {
	issuer := startDev(t)
	var witness note.Verifier
	m := startServe(t, issuer.asIssuer(), withWitness(&witness))
	o := newOrderer(t, m, issuer.token(t))
	o.must(t)
	early := m.head(t)
	began := time.Now()
	sample := o.fill(t, logged)
	t.Logf("%d certificates in %v", logged, time.Since(began).Round(time.Second))
	m.leaf = logged // the first one came before

	t.Run("omniwitness-10000", func(t *testing.T) { testWitness(t, m, witness) })
	t.Run("ct-go-10000", func(t *testing.T) {
		readAll(t, m, sampled)
		m.logHolds(t, sample)
	})
	t.Run("ctclient-10000", func(t *testing.T) { testCTClientProgram(t, m, early) })
	t.Run("sunlight-client-10000", func(t *testing.T) { testSunlight(t, m) })
	t.Run("tessera-fsck-10000", func(t *testing.T) { testFsck(t, m, nil) })
}

// fill orders n certificates as fast as many clients can, and answers with some of them.
func (o *orderer) fill(t *testing.T, n int64) (sample [][]byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	var mu sync.Mutex
	for range orderers {
		group.Go(func() error {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				status, der, err := o.order(ctx)
				if err != nil || der == nil {
					return fmt.Errorf("certificate %d: status %d: %w", i, status, err)
				}
				if i%sampled == 0 {
					mu.Lock()
					sample = append(sample, der)
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return sample
}

// treeHead is what the log signed.
type treeHead struct {
	size uint64
	root string // hexadecimal
}

// head is the log's newest tree head over at least one entry.
func (m *mayfly) head(t *testing.T) treeHead {
	t.Helper()
	reader, err := client.New(m.CTLog, http.DefaultClient, jsonclient.Options{PublicKeyDER: m.logKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	h := headWith(t, reader, 0)
	return treeHead{size: h.TreeSize, root: hex.EncodeToString(h.SHA256RootHash[:])}
}

var gotSTH = regexp.MustCompile(`\(size=(\d+)\).* hash ([0-9a-f]{64})`)

// testCTClientProgram is what an auditor types: the tree head, the roots, some
// entries, a proof that one is there and one that the log only grew.
func testCTClientProgram(t *testing.T, m *mayfly, early treeHead) {
	key := filepath.Join(t.TempDir(), "log.pem")
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: m.logKey(t)}))
	ctclient := func(args ...string) string {
		t.Helper()
		args = append(args, "--log_uri", m.CTLog, "--pub_key", key)
		return command(t, nil, filepath.Join(setting(t, "CONFORMANCE_BIN"), ctclientName), args...)
	}
	found := gotSTH.FindStringSubmatch(ctclient("get-sth"))
	if found == nil {
		t.Fatal("get-sth tells no tree head")
	}
	size, root := found[1], found[2]
	if n, err := strconv.ParseUint(size, 10, 64); err != nil || n <= logged {
		t.Fatalf("the tree has %s entries, want more than %d", size, logged)
	}
	if said := ctclient("get-roots"); !strings.Contains(said, "Certificate:") {
		t.Errorf("get-roots: %s", said)
	}
	for _, first := range []int{0, 255, 256, logged - 1} {
		said := ctclient("get-entries", "--first", strconv.Itoa(first), "--last", strconv.Itoa(first))
		if !strings.Contains(said, "Index="+strconv.Itoa(first)+" ") || !strings.Contains(said, aliceEmail) {
			t.Errorf("entry %d: %s", first, said)
		}
	}
	said := ctclient("get-consistency-proof", "--prev_size", strconv.FormatUint(early.size, 10), "--prev_hash", early.root,
		"--size", size, "--tree_hash", root)
	if !strings.Contains(said, "Verified that hash") {
		t.Errorf("get-consistency-proof: %s", said)
	}
	said = ctclient("get-inclusion-proof", "--leaf_hash", m.leafHash(t, logged/2)) // of its own tree head
	if !strings.Contains(said, "Verified that hash") {
		t.Errorf("get-inclusion-proof: %s", said)
	}
}

// testSunlight reads as monitors of static-ct logs do, with the client that
// Sunlight's author made for them: each entry against the tree, one by one, its
// issuers, and the inclusion of some SCTs.
func testSunlight(t *testing.T, m *mayfly) {
	key, err := x509.ParsePKIXPublicKey(m.logKey(t))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := sunlight.NewClient(&sunlight.ClientConfig{
		MonitoringPrefix: m.CTLog, PublicKey: key, UserAgent: "mayfly conformance (+https://mayfly.example)",
		Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, _, err := reader.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if checkpoint.N <= logged {
		t.Fatalf("%d entries are published, want more than %d", checkpoint.N, logged)
	}
	next := int64(0)
	issuers := make(map[[32]byte]bool)
	for next < checkpoint.N {
		from := next
		for i, entry := range reader.Entries(t.Context(), checkpoint.Tree, next) {
			if i != next || entry.LeafIndex != i || !entry.IsPrecert {
				t.Fatalf("entry %d: index %d, leaf index %d, precertificate %t", next, i, entry.LeafIndex, entry.IsPrecert)
			}
			for _, fingerprint := range entry.ChainFingerprints {
				issuers[fingerprint] = true
			}
			next++
		}
		if err := reader.Err(); err != nil {
			t.Fatal(err)
		}
		if next == from {
			t.Fatalf("no entry came after %d", next)
		}
	}
	for fingerprint := range issuers {
		if _, err := reader.Issuer(t.Context(), fingerprint); err != nil {
			t.Error(err)
		}
	}
	for index := int64(0); index < checkpoint.N; index += sampled * 10 {
		if _, _, err := reader.Entry(t.Context(), checkpoint.Tree, index); err != nil {
			t.Errorf("entry %d: %v", index, err)
		}
	}
	if len(issuers) == 0 {
		t.Error("no entry names an issuer")
	}
	t.Logf("%d entries, %d issuers", next, len(issuers))
}
