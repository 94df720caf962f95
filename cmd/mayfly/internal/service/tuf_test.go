package service

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// describedLog is a log of which only the description is asked.
type describedLog struct {
	ctlog.Log
	about ctlog.Description
}

func (l describedLog) Description() ctlog.Description { return l.about }

// TestLogsAreHeldBack: a log that the published trust root doesn't list, or hasn't listed
// for as long as clients need, takes no certificates before they can know it.
func TestLogsAreHeldBack(t *testing.T) {
	t.Parallel()
	const propagation = 10 * time.Hour
	began := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	later := began.Add(100 * time.Hour)
	key, online := kms.InMemory(catest.Key(t)), kms.InMemory(catest.Key(t))
	rootKey := catest.Key(t)
	root := catest.Sign(t, catest.Authority("Example", "root", began, began.AddDate(9, 0, 0)), nil, rootKey.Public(), rootKey)
	chain, err := trustroot.ParseChain([][]byte{root.Raw})
	if err != nil {
		t.Fatal(err)
	}
	history := trustroot.History{Authorities: []trustroot.Authority{{Chain: chain, URL: "https://ca.example", Start: began}}}
	newLog := func() ctlog.Description {
		spki, err := x509.MarshalPKIXPublicKey(catest.Key(t).Public())
		if err != nil {
			t.Fatal(err)
		}
		return ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: "https://log.example", Start: began}
	}
	first, second, third := newLog(), newLog(), newLog()
	dir := filepath.Join(t.TempDir(), "tuf")
	publish := func(draft func(trustroot.Documents) (*tuf.Draft, error), now time.Time) *tuf.Repository {
		t.Helper()
		documents, err := trustroot.Render(history)
		if err != nil {
			t.Fatal(err)
		}
		d, err := draft(documents)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Sign(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		r, err := tuf.Publish(t.Context(), dir, d, online, now)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	only := []crypto.PublicKey{key.Public()}
	history.CTLogs = []ctlog.Description{first}
	r := publish(func(d trustroot.Documents) (*tuf.Draft, error) {
		return tuf.Init(tuf.Keys{Root: only, Targets: only, Threshold: 1, Online: online.Public()}, d, began)
	}, began)
	history.CTLogs = []ctlog.Description{first, second}
	r = publish(func(d trustroot.Documents) (*tuf.Draft, error) { return tuf.Stage(r, d, false, nil, later) }, later)

	var said strings.Builder
	s := &Service{Dependencies: Dependencies{Now: func() time.Time { return later }, Logger: slog.New(slog.NewTextHandler(&said, nil))}}
	for name, c := range map[string]struct {
		log         ctlog.Description
		forced      bool
		r           *tuf.Repository
		propagation time.Duration
		begins      time.Time
	}{
		"known from the beginning": {first, false, r, propagation, began},
		"listed now":               {second, false, r, propagation, later.Add(9 * time.Hour)},
		"not listed":               {third, false, r, propagation, never},
		"forced":                   {third, true, r, propagation, began},
		"without a guard":          {third, false, r, 0, began},
		"without a repository":     {third, false, nil, propagation, began},
	} {
		said.Reset()
		got := s.holdBack(describedLog{about: c.log}, c.forced, c.r, c.propagation).Description().Start
		if held := strings.Contains(said.String(), "takes no certificates before clients can know it"); !got.Equal(c.begins) || held == c.begins.Equal(began) {
			t.Errorf("%s: it begins %v, and the log says %q", name, got, said.String())
		}
	}
}
