package revoke

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// How lists are kept.
const (
	validity  = 7 * 24 * time.Hour // from thisUpdate to nextUpdate
	resignAge = 24 * time.Hour     // how old a list gets
	maxAge    = 300                // seconds that a cache may keep one
)

// ListPath is where lists are served: ListPath + ID + ".crl".
const ListPath = "/crl/"

// Lists keeps a list for each authority: on disk, signed again daily and when a
// certificate is revoked, beside the requests. What an authority signed last stays, and
// is served for good. It is safe for concurrent use.
type Lists struct {
	log    *Log
	dir    logdir.Dir
	o      ListOptions
	signed *prometheus.CounterVec
	behind atomic.Int64 // lists that aren't as they should be

	mu      sync.Mutex           // guards what follows
	active  *held                // nil before Use
	ended   []*held              // whose last list is to be signed
	current map[string]list      // by ID
	again   map[string]time.Time // when what failed is tried again; Run's own
	untold  bool                 // Changed is to be told of current; Run's own
	woken   chan struct{}
}

// held is an authority whose key is kept open for lists.
type held struct {
	Signing
	release func()
}

// list is what is known of a list on disk.
type list struct {
	number, entries uint64
	at, next        time.Time
}

// ListOptions are what Lists works with.
type ListOptions struct {
	// Open opens the key of an authority that signs no more, by its ID, for as long as
	// it isn't released. The error says that it can't be had.
	Open func(ctx context.Context, id string) (s Signing, release func(), err error)
	// Changed is told of all lists, in DER by ID, and the sum of their numbers, once at the
	// start and when any of them has changed; nil where nobody asks.
	Changed func(ctx context.Context, number uint64, lists map[string][]byte)
	Now     func() time.Time
	Logger  *slog.Logger
}

// openLists reads the lists that are on disk. It refuses one that is newer than the
// log: numbers never go back.
func openLists(c Config, log *Log, o ListOptions) (*Lists, error) {
	l := &Lists{
		log: log, dir: logdir.Dir(filepath.Join(string(c.Directory), listsName)), o: o, current: map[string]list{}, again: map[string]time.Time{}, untold: true, woken: make(chan struct{}, 1),
		signed: metric.Counter("mayfly_revocation_lists_signed_total", "Lists of revoked certificates that were to be signed, by outcome (ok, failed).", "outcome"),
	}
	l.signed.WithLabelValues("ok")
	l.signed.WithLabelValues("failed")
	if err := l.dir.Make(); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(string(l.dir))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".crl")
		if !ok {
			continue
		}
		der, err := os.ReadFile(l.dir.Path(f.Name()))
		if err != nil {
			return nil, err
		}
		on, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("the list %s is damaged: restore it, or remove it and it is signed again where its key is: %w", f.Name(), err)
		}
		l.current[id] = known(on)
		if n := on.Number.Uint64(); n > log.Size() {
			return nil, fmt.Errorf("the list %s has the number %d, and there are %d statements: restore the newest directory", f.Name(), n, log.Size())
		}
	}
	return l, nil
}

func known(on *x509.RevocationList) list {
	return list{on.Number.Uint64(), uint64(len(on.RevokedCertificateEntries)), on.ThisUpdate, on.NextUpdate}
}

// Use says which authority signs from now on, whose key stays open until release is
// called: after its last list, when another has followed.
func (l *Lists) Use(s Signing, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.active; before != nil && before.Certificate.Equal(s.Certificate) {
		before.release() // the same key, opened again
	} else if before != nil {
		l.ended = append(l.ended, &held{Signing{before.Certificate, before.Key, true}, before.release}) // another: sign may be reading before
	}
	l.active = &held{s, release}
	l.wake()
}

func (l *Lists) wake() {
	select {
	case l.woken <- struct{}{}:
	default:
	}
}

// The waits of Run: between looks, and after lists were signed, of which a large one
// takes seconds.
const (
	look       = time.Minute
	shortPause = time.Second
	longPause  = 30 * time.Second

	retry = time.Minute // after a failure
)

// Run keeps the lists until ctx ends.
func (l *Lists) Run(ctx context.Context) error {
	defer l.close()
	for ctx.Err() == nil {
		begun := time.Now()
		l.sign(ctx)
		if wait.For(ctx, min(max(shortPause, 4*time.Since(begun)), longPause)) == nil {
			_ = wait.OrWoken(ctx, look, l.woken)
		}
	}
	return nil
}

