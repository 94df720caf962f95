package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/server/page"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// indexPlan says what is measured of the index: a log of so many entries, half of them of
// people and half of CI systems, is followed into a store that is then searched.
type indexPlan struct {
	entries  int
	postgres string // a database's URL; empty: SQLite
	searches int    // of each kind
}

// What the entries are made of.
const (
	people       = 50_000
	repositories = 5_000
	tags         = 4 // of each repository
	chunk        = 64 * 256
)

// synthetic is a log whose entries are made as they are wanted. Their certificates
// differ from a few prototypes in serial, key, time, commit and run.
type synthetic struct {
	dir                 logdir.Dir
	key                 *ecdsa.PrivateKey
	verifier            note.Verifier
	about               ctlog.Description
	tree                *compact.Range
	keys                [][]byte // points, to be put into certificates
	spki                [][]byte
	subjects            [][]byte // TBSCertificates, those of people first
	names, repositories []string // of them
	random              *mathrand.Rand
	begin               time.Time
	some                []made // some of the entries, to search for
}

// made is what an entry can be searched by.
type made struct{ serial, key, san, repository, commit, run string }

// The places in a prototype that an entry fills in.
var (
	serialMark = bytes.Repeat([]byte{0x5a}, 19)
	commitMark = strings.Repeat("c0ffee", 6) + "c0ff"
	runMark    = "0000000000"
	timeMark   = "260101000000Z"
	endMark    = "260101001000Z"
)

func newSynthetic(dir string) (*synthetic, error) {
	s := &synthetic{dir: logdir.Dir(dir), random: mathrand.New(mathrand.NewPCG(1, 2)), begin: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s.tree = (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, err
	}
	s.about = ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: "https://log.example/2026"}
	if s.verifier, err = checkpoint.VerifierOf(s.about); err != nil {
		return nil, err
	}
	for range 4096 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			return nil, err
		}
		s.keys, s.spki = append(s.keys, point), append(s.spki, spki)
	}
	for i := range people {
		name := fmt.Sprintf("person%05d@team%03d.example", i, i%500)
		tbs, err := s.prototype(name, nil, extension.Set{Issuer: fmt.Sprintf("https://accounts%d.example", i%5), TokenSubject: name})
		if err != nil {
			return nil, err
		}
		s.subjects, s.names, s.repositories = append(s.subjects, tbs), append(s.names, name), append(s.repositories, "")
	}
	for i := range repositories * tags {
		repository := fmt.Sprintf("https://github.com/org%03d/repository%04d", i/tags%200, i/tags)
		ref := fmt.Sprintf("refs/tags/v%d.0.0", i%tags)
		workflow := repository + "/.github/workflows/release.yml@" + ref
		san, err := url.Parse(workflow)
		if err != nil {
			return nil, err
		}
		short := strings.TrimPrefix(repository, "https://github.com/")
		tbs, err := s.prototype("", san, extension.Set{
			Issuer: "https://token.actions.githubusercontent.com", GitHubTrigger: "push", GitHubSHA: commitMark, GitHubWorkflow: "release",
			GitHubRepository: short, GitHubRef: ref, BuildSignerURI: workflow, BuildSignerDigest: commitMark,
			RunnerEnvironment: "github-hosted", SourceRepositoryURI: repository, SourceRepositoryDigest: commitMark, SourceRepositoryRef: ref,
			SourceRepositoryID: fmt.Sprint(100_000 + i/tags), SourceRepositoryOwnerURI: repository[:strings.LastIndexByte(repository, '/')],
			SourceRepositoryOwnerID: fmt.Sprint(i / tags % 200), BuildConfigURI: workflow, BuildConfigDigest: commitMark, BuildTrigger: "push",
			RunInvocationURI: repository + "/actions/runs/" + runMark + "/attempts/1", SourceRepositoryVisibility: "public",
			TokenSubject: "repo:" + short + ":ref:" + ref,
		})
		if err != nil {
			return nil, err
		}
		s.subjects, s.names, s.repositories = append(s.subjects, tbs), append(s.names, workflow), append(s.repositories, repository)
	}
	return s, nil
}

