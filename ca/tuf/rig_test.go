package tuf

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// noon is a moment in the middle of a day.
var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// rig is a repository with its keys: any two of three people.
type rig struct {
	testing.TB
	dir    string
	people []kms.Signer
	online kms.Signer
	input  trustroot.History
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{TB: t, dir: filepath.Join(t.TempDir(), "tuf"), online: newSigner(t)}
	for range 3 {
		r.people = append(r.people, newSigner(t))
	}
	r.input = trustroot.History{
		Authorities: []trustroot.Authority{newAuthority(t, "first", noon.AddDate(0, -1, 0))},
		CTLogs:      []ctlog.Description{newLog(t, "https://log.example/1")},
	}
	return r
}

func newSigner(t testing.TB) kms.Signer { t.Helper(); return kms.InMemory(catest.Key(t)) }

func newAuthority(t testing.TB, name string, start time.Time) trustroot.Authority {
	t.Helper()
	key := catest.Key(t)
	root := catest.Sign(t, catest.Authority("Example", name+" root", start, start.AddDate(9, 0, 0)), nil, key.Public(), key)
	issuing := catest.Sign(t, catest.Authority("Example", name, start, start.AddDate(5, 0, 0)), root, catest.Key(t).Public(), key)
	return trustroot.Authority{Chain: []*x509.Certificate{issuing, root}, URL: "https://ca.example", Operator: "ca.example", Start: start}
}

func newLog(t testing.TB, url string) ctlog.Description {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(catest.Key(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	return ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: url, Operator: "example", Start: noon.AddDate(0, -1, 0)}
}

func (r *rig) documents() trustroot.Documents {
	r.Helper()
	d, err := trustroot.Render(r.input)
	r.must(err)
	return d
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func public(keys ...kms.Signer) []crypto.PublicKey {
	all := make([]crypto.PublicKey, len(keys))
	for i, k := range keys {
		all[i] = k.Public()
	}
	return all
}

func (r *rig) keys() Keys {
	return Keys{Root: public(r.people...), Targets: public(r.people...), Threshold: 2, Online: r.online.Public()}
}

// carried is a draft as it arrives elsewhere: by its file.
func (r *rig) carried(d *Draft) *Draft {
	r.Helper()
	b, err := d.Format()
	r.must(err)
	d, err = ParseDraft(b)
	r.must(err)
	return d
}

// signed is a draft that the keys have signed, each on a machine of its own.
func (r *rig) signed(d *Draft, keys ...kms.Signer) *Draft {
	r.Helper()
	for _, k := range keys {
		d = r.carried(d)
		_, err := d.Sign(r.Context(), k)
		r.must(err)
	}
	return r.carried(d)
}

func (r *rig) publish(d *Draft, now time.Time) *Repository {
	r.Helper()
	published, err := Publish(r.Context(), r.dir, d, r.online, now)
	r.must(err)
	return published
}

// begin publishes the first root and targets.
func (r *rig) begin(now time.Time) *Repository {
	r.Helper()
	d, err := Init(r.keys(), r.documents(), now)
	r.must(err)
	return r.publish(r.signed(d, r.people[0], r.people[2]), now)
}

// stage is the draft of what the input says now.
func (r *rig) stage(now time.Time) *Draft {
	r.Helper()
	d, err := Stage(r.load(), r.documents(), false, nil, now)
	r.must(err)
	return d
}

func (r *rig) load() *Repository {
	r.Helper()
	loaded, err := Load(r.dir)
	r.must(err)
	return loaded
}

// serve is an Online that has r's repository served.
func (r *rig) serve(now func() time.Time, mark string) *Online {
	r.Helper()
	o, err := NewOnline(r.options(now, mark))
	r.must(err)
	r.take(o)
	return o
}

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

// take has o serve what is in the folder.
func (r *rig) take(o *Online) {
	r.Helper()
	commit, _, err := o.Prepare(r.Context(), r.load())
	r.must(err)
	commit()
}