func (l *Lists) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range append(l.ended, l.active) {
		if h != nil {
			h.release()
		}
	}
	l.active, l.ended = nil, nil
}

// sign signs the lists that are due.
func (l *Lists) sign(ctx context.Context) {
	l.mu.Lock()
	active, ended, ids := l.active, slices.Clone(l.ended), slices.Collect(maps.Keys(l.current))
	l.mu.Unlock()
	behind := map[string]bool{} // by ID, of all that were looked at
	renew := func(id string, h *held, stale func(list) bool) bool {
		behind[id] = !l.renew(ctx, id, h, stale)
		return !behind[id]
	}
	for _, h := range ended {
		if renew(ID(h.Certificate), h, func(on list) bool { return !on.final() }) {
			l.mu.Lock()
			l.ended = slices.DeleteFunc(l.ended, func(e *held) bool { return e == h })
			l.mu.Unlock()
			h.release()
		}
	}
	if active != nil {
		renew(ID(active.Certificate), active, func(on list) bool { return l.old(on) || on.final() && !active.Last })
	}
	for _, id := range append(ids, l.log.authorities()...) {
		if _, looked := behind[id]; !looked {
			renew(id, nil, func(on list) bool { return !on.final() && l.old(on) })
		}
	}
	maps.DeleteFunc(behind, func(_ string, yes bool) bool { return !yes })
	l.behind.Store(int64(len(behind)))
	l.tell(ctx)
}

// tell tells of the lists as they are on disk, where they changed since it did last.
func (l *Lists) tell(ctx context.Context) {
	if !l.untold || l.o.Changed == nil {
		return
	}
	l.mu.Lock()
	current := maps.Clone(l.current)
	l.mu.Unlock()
	all, number := make(map[string][]byte, len(current)), uint64(0)
	for id, on := range current {
		der, err := os.ReadFile(l.dir.Path(id + ".crl"))
		if err != nil {
			l.o.Logger.ErrorContext(ctx, "a list of revoked certificates can't be read", slog.Any("error", err))
			return
		}
		all[id] = der
		number += on.number
	}
	l.untold = false
	l.o.Changed(ctx, number, all)
}

func (l list) final() bool { return l.next.Equal(noEnd) }

func (l *Lists) old(on list) bool { return l.o.Now().Sub(on.at) >= resignAge }

// renew signs an authority's list where there is none, statements are missing in it, or it
// is stale. It reports whether the list is as it should be. h is nil for an authority that
// signs no more, whose key is opened for its last list.
func (l *Lists) renew(ctx context.Context, id string, h *held, stale func(list) bool) bool {
	entries, size := l.log.entries(id)
	l.mu.Lock()
	on, ok := l.current[id]
	l.mu.Unlock()
	if ok && on.entries == uint64(len(entries)) && !stale(on) {
		return true
	}
	if l.o.Now().Before(l.again[id]) {
		return false
	}
	var err error
	if h == nil {
		h = &held{}
		if h.Signing, h.release, err = l.o.Open(ctx, id); err == nil {
			h.Last = true
			defer h.release()
		}
	}
	if err == nil {
		err = l.put(ctx, h.Signing, entries, size)
	}
	if err != nil {
		level := slog.LevelDebug
		if l.again[id].IsZero() { // once: a key that is gone is gone for good
			level = slog.LevelError
		}
		l.again[id] = l.o.Now().Add(retry)
		l.signed.WithLabelValues("failed").Inc()
		l.o.Logger.Log(ctx, level, "a list of revoked certificates can't be signed: the one before stays, and what was revoked since is in the statements alone; it is tried again",
			slog.String("authority", id), slog.Any("error", err))
		return false
	}
	delete(l.again, id)
	l.signed.WithLabelValues("ok").Inc()
	return true
}

// put signs a list and puts it in the place of the one before.
func (l *Lists) put(ctx context.Context, s Signing, entries []entry, size uint64) error {
	made, err := s.sign(ctx, entries, size, l.o.Now().UTC().Truncate(time.Second))
	if err != nil {
		return err
	}
	id := ID(s.Certificate)
	if err := l.dir.Put(made.Raw, id+".crl"); err != nil {
		return err
	}
	l.untold = true
	l.mu.Lock()
	l.current[id] = known(made)
	l.mu.Unlock()
	return nil
}