// prototype is a TBSCertificate with the marks in it.
func (s *synthetic) prototype(email string, san *url.URL, set extension.Set) ([]byte, error) {
	extensions, err := set.Extensions()
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serialMark), NotBefore: s.begin, NotAfter: s.begin.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, ExtraExtensions: extensions,
	}
	if san != nil {
		c.URIs = []*url.URL{san}
	} else {
		c.EmailAddresses = []string{email}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, &x509.Certificate{SubjectKeyId: make([]byte, 20)}, s.key.Public(), s.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return parsed.RawTBSCertificate, nil
}

// grow adds entries to the log and publishes a checkpoint over them.
func (s *synthetic) grow(ctx context.Context, n int) error {
	own, err := s.key.PublicKey.Bytes()
	if err != nil {
		return err
	}
	size := s.tree.End()
	entries := make([]logdir.Entry, n)
	for i := range entries {
		position := size + uint64(i)
		at := s.begin.Add(time.Duration(position) * 10 * time.Second)
		which := s.random.IntN(people) // the other half are CI's
		if position%2 == 1 {
			which = people + s.random.IntN(len(s.subjects)-people)
		}
		key, tbs := s.random.IntN(len(s.keys)), bytes.Clone(s.subjects[which])
		serial, point := make([]byte, len(serialMark)), s.keys[key]
		binary.BigEndian.PutUint64(serial, (s.random.Uint64()|1<<56)&^(1<<63))
		binary.BigEndian.PutUint64(serial[8:], position)
		commit, run := fmt.Sprintf("%040x", s.random.Uint64()), fmt.Sprintf("%010d", position)
		for mark, value := range map[string]string{
			string(serialMark): string(serial), string(own): string(point), timeMark: at.Format("060102150405Z"), endMark: at.Add(10 * time.Minute).Format("060102150405Z"),
			commitMark: commit, "/runs/" + runMark: "/runs/" + run,
		} {
			tbs = bytes.ReplaceAll(tbs, []byte(mark), []byte(value))
		}
		if entries[i], err = s.entry(position, at, tbs); err != nil {
			return err
		}
		if err := s.tree.Append(entries[i].Hash, nil); err != nil {
			return err
		}
		if i%(n/16+1) == 0 {
			spki := sha256.Sum256(s.spki[key])
			m := made{serial: strings.TrimLeft(hex.EncodeToString(serial), "0"), key: hex.EncodeToString(spki[:]), san: s.names[which], repository: s.repositories[which]}
			if m.repository != "" {
				m.commit, m.run = commit, m.repository+"/actions/runs/"+run+"/attempts/1"
			}
			s.some = append(s.some, m)
		}
	}
	if err := s.dir.Grow(ctx, size, entries); err != nil {
		return err
	}
	return s.publish()
}

// entry is an entry of a data tile (c2sp.org/static-ct-api, TileLeaf).
func (s *synthetic) entry(position uint64, at time.Time, tbs []byte) (logdir.Entry, error) {
	vector := func(b []byte, size int, value []byte) []byte {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(value)))
		return append(append(b, length[8-size:]...), value...)
	}
	raw := binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))
	raw = append(raw, 0, 1)
	raw = append(raw, make([]byte, 32)...)
	raw = vector(raw, 3, tbs)
	var index [8]byte
	binary.BigEndian.PutUint64(index[:], position)
	raw = vector(raw, 2, append([]byte{0, 0, 5}, index[3:]...))
	raw = vector(raw, 3, tbs) // as long as the precertificate, which nobody reads
	raw = vector(raw, 2, make([]byte, 64))
	leaves, err := logdir.ParseEntries(raw, position)
	if err != nil {
		return logdir.Entry{}, err
	}
	return logdir.Entry{Raw: raw, Hash: leaves[0].Hash()}, nil
}

func (s *synthetic) publish() error {
	root, err := s.tree.GetRootHash(nil)
	if err != nil {
		return err
	}
	tree, now := checkpoint.Tree{Size: s.tree.End(), Root: root}, uint64(time.Now().UnixMilli())
	digest := sha256.Sum256(checkpoint.TreeHead(now, tree))
	signature, err := s.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	signed := binary.BigEndian.AppendUint64(nil, now)
	signed = append(signed, 4, 3, byte(len(signature)>>8), byte(len(signature))) // RFC 5246 §4.7: SHA-256, ECDSA
	text := fmt.Appendf(nil, "%s\n%d\n%s\n", s.verifier.Name(), tree.Size, base64.StdEncoding.EncodeToString(root))
	return os.WriteFile(s.dir.Path("checkpoint"), checkpoint.Note(text, append(signed, signature...), s.verifier), 0o600)
}

