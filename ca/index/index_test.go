package index_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/store/storetest"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// rig is an index of one log.
type rig struct {
	*index.Index
	log  ctlog.Description
	size uint64
}

func newRig(t *testing.T, c store.Config) *rig {
	t.Helper()
	i := index.New()
	if err := i.Open(t.Context(), storetest.Open(t, c)); err != nil {
		t.Fatal(err)
	}
	return &rig{Index: i, log: ctlog.Description{ID: [32]byte{0xab}}}
}

// keep adds certificates, one entry each.
func (r *rig) keep(t *testing.T, certificates ...[]byte) {
	t.Helper()
	entries := make([]follow.Entry, len(certificates))
	for i, der := range certificates {
		entries[i] = follow.Entry{Index: r.size + uint64(i), Timestamp: noon, Certificate: der}
	}
	if err := r.Keep(t.Context(), r.log, r.size, entries, follow.Position{Size: r.size + uint64(len(entries)), Checkpoint: []byte("checkpoint")}); err != nil {
		t.Fatal(err)
	}
	r.size += uint64(len(entries))
}

// issued is a certificate of a name, serial n, that begins n minutes after noon.
func issued(t testing.TB, n int64, san string, set extension.Set) []byte {
	t.Helper()
	_, der := issuedWithKey(t, n, san, set)
	return der
}

func issuedWithKey(t testing.TB, n int64, san string, set extension.Set) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	if set.Issuer == "" {
		set.Issuer = "https://accounts.example"
	}
	set.TokenSubject = "subject of " + san
	extensions, err := set.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(n), NotBefore: noon.Add(time.Duration(n) * time.Minute), NotAfter: noon.Add(time.Duration(n)*time.Minute + 10*time.Minute),
		AuthorityKeyId: []byte{1, 2, 3}, ExtraExtensions: extensions,
	}
	if u, err := url.Parse(san); err == nil && u.Scheme != "" {
		c.URIs = []*url.URL{u}
	} else {
		c.EmailAddresses = []string{san}
	}
	key := catest.Key(t)
	parent := &x509.Certificate{SubjectKeyId: []byte{1, 2, 3}}
	return key, catest.Sign(t, c, parent, key.Public(), key).Raw
}

func ci(repository string, n int) extension.Set {
	return extension.Set{
		Issuer: "https://token.actions.example", SourceRepositoryURI: "https://git.example/" + repository, RunnerEnvironment: "hosted",
		BuildConfigURI:         "https://git.example/" + repository + "/.github/workflows/release.yml@refs/tags/v" + fmt.Sprint(n),
		SourceRepositoryDigest: fmt.Sprintf("%040x", 0xabc000+n), GitHubSHA: fmt.Sprintf("%040x", 0xabc000+n),
		RunInvocationURI: fmt.Sprintf("https://git.example/%s/actions/runs/%d/attempts/1", repository, n),
	}
}

