package revoke

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// TestHundredThousand: a list of so many is signed within the time that clients are told,
// beside a log and feeds that go on; the figures are in docs/revocation.md.
func TestHundredThousand(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	r := newRig(t, nil, by)
	const n = 100_000
	begun := time.Now()
	for from := 0; from < n; from += maxFound {
		drafts := make([]Statement, maxFound)
		for i := range drafts {
			drafts[i] = draft(ID(by.Certificate), int64(1)<<62+int64(from+i))
		}
		if _, err := r.Log.Append(drafts); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d statements appended in %v", n, time.Since(begun))
	r.Lists.Use(by, func() {})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begun = time.Now()
	r.Lists.sign(t.Context())
	took := time.Since(begun)
	runtime.ReadMemStats(&after)
	if l := r.served(t, by); len(l.RevokedCertificateEntries) != n || l.Number.Int64() != n {
		t.Errorf("a list of %d", len(l.RevokedCertificateEntries))
	}
	t.Logf("the list was signed in %v, with %d MB of memory before and %d MB more of the system's for it", took, before.HeapAlloc>>20, (after.HeapSys-before.HeapSys)>>20)
	begun = time.Now()
	r.reopen(t)
	t.Logf("opened again in %v", time.Since(begun))
	if p := r.page(t, fmt.Sprintf("?from=%d", n-3)); len(p.Statements) != 3 {
		t.Errorf("%d statements at the end", len(p.Statements))
	}
}