// Ready is nil unless a list that is served ends within a day, though another should
// have followed.
func (l *Lists) Ready(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, on := range l.current {
		if l.o.Now().After(on.next.Add(-resignAge)) {
			return fmt.Errorf("the list of the authority %s ends at %s, and its key has signed no other", id, on.next.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// ServeHTTP serves the lists below ListPath.
func (l *Lists) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, ListPath), ".crl")
	if _, err := hex.DecodeString(id); !ok || err != nil || id != strings.ToLower(id) {
		http.NotFound(w, r)
		return
	}
	f, err := os.Open(l.dir.Path(id + ".crl")) // #nosec G703 -- id is hexadecimal
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	info, err := f.Stat() // of what is served, whatever follows it meanwhile
	if err != nil {
		http.Error(w, "the list can't be read", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/pkix-crl") // RFC 2585 §4.2
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", maxAge))
	h.Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	read.LimitTime(w, info.Size())
	http.ServeContent(w, r, "", info.ModTime(), f)
}

var (
	oidInvalidityDate    = asn1.ObjectIdentifier{2, 5, 29, 24} // RFC 5280 §5.3.2
	oidExpiredCertsOnCRL = asn1.ObjectIdentifier{2, 5, 29, 60} // X.509 §9.5.2.8
)

// noEnd is the nextUpdate of a final list: no other follows (as RFC 5280 §4.1.2.5 has
// it for certificates).
var noEnd = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Signing is an authority that can sign lists.
type Signing struct {
	Certificate *x509.Certificate
	Key         kms.Signer
	// Last says that the key may be gone before the next list, which then never comes.
	Last bool
}

// ID is how authorities are called here: by the subject key identifiers of their
// issuing certificates.
func ID(issuer *x509.Certificate) string { return hex.EncodeToString(issuer.SubjectKeyId) }

// CheckIssuer is nil where an issuing certificate lets its key sign lists.
func CheckIssuer(issuer *x509.Certificate) error {
	if issuer.KeyUsage&x509.KeyUsageCRLSign == 0 || len(issuer.SubjectKeyId) == 0 {
		return errors.New("its issuing certificate doesn't let the key sign lists of revoked certificates (key usage cRLSign, and a subject key identifier): revocation needs an issuing certificate of `mayfly ca`, or no revocation.directory")
	}
	return nil
}

// sign makes the complete list of an authority. Its number is the size of the log that
// it is of. Listed means invalid, whatever a timestamp says: so revocationDate is where
// the certificate's life began, and invalidityDate lies before it; when it was decided
// is in the statement.
func (s Signing) sign(ctx context.Context, entries []entry, number uint64, now time.Time) (*x509.RevocationList, error) {
	since, err := generalized(s.Certificate.NotBefore)
	if err != nil {
		return nil, err
	}
	list := &x509.RevocationList{
		Number: new(big.Int).SetUint64(number), ThisUpdate: now, NextUpdate: now.Add(validity),
		RevokedCertificateEntries: make([]x509.RevocationListEntry, len(entries)),
		ExtraExtensions:           []pkix.Extension{{Id: oidExpiredCertsOnCRL, Value: since}},
	}
	if s.Last {
		list.NextUpdate = noEnd
	}
	for i, e := range entries {
		begun := time.Unix(e.notBefore, 0).UTC()
		invalid, err := generalized(begun.Add(-time.Second))
		if err != nil {
			return nil, err
		}
		list.RevokedCertificateEntries[i] = x509.RevocationListEntry{
			SerialNumber: e.serial.number(), RevocationTime: begun, ReasonCode: int(e.reason), // of which 0 is left out
			ExtraExtensions: []pkix.Extension{{Id: oidInvalidityDate, Value: invalid}},
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.Certificate, cacert.Using(ctx, s.Key))
	if err != nil {
		return nil, fmt.Errorf("signing the list of %s: %w", s.Certificate.Subject, err)
	}
	made, err := x509.ParseRevocationList(der)
	if err == nil {
		err = made.CheckSignatureFrom(s.Certificate)
	}
	if err != nil || len(made.RevokedCertificateEntries) != len(entries) {
		return nil, errors.Join(fmt.Errorf("the list of %s that was just signed doesn't hold", s.Certificate.Subject), err)
	}
	return made, nil
}

// generalized is a time as both extensions want it, in DER.
func generalized(t time.Time) ([]byte, error) { return asn1.MarshalWithParams(t.UTC(), "generalized") }