// runIndex measures the index and the page over it, and prints a table.
func runIndex(ctx context.Context, p indexPlan, dir string) (string, error) {
	s, err := newSynthetic(filepath.Join(dir, "log"))
	if err != nil {
		return "", err
	}
	c := store.Config{Path: setting.Path(filepath.Join(dir, "index.db")), URL: p.postgres}
	if p.postgres != "" {
		c.Path = ""
	}
	db, err := store.Open(ctx, c)
	if err != nil {
		return "", err
	}
	defer db.Close()
	i := index.New()
	if err := i.Open(ctx, db); err != nil {
		return "", err
	}
	f, err := follow.New([]remote.Log{{Description: s.about, URL: "http://log", Client: remote.Local(http.FileServer(http.Dir(string(s.dir))))}},
		follow.Options{Keeper: i, Evidence: dir})
	if err != nil {
		return "", err
	}
	for s.tree.End() < uint64(p.entries) { // 4 kB an entry
		if err := s.grow(ctx, min(chunk, p.entries-int(s.tree.End()))); err != nil {
			return "", err
		}
	}
	var out strings.Builder
	begin, used := time.Now(), ownCPU()
	for f.Status()[0].Followed < s.tree.End() {
		if err := f.Look(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return "", err
		}
		fmt.Fprintf(os.Stderr, "bench: %d entries, %.0f a second of CPU\n", f.Status()[0].Followed, float64(f.Status()[0].Followed)/(ownCPU()-used).Seconds())
	}
	cpu, wall := ownCPU()-used, time.Since(begin)
	fmt.Fprintf(&out, "| followed | %d entries; %.0f a second of CPU, %.0f a second |\n", p.entries, float64(p.entries)/cpu.Seconds(), float64(p.entries)/wall.Seconds())
	if p.postgres == "" {
		if _, err := db.Exec(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			return "", err
		}
		info, err := os.Stat(string(c.Path))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "| bytes a certificate | %d |\n", info.Size()/int64(p.entries))
	} else {
		var size int64
		if _, err := db.Exec(ctx, "ANALYZE"); err != nil { // as autovacuum does
			return "", err
		}
		if err := db.QueryRow(ctx, "SELECT pg_database_size(current_database())").Scan(&size); err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "| bytes a certificate | %d |\n", size/int64(p.entries))
	}
	if err := s.search(ctx, i, p.searches, &out); err != nil {
		return "", err
	}
	err = s.browse(ctx, i, f, p.searches, &out)
	return out.String(), err
}

// shown is what the page shows beside the index: the log and its CA.
type shown struct {
	log     *follow.Follower
	trusted trustroot.History
}

func (s shown) Trust() (trustroot.History, []byte, error)             { return s.trusted, nil, nil }
func (s shown) Health(context.Context) page.Health                    { return page.Health{Logs: s.log.Status()} }
func (s shown) Refusals(context.Context) (all []audit.Event, _ error) { return all, nil }

// browse measures the page over the index and the log, each time for something else.
func (s *synthetic) browse(ctx context.Context, i *index.Index, f *follow.Follower, times int, out *strings.Builder) error {
	now := s.begin.Add(time.Duration(s.tree.End()) * 10 * time.Second)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: s.begin, NotAfter: now.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, s.key.Public(), s.key)
	if err != nil {
		return err
	}
	if authority, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	site := page.New(page.Options{
		Config: page.Config{Access: page.Open}, PublicURL: "https://ca.example", Index: i, Entries: f, Timeout: time.Minute,
		CA: shown{f, trustroot.History{
			Authorities: []trustroot.Authority{{Chain: []*x509.Certificate{authority}, URL: "https://ca.example", Start: s.begin}},
			CTLogs:      []ctlog.Description{s.about},
		}},
		Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler),
	})
	for _, view := range []struct {
		name string
		path func(made) string
	}{
		{"feed", func(made) string { return "/" }},
		{"search", func(m made) string { return "/search?san=" + url.QueryEscape(m.san) }},
		{"certificate", func(m made) string { return "/certificates/" + m.serial }},
		{"trust", func(made) string { return "/trust" }},
		{"health", func(made) string { return "/health" }},
	} {
		var took, used []time.Duration
		for range times {
			w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "https://ca.example"+view.path(s.some[s.random.IntN(len(s.some))]), nil)
			begin, before := time.Now(), ownCPU()
			site.ServeHTTP(w, r)
			if took, used = append(took, time.Since(begin)), append(used, ownCPU()-before); w.Code != http.StatusOK {
				return fmt.Errorf("the page %s answers %d: %s", r.URL, w.Code, w.Body)
			}
		}
		fmt.Fprintf(out, "| page: %s | %s |\n", view.name, spread(took, used))
	}
	return nil
}

