package conformance

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/ctutil"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
)

// onceAt is up to which of its calls a single fault is tried.
const onceAt = 10

// failingCalls are those of which a log's writes and reads are made. An SCT waits for the
// writes of flushes alone; the others are the tree's, which follows.
var failingCalls = []string{"create", "write", "fsync", "fsync of a folder", "rename", "read"}

var flushCalls = []string{"write", "fsync"}

// TestLogDisk lets the disk under the log of a running mayfly fail with EIO, one
// kind of call after the other. While it fails there is no certificate, once the tree
// that can't follow is noticed, and /readyz says so; when the fault ends, the log reads its state again and goes on by itself;
// and every certificate that ever came out is in the log.
func TestLogDisk(t *testing.T) {
	t.Run("log-disk-errors", func(t *testing.T) { onFailingDisk(t, (*mayfly).lasting) })
}

// TestTransientStorageErrorReleasesNothing: Cloudflare's Raio went on in a
// bad state after a transient error of its storage. Here each single call of an
// issuance fails once, the ones after the state was written too, so that what is on
// the disk isn't what the log remembers.
func TestTransientStorageErrorReleasesNothing(t *testing.T) {
	t.Run("log-disk-error-once", func(t *testing.T) { onFailingDisk(t, (*mayfly).passing) })
}

// onFailingDisk runs mayfly with its log on a disk that fails as asked, and
// verifies in the end that each certificate is in the log.
func onFailingDisk(t *testing.T, with func(m *mayfly, t *testing.T, o *orderer, disk *faultDisk, call string) [][]byte) {
	t.Helper()
	issuer := startDev(t)
	var disk *faultDisk
	m := startServe(t, issuer.asIssuer(), func(t *testing.T, dir, config string) string {
		at := filepath.Join(dir, "mounted")
		for _, folder := range []string{at, filepath.Join(dir, "disk")} {
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"ctlog", "ctlog.mark"} {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, "disk", name)); err != nil {
				t.Fatal(err)
			}
			config = strings.ReplaceAll(config, ": "+name+"\n", ": mounted/"+name+"\n")
		}
		disk = newFaultDisk(t, filepath.Join(dir, "disk"), at)
		return config
	})
	o := newOrderer(t, m, issuer.token(t))
	issued := [][]byte{o.must(t)}
	for _, call := range failingCalls {
		t.Run(strings.ReplaceAll(call, " ", "-"), func(t *testing.T) {
			issued = append(issued, with(m, t, o, disk, call)...)
		})
	}
	t.Run("verified", func(t *testing.T) {
		m.logHolds(t, issued)
		testFsck(t, m, nil)
		command(t, nil, setting(t, "MAYFLY_BIN"), "log", "verify",
			"--dir", filepath.Join(m.dir, "mounted", "ctlog"), "--mark", filepath.Join(m.dir, "mounted", "ctlog.mark"))
		t.Logf("%d certificates, each in the log", len(issued))
	})
}

// lasting is a fault that stays until it is mended.
func (m *mayfly) lasting(t *testing.T, o *orderer, disk *faultDisk, call string) (issued [][]byte) {
	t.Helper()
	disk.breaks(call, 0, -1)
	m.process.until(t, "nothing is issued any more", func() bool {
		status, der, err := o.order(t.Context())
		if err != nil || der == nil && status != http.StatusServiceUnavailable {
			t.Fatalf("every %s fails: status %d, %v, want 503", call, status, err)
		}
		if der != nil {
			issued = append(issued, der)
		}
		return der == nil
	})
	if len(issued) > 0 && slices.Contains(flushCalls, call) {
		t.Errorf("every %s fails, and %d certificates were issued", call, len(issued))
	}
	for range 3 {
		status, der, err := o.order(t.Context())
		if der != nil || err != nil || status != http.StatusServiceUnavailable {
			t.Errorf("every %s fails: status %d, certificate %t, %v, want 503", call, status, der != nil, err)
		}
	}
	if disk.struck() == 0 {
		t.Fatalf("the log made no %s", call)
	}
	m.process.until(t, "/readyz notices", func() bool { return !answers(t, m.HTTP+"/readyz") })
	disk.mends()
	m.process.until(t, "it is ready again", func() bool { return answers(t, m.HTTP+"/readyz") })
	return append(issued, o.must(t))
}