func (r *rig) serials(t *testing.T, q index.Query) string {
	t.Helper()
	var all []string
	for pages := 0; ; pages++ {
		page, err := r.Search(t.Context(), q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		for _, c := range page.Certificates {
			all = append(all, c.Fields["serial"])
		}
		if q.Cursor = page.Next; q.Cursor == "" || pages == 100 {
			return strings.Join(all, " ")
		}
	}
}

func only(field, value string) []index.Filter { return []index.Filter{{Field: field, Value: value}} }
func begins(field, value string) []index.Filter {
	return []index.Filter{{Field: field, Value: value, Prefix: true}}
}

// TestStores holds the index in both stores to the same.
func TestStores(t *testing.T) {
	t.Parallel()
	storetest.Each(t, map[string]func(*testing.T, store.Config){
		"search": testSearch, "pages": testPagesUnderInserts, "first uses": testFirstUses, "position": testPosition, "artifacts": testArtifacts, "killed": testKilled, "filled": testFilled,
	})
}

// testSearch finds certificates by every kind of field, the newest first, in both stores.
func testSearch(t *testing.T, c store.Config) {
	r := newRig(t, c)
	alice, bob := issued(t, 1, "alice@example.com", extension.Set{}), issued(t, 2, "bob@Example.COM", extension.Set{})
	r.keep(t, alice, bob)
	for n := 3; n <= 6; n++ {
		set := ci("acme/tool", n)
		r.keep(t, issued(t, int64(n), set.BuildConfigURI, set))
	}
	r.keep(t, []byte("no certificate"), issued(t, 8, "alice@example.com", extension.Set{}))
	key, _ := x509.ParseCertificate(bob)
	for name, tt := range map[string]struct {
		index.Query
		want string
	}{
		"all":              {index.Query{}, "8 6 5 4 3 2 1 "}, // the unreadable one has no serial
		"san":              {index.Query{Filters: only("san", "alice@example.com")}, "8 1"},
		"san, in pages":    {index.Query{Filters: only("san", "alice@example.com"), Limit: 1}, "8 1"},
		"all, in pages":    {index.Query{Limit: 2}, "8 6 5 4 3 2 1 "},
		"prefix":           {index.Query{Filters: begins("san", "https://git.example/acme/")}, "6 5 4 3"},
		"no prefix":        {index.Query{Filters: begins("san", "https://git.example/acme_")}, ""},
		"domain":           {index.Query{Filters: only("domain", "example.com")}, "8 2 1"},
		"host":             {index.Query{Filters: only("domain", "git.example")}, "6 5 4 3"},
		"type":             {index.Query{Filters: only("san_type", "uri")}, "6 5 4 3"},
		"unreadable":       {index.Query{Filters: only("san_type", index.Unreadable)}, ""},
		"serial":           {index.Query{Filters: only("serial", "2")}, "2"},
		"key":              {index.Query{Filters: only("key_fingerprint", fingerprint(key.RawSubjectPublicKeyInfo))}, "2"},
		"certificate":      {index.Query{Filters: only("certificate_fingerprint", fingerprint(alice))}, "1"},
		"authority":        {index.Query{Filters: only("authority", "010203"), Limit: 3}, "8 6 5 4 3 2 1"},
		"log":              {index.Query{Filters: begins("log", "ab")}, "8 6 5 4 3 2 1 "},
		"commit":           {index.Query{Filters: only("source_repository_digest", fmt.Sprintf("%040x", 0xabc004))}, "4"},
		"beginning of one": {index.Query{Filters: begins("source_repository_digest", fmt.Sprintf("%040x", 0xabc004)[:39])}, "6 5 4 3"},
		"run":              {index.Query{Filters: only("run_invocation_uri", "https://git.example/acme/tool/actions/runs/5/attempts/1")}, "5"},
		"repository":       {index.Query{Filters: only("source_repository_uri", "https://git.example/acme/tool")}, "6 5 4 3"},
		"workflow":         {index.Query{Filters: only("workflow", "https://git.example/acme/tool/.github/workflows/release.yml")}, "6 5 4 3"},
		"identity":         {index.Query{Filters: only("identity", "https://git.example/acme/tool"), Limit: 3}, "6 5 4 3"},
		"issuer and time":  {index.Query{Filters: only("issuer", "https://accounts.example"), From: noon.Add(2 * time.Minute), To: noon.Add(8 * time.Minute)}, "2"},
		"time":             {index.Query{From: noon.Add(4 * time.Minute), To: noon.Add(6 * time.Minute)}, "5 4"},
		"two":              {index.Query{Filters: append(only("issuer", "https://token.actions.example"), begins("run_invocation_uri", "https://git.example/acme/tool/actions/runs/4")...)}, "4"},
		"nobody":           {index.Query{Filters: only("san", "Alice@example.com")}, ""},
		"SQL":              {index.Query{Filters: only("san", "' OR 1=1 --")}, ""},
		"no digest":        {index.Query{Filters: only("digest", "00")}, ""},
		"revoked":          {index.Query{Revoked: true}, ""},
	} {
		if got := r.serials(t, tt.Query); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	for _, q := range []index.Query{
		{Filters: only("password", "a")}, {Filters: only("san", "")}, {Filters: only("san", strings.Repeat("a", 5000))}, {Filters: only("san", "a\x00")},
		{Cursor: "!"}, {Cursor: "YQ"}, {Filters: make([]index.Filter, 17)},
	} {
		if _, err := r.Search(t.Context(), q); fault.From(err) == nil || fault.From(err).Reason != fault.RequestMalformed {
			t.Errorf("%+v: %v", q, err)
		}
	}
	page, err := r.Search(t.Context(), index.Query{Filters: only("serial", "5")})
	if err != nil || len(page.Certificates) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	if got := page.Certificates[0]; got.Index != 4 || !got.NotBefore.Equal(noon.Add(5*time.Minute)) || !got.Logged.Equal(noon) || !got.RevokedAt.IsZero() ||
		got.Fields["runner_environment"] != "hosted" || got.Fields["token_subject"] == "" || got.Fields["log"][:4] != "ab00" {
		t.Errorf("%+v", got)
	}
	counts, err := r.Counts(t.Context(), noon)
	if want := []index.Count{{noon, "", 1}, {noon, "https://accounts.example", 3}, {noon, "https://token.actions.example", 4}}; err != nil || !slices.Equal(counts, want) {
		t.Errorf("%v, %v; want %v", counts, err, want)
	}
	if counts, err = r.Counts(t.Context(), noon.Add(6*time.Minute)); err != nil || len(counts) != 2 {
		t.Errorf("%v, %v", counts, err)
	}
	testRevoked(t, r)
}

// testRevoked: what is revoked says so, also where that was known first, and twice.
func testRevoked(t *testing.T, r *rig) {
	t.Helper()
	all := []index.Revocation{
		{Serial: "2", Authority: "010203", Reason: "keyCompromise", At: noon}, {Serial: "9", Authority: "010203", Reason: "superseded", At: noon},
		{Serial: "1", Authority: "ff", Reason: "of another authority", At: noon},
	}
	for range 2 {
		if err := r.SetRevoked(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	r.keep(t, issued(t, 9, "carol@example.com", extension.Set{}))
	if got := r.serials(t, index.Query{Revoked: true}); got != "9 2" {
		t.Errorf("revoked: %q", got)
	}
	page, err := r.Search(t.Context(), index.Query{Filters: only("serial", "9")})
	if err != nil || page.Certificates[0].RevokedReason != "superseded" || !page.Certificates[0].RevokedAt.Equal(noon) {
		t.Errorf("%+v, %v", page, err)
	}
}

// testPagesUnderInserts: what comes while somebody leafs through is on no page of theirs,
// and nothing is left out or seen twice.
func testPagesUnderInserts(t *testing.T, c store.Config) {
	r := newRig(t, c)
	for n := range 20 {
		r.keep(t, issued(t, int64(100+n/3), "a@example.com", extension.Set{})) // of the same minute, some
	}
	q, seen := index.Query{Filters: only("domain", "example.com"), Limit: 3}, map[uint64]bool{}
	for n := 0; ; n++ {
		page, err := r.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Certificates {
			if seen[c.Index] {
				t.Errorf("entry %d came twice", c.Index)
			}
			seen[c.Index] = true
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
		r.keep(t, issued(t, int64(200+n), "b@example.com", extension.Set{}))
	}
	if len(seen) != 20 {
		t.Errorf("%d entries, want 20", len(seen))
	}
}

// testFirstUses: what an identity that is known uses first is an event, once.
func testFirstUses(t *testing.T, c store.Config) {
	r := newRig(t, c)
	set := ci("acme/tool", 1)
	keep := func(n int64, change func(*extension.Set)) {
		change(&set)
		r.keep(t, issued(t, n, set.BuildConfigURI, set))
	}
	keep(1, func(*extension.Set) {})
	keep(2, func(s *extension.Set) { s.BuildConfigURI = ci("acme/tool", 2).BuildConfigURI }) // another tag of the same workflow
	keep(3, func(s *extension.Set) { s.RunnerEnvironment = "self-hosted" })
	keep(4, func(s *extension.Set) {
		s.BuildConfigURI = "https://git.example/acme/tool/.github/workflows/evil.yml@refs/heads/x"
	})
	keep(5, func(*extension.Set) {})
	r.keep(t, issued(t, 6, "alice@example.com", extension.Set{}), issued(t, 7, "alice@example.com", extension.Set{Issuer: "https://other.example"}))
	events, err := r.Events(t.Context(), 0, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s %s of %s at %d", e.Serial, e.Kind, e.Value, e.Identity, e.Index))
	}
	want := []string{
		"3 new_runner self-hosted of https://git.example/acme/tool at 2",
		"4 new_workflow https://git.example/acme/tool/.github/workflows/evil.yml of https://git.example/acme/tool at 3",
		"7 new_issuer https://other.example of alice@example.com at 6",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if later, err := r.Events(t.Context(), events[1].ID, "alice@example.com", 100); err != nil || len(later) != 1 {
		t.Errorf("%+v, %v", later, err)
	}
}

// testPosition: entries and position are kept together, and only where the position is
// still the one they follow; what a certificate may hold is kept whatever it is.
func testPosition(t *testing.T, c store.Config) {
	r, other := newRig(t, c), newRig(t, c)
	long := "https://git.example/" + strings.Repeat("ä", 3000)
	odd := issued(t, 1, "a\x00b@example.com", extension.Set{})
	r.keep(t, odd, issued(t, 2, long, extension.Set{}))
	at := follow.Position{Size: 2, Hashes: [][]byte{make([]byte, 32), []byte(strings.Repeat("x", 32))}, Checkpoint: []byte("c")}
	if err := other.Keep(t.Context(), r.log, 0, []follow.Entry{{Certificate: odd}}, at); !errors.Is(err, follow.ErrMoved) {
		t.Errorf("the first entries twice: %v", err)
	}
	if err := r.Keep(t.Context(), r.log, 2, []follow.Entry{{Index: 2, Certificate: odd}}, follow.Position{Size: 3, Hashes: at.Hashes, Checkpoint: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	if err := other.Keep(t.Context(), r.log, 2, []follow.Entry{{Index: 2, Certificate: odd}}, at); !errors.Is(err, follow.ErrMoved) {
		t.Errorf("entries twice: %v", err)
	}
	got, err := other.Position(t.Context(), r.log)
	if err != nil || got.Size != 3 || len(got.Hashes) != 2 || string(got.Hashes[1]) != string(at.Hashes[1]) || string(got.Checkpoint) != "c" {
		t.Errorf("%+v, %v", got, err)
	}
	page, err := r.Search(t.Context(), index.Query{})
	if err != nil || len(page.Certificates) != 3 {
		t.Errorf("%+v, %v", page, err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := r.Search(ended, index.Query{}); fault.From(err).Reason != fault.StoreUnavailable {
		t.Errorf("%v", err)
	}
	if _, err := index.New().Search(t.Context(), index.Query{}); fault.From(err).Reason != fault.StoreUnavailable {
		t.Errorf("an index that isn't open: %v", err)
	}
}

// testFilled: a store that is filled from a long log is searched once that is there, or
// once a follower that was killed is back; PostgreSQL's always. A short log in between
// changes nothing.
func testFilled(t *testing.T, c store.Config) {
	r := newRig(t, c)
	keep := func(r *rig, rest uint64) {
		t.Helper()
		entry := follow.Entry{Index: r.size, Certificate: issued(t, int64(r.size)+1, "alice@example.com", extension.Set{})}
		if err := r.Keep(t.Context(), r.log, r.size, []follow.Entry{entry}, follow.Position{Size: r.size + 1, Head: r.size + 1 + rest, Checkpoint: []byte("c")}); err != nil {
			t.Fatal(err)
		}
		r.size++
	}
	found := func(r *rig, want int) {
		t.Helper()
		all, err := r.Search(t.Context(), index.Query{})
		if err != nil || len(all.Certificates) != int(r.size) {
			t.Errorf("the newest: %d, %v; want %d", len(all.Certificates), err, r.size)
		}
		page, err := r.Search(t.Context(), index.Query{Filters: only("san", "alice@example.com")})
		if want < 0 && (err == nil || fault.From(err).Reason != fault.StoreUnavailable) || want >= 0 && err != nil || len(page.Certificates) != max(0, want) {
			t.Errorf("%d found, %v; want %d", len(page.Certificates), err, want)
		}
	}
	while := func(n int) int { // nothing is found while SQLite is filled
		if c.URL == "" {
			return -1
		}
		return n
	}
	indexes := func(atLeast, atMost int) {
		t.Helper()
		list, n := map[bool]string{true: "sqlite_master WHERE type = 'index' AND sql IS NOT NULL", false: "pg_indexes WHERE schemaname = 'public'"}[c.URL == ""], 0
		if err := storetest.Open(t, c).QueryRow(t.Context(), "SELECT COUNT(*) FROM "+list).Scan(&n); err != nil || n < atLeast || n > atMost {
			t.Errorf("%d indexes, %v", n, err)
		}
	}
	keep(r, 100_000)
	found(r, while(1))
	indexes(5, max(7, while(50)))
	short := &rig{Index: r.Index, log: ctlog.Description{ID: [32]byte{0xcd}}}
	keep(short, 0)
	r.size++ // of both logs
	found(r, while(2))
	r.size--
	back := newRig(t, c)
	back.size = r.size
	keep(back, 0)
	back.size++
	found(back, 3)
	indexes(36, 50)
	back.size--
	keep(back, 100_000)
	keep(back, 10)
	back.size++
	found(back, while(5))
	signed := index.Signed{Certificate: catest.Sign(t, &x509.Certificate{SerialNumber: big.NewInt(1 << 20)}, &x509.Certificate{}, catest.Key(t).Public(), catest.Key(t))}
	if err := back.Tell(t.Context(), signed, noon); (fault.From(err).Reason == fault.StoreUnavailable) != (while(0) < 0) {
		t.Errorf("a bundle's certificate is looked for: %v", err)
	}
	back.size--
	keep(back, 0)
	back.size++
	found(back, 6)
	if c.URL != "" {
		return
	}
	// A log that gives nothing more, or a little now and then, keeps no search from being
	// answered: at the next look the indexes are made, and stay.
	back.size--
	keep(back, 100_000)
	back.size++
	found(back, -1)
	back.Stall()
	if _, err := back.Position(t.Context(), short.log); err != nil {
		t.Fatal(err)
	}
	found(back, 7)
	back.size--
	keep(back, 100_000)
	back.size++
	found(back, 8)
	indexes(36, 50)
	// Indexes that can't be made are said to be missing, and not tried again at each entry.
	ctx, stop := context.WithCancel(t.Context())
	failing := &rig{Index: index.New(), log: ctlog.Description{ID: [32]byte{0xef}}}
	if err := failing.Open(ctx, storetest.Open(t, c)); err != nil {
		t.Fatal(err)
	}
	keep(failing, 100_000)
	stop()
	err := failing.Keep(t.Context(), failing.log, 1, nil, follow.Position{Size: 2, Head: 2, Checkpoint: []byte("c")})
	if err == nil || !strings.Contains(err.Error(), "the indexes that searches need") {
		t.Errorf("%v", err)
	}
	failing.size = 2
	keep(failing, 0)
	if _, err := failing.Position(t.Context(), failing.log); err != nil {
		t.Errorf("at once: %v", err)
	}
	failing.Stall()
	if _, err := failing.Position(t.Context(), failing.log); err == nil {
		t.Error("they aren't tried again later")
	}
}

// TestRead: what is read of a certificate is what crypto/x509 reads.
func TestRead(t *testing.T) {
	for _, year := range []int{2026, 2049, 2051} { // from 2050 on, times are of another kind
		want := catest.Sign(t, &x509.Certificate{
			SerialNumber: new(big.Int).Lsh(big.NewInt(1), 70), NotBefore: time.Date(year, 1, 2, 3, 4, 5, 0, time.UTC), NotAfter: time.Date(2052, 1, 1, 0, 0, 0, 0, time.UTC),
			EmailAddresses: []string{"alice@example.com"},
		}, &x509.Certificate{SubjectKeyId: []byte{1, 2, 3}}, catest.Key(t).Public(), catest.Key(t))
		for precert, der := range map[bool][]byte{false: want.Raw, true: want.RawTBSCertificate} {
			got, ok := index.Read(follow.Entry{Precert: precert, Certificate: der})
			if !ok || got.SerialNumber.Cmp(want.SerialNumber) != 0 || !got.NotBefore.Equal(want.NotBefore) || !got.NotAfter.Equal(want.NotAfter) ||
				!bytes.Equal(got.RawSubjectPublicKeyInfo, want.RawSubjectPublicKeyInfo) || !bytes.Equal(got.AuthorityKeyId, want.AuthorityKeyId) || len(got.Extensions) != len(want.Extensions) {
				t.Errorf("%d, precertificate %v: %+v", year, precert, got)
			}
			for n := range der {
				if got, ok := index.Read(follow.Entry{Precert: precert, Certificate: der[:n]}); ok {
					t.Errorf("%d bytes of %d are read: %+v", n, len(der), got)
				}
			}
		}
	}
}

// FuzzDecode: whatever a log holds is decoded to something that both stores take.
func FuzzDecode(f *testing.F) {
	f.Add(issued(f, 1, "alice@example.com", extension.Set{}), false)
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x01}, true)
	f.Fuzz(func(t *testing.T, der []byte, precert bool) {
		for _, v := range index.Decode(follow.Entry{Certificate: der, Precert: precert}) {
			if strings.ContainsRune(v, 0) || strings.ToValidUTF8(v, "") != v || len(v) > 1300 {
				t.Errorf("%q", v)
			}
		}
	})
}

// testArtifacts: a digest is found once a bundle has shown who signed it, and only then.
func testArtifacts(t *testing.T, c store.Config) {
	r := newRig(t, c)
	key, der := issuedWithKey(t, 1, "alice@example.com", extension.Set{})
	r.keep(t, der)
	digest := sha256.Sum256([]byte("artifact"))
	sign := func(digest []byte) []byte {
		signature, err := key.Sign(rand.Reader, digest, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	bundle := func(certificate []byte, content string) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{"rawBytes":%q}},%s}`, base64.StdEncoding.EncodeToString(certificate), content)
	}
	message := func(digest, signature []byte) string {
		return fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":%q},"signature":%q}`, base64.StdEncoding.EncodeToString(digest), base64.StdEncoding.EncodeToString(signature))
	}
	envelope := func(payload string) string {
		pae := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 28 application/vnd.in-toto+json %d %s", len(payload), payload))
		return fmt.Sprintf(`"dsseEnvelope":{"payload":%q,"payloadType":"application/vnd.in-toto+json","signatures":[{"sig":%q}]}`,
			base64.StdEncoding.EncodeToString([]byte(payload)), base64.StdEncoding.EncodeToString(sign(pae[:])))
	}
	other := sha256.Sum256([]byte("another"))
	for name, tt := range map[string]struct{ text, fault string }{
		"not JSON":          {"hello", "isn't a Sigstore bundle"},
		"no certificate":    {"{}", "has no certificate"},
		"another digest":    {bundle(der, message(other[:], sign(digest[:]))), "isn't over the digest"},
		"short digest":      {bundle(der, message(digest[:4], sign(digest[:4]))), "isn't over the digest"},
		"another's key":     {bundle(issued(t, 1, "alice@example.com", extension.Set{}), message(digest[:], sign(digest[:]))), "isn't over the digest"},
		"no signature":      {bundle(der, `"dsseEnvelope":{}`), "no signature of its"},
		"no statement":      {bundle(der, envelope("hello")), "something else than"},
		"nothing is signed": {bundle(der, envelope("{}")), "names 0 artifacts"},
	} {
		if _, err := index.ParseBundle([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: %v, want %q", name, err, tt.fault)
		}
	}
	tell := func(text string) error {
		signed, err := index.ParseBundle([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return r.Tell(t.Context(), signed, noon)
	}
	strangersKey, stranger := issuedWithKey(t, 1, "alice@example.com", extension.Set{})
	key, mine := strangersKey, key
	if err := tell(bundle(stranger, message(digest[:], sign(digest[:])))); err == nil || !strings.Contains(err.Error(), "isn't in the index") {
		t.Errorf("a certificate of the same serial with another key: %v", err)
	}
	key = mine
	for range 2 {
		if err := tell(bundle(der, message(digest[:], sign(digest[:])))); err != nil {
			t.Fatal(err)
		}
	}
	if err := tell(bundle(der, envelope(fmt.Sprintf(`{"subject":[{"digest":{"sha256":"%x"}}]}`, other)))); err != nil {
		t.Fatal(err)
	}
	for _, q := range []index.Query{
		{Filters: only("digest", fmt.Sprintf("%x", digest))}, {Filters: only("digest", fmt.Sprintf("%x", other))},
		{Filters: begins("digest", fmt.Sprintf("%x", digest)[:8])}, {Filters: only("certificate_fingerprint", fingerprint(der))},
	} {
		if got := r.serials(t, q); got != "1" {
			t.Errorf("%+v: %q", q, got)
		}
	}
}

func fingerprint(der []byte) string { return fmt.Sprintf("%x", sha256.Sum256(der)) }