// search measures each kind of search, each time for something else.
func (s *synthetic) search(ctx context.Context, i *index.Index, searches int, out *strings.Builder) error {
	where := func(field string, prefix bool, value func(made) string) func(made) index.Query {
		return func(m made) index.Query {
			return index.Query{Filters: []index.Filter{{Field: field, Value: value(m), Prefix: prefix}}}
		}
	}
	host := func(name string) string { return name[strings.LastIndexByte(name, '@')+1:] }
	half := func(text string) string { return text[:len(text)-2] }
	for _, kind := range []struct {
		name string
		of   func(made) index.Query
		ci   bool
	}{
		{"newest", func(made) index.Query { return index.Query{} }, false},
		{"serial", where("serial", false, func(m made) string { return m.serial }), false},
		{"beginning of a serial", where("serial", true, func(m made) string { return m.serial[:12] }), false},
		{"key_fingerprint", where("key_fingerprint", false, func(m made) string { return m.key }), false},
		{"san", where("san", false, func(m made) string { return m.san }), false},
		{"beginning of a san", where("san", true, func(m made) string { return half(m.san) }), true},
		{"domain", where("domain", false, func(m made) string { return host(m.san) }), false},
		{"issuer, half of all", where("issuer", false, func(made) string { return "https://token.actions.githubusercontent.com" }), false},
		{"repository", where("source_repository_uri", false, func(m made) string { return m.repository }), true},
		{"organization", where("source_repository_uri", true, func(m made) string { return m.repository[:26] }), true},
		{"workflow", where("workflow", false, func(m made) string { return m.repository + "/.github/workflows/release.yml" }), true},
		{"commit", where("github_sha", false, func(m made) string { return m.commit }), true},
		{"run", where("run_invocation_uri", false, func(m made) string { return m.run }), true},
		{"beginning of all runs", where("run_invocation_uri", true, func(made) string { return "https://github.com/" }), true},
		{"a day", func(made) index.Query {
			from := s.begin.Add(time.Duration(s.random.Uint64N(s.tree.End())) * 10 * time.Second)
			return index.Query{From: from, To: from.Add(24 * time.Hour)}
		}, false},
		{"san and a day", func(m made) index.Query {
			q := where("san", false, func(m made) string { return m.san })(m)
			q.From, q.To = s.begin, s.begin.Add(24*time.Hour)
			return q
		}, false},
		{"nobody", where("san", false, func(m made) string { return m.san + "x" }), false},
	} {
		var took, used []time.Duration
		found := 0
		for len(took) < searches {
			m := s.some[s.random.IntN(len(s.some))]
			if kind.ci != (m.repository != "") && (kind.ci || kind.name == "domain") {
				continue
			}
			q, begin, before := kind.of(m), time.Now(), ownCPU()
			page, err := i.Search(ctx, q)
			if err != nil {
				return err
			}
			took, used, found = append(took, time.Since(begin)), append(used, ownCPU()-before), found+len(page.Certificates)
		}
		fmt.Fprintf(out, "| %s | %s; %.2f found on average |\n", kind.name, spread(took, used), float64(found)/float64(len(took)))
	}
	return nil
}

// spread is what most calls took, by the clock and of this process's CPU, which whoever
// else is at work here lengthens less.
func spread(took, used []time.Duration) string {
	slices.Sort(took)
	slices.Sort(used)
	at := func(all []time.Duration, percent int) float64 { return all[len(all)*percent/100].Seconds() * 1000 }
	return fmt.Sprintf("p50 %.1f ms, p95 %.1f ms; of CPU p50 %.1f ms, p95 %.1f ms", at(took, 50), at(took, 95), at(used, 50), at(used, 95))
}

// ownCPU is what this process has used of the processors.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