// passing is a fault of a single call, at each place where an issuance and the tree that
// follows it make it. The issuance may fail or not; the ones after it don't.
func (m *mayfly) passing(t *testing.T, o *orderer, disk *faultDisk, call string) (issued [][]byte) {
	t.Helper()
	times := 1
	if call == "read" {
		times = 2 // the kernel reads a page again that its read-ahead failed to get
	}
	refused, struck := 0, 0
	for place := range onceAt {
		before := m.published(t)
		disk.breaks(call, place, times)
		status, der, err := o.order(t.Context())
		switch {
		case err != nil:
			t.Fatal(err)
		case der != nil:
			issued = append(issued, der)
		case status != http.StatusServiceUnavailable:
			t.Errorf("%s %d fails: status %d, want 503", call, place, status)
		default:
			refused++
		}
		m.process.until(t, "the fault strikes, or the tree has followed", func() bool {
			return disk.struck() > 0 || m.published(t) > before
		})
		struck += disk.mends()
		m.process.until(t, "it is ready again", func() bool { return answers(t, m.HTTP+"/readyz") })
		issued = append(issued, o.must(t))
	}
	t.Logf("of %d issuances with one failed %s, %d were refused", onceAt, call, refused)
	if struck == 0 || refused == 0 && slices.Contains(flushCalls, call) {
		t.Errorf("a failed %s never mattered: %d failed", call, struck)
	}
	return issued
}

// published is how many entries the log's checkpoint covers, as it is on the folder behind
// the disk that fails.
func (m *mayfly) published(t *testing.T) (size uint64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.dir, "disk", "ctlog", "checkpoint"))
	if err == nil {
		_, err = fmt.Sscanf(string(text), "%s\n%d\n", new(string), &size)
	}
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// logHolds verifies the SCT in each certificate, and that the log holds at its
// index the precertificate that the certificate was made of.
func (m *mayfly) logHolds(t *testing.T, issued [][]byte) {
	t.Helper()
	reader, err := client.New(strings.TrimSuffix(m.CTLog, "/"), http.DefaultClient, jsonclient.Options{PublicKeyDER: m.logKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ctx509.ParsePKIXPublicKey(m.logKey(t))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ctx509.ParseCertificate(m.chain(t)[0].Raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range issued {
		c, err := ctx509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		var sct ct.SignedCertificateTimestamp
		if len(c.SCTList.SCTList) != 1 {
			t.Fatalf("%d SCTs, want 1", len(c.SCTList.SCTList))
		}
		if rest, err := tls.Unmarshal(c.SCTList.SCTList[0].Val, &sct); err != nil || len(rest) > 0 || len(sct.Extensions) != 8 {
			t.Fatalf("SCT: %v, %d bytes of extensions", err, len(sct.Extensions))
		}
		if err := ctutil.VerifySCT(key, []*ctx509.Certificate{c, issuer}, &sct, true); err != nil {
			t.Fatal(err)
		}
		index := int64(0)
		for _, b := range sct.Extensions[3:] { // extension 0, two bytes of length, a 40 bit number
			index = index<<8 | int64(b)
		}
		headWith(t, reader, uint64(index))
		entries, err := reader.GetEntries(t.Context(), index, index)
		if err != nil {
			t.Fatal(err)
		}
		tbs, err := ctx509.RemoveSCTList(c.RawTBSCertificate)
		if err != nil {
			t.Fatal(err)
		}
		logged := entries[0].Leaf.TimestampedEntry
		if logged.PrecertEntry == nil || !bytes.Equal(logged.PrecertEntry.TBSCertificate, tbs) ||
			logged.PrecertEntry.IssuerKeyHash != sha256.Sum256(issuer.RawSubjectPublicKeyInfo) || logged.Timestamp != sct.Timestamp {
			t.Errorf("entry %d is not what the SCT in the certificate promises", index)
		}
	}
}
