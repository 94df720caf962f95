package authority

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The bounds of a history: a certificate takes about 1 kB, and a service that
// renews daily and restarts weekly makes 420 a year.
const (
	maxHistoryFile = 16 << 10
	maxHistory     = 20_000
)

// history is the folder of an ephemeral authority's issuing certificates, past
// ones included, one PEM file each: what clients must know to verify what was
// signed. Replicas share it. Nothing in it is secret.
//
// An authority that has one certifies ephemeral issuers and signs no leaf itself.
type history struct {
	config EphemeralConfig
	dir    string
	parent []*x509.Certificate // the signing CA's chain, which every one of them ends in

	mu    sync.Mutex
	known map[string]*x509.Certificate // by file name
}

// newHistory reads the folder, and adds what is wrong with it.
func newHistory(c EphemeralConfig, parent []*x509.Certificate, path string, f *setting.Faults) *history {
	h := &history{config: c, dir: string(c.History), parent: parent}
	if _, err := h.refresh(); err != nil {
		f.Add(setting.Join(path, "ephemeral.history"), "%v", err)
	}
	return h
}

// historyName is the file name of a certificate: what it holds, so that no two
// writers can mean different things by one name.
func historyName(c *x509.Certificate) string { return chain.Fingerprint(c.Raw) + ".pem" }

// parseHistory reads one file of a history. Nothing but what Mayfly writes is
// taken: one issuing certificate, under its own name, signed by the signing CA.
// The error continues a sentence that begins with the file's name.
func parseHistory(name string, b []byte, parent []*x509.Certificate) (*x509.Certificate, error) {
	certs, err := chain.Parse(b)
	if err != nil {
		return nil, err
	}
	c := certs[0]
	switch {
	case len(certs) != 1 || !bytes.Equal(b, []byte(chain.Encode(c.Raw))):
		return nil, errors.New("has more in it than one certificate as Mayfly writes it: restore it from a copy")
	case historyName(c) != name:
		return nil, errors.New("holds another certificate than its name says: restore it from a copy")
	case !c.IsCA || !c.MaxPathLenZero:
		return nil, errors.New("isn't the certificate of an issuing CA: move it elsewhere")
	}
	if faults := cacert.CheckUse(append([]*x509.Certificate{c}, parent...), chain.Need{Now: c.NotBefore}).Faults(); len(faults) > 0 {
		return nil, fmt.Errorf("doesn't belong to this authority's chain (%s): move it to the history of the authority that signed it", faults[0])
	}
	return c, nil
}

// anew is the name of a file in a history's folder by which the operator says that the
// certificates from before are lost for good.
const anew = ".begins-anew"

// CheckHistory is nil where a has certificates from before, or nothing shows that there
// were any; else a *setting.FaultError: the disk isn't mounted, or its copy is missing, and
// clients would be told of those certificates no more. trail is the audit trail, which is
// read whole where the history is empty.
func (a *Authority) CheckHistory(trail string) error {
	if a.history == nil || !a.history.empty() {
		return nil
	}
	records := audit.Follow(trail, time.Time{}, audit.Issued)
	defer records.Close()
	var made audit.Event
	for e, err := range records.Unread() {
		switch {
		case err != nil: // whoever opens the trail says so
		case e.Purpose == audit.PurposeIssuing && e.Authority == a.Subject:
			made = e
		case e.Purpose == "" && made.Serial != "": // the one that was made was in use
			var f setting.Faults
			a.history.lost(a.path, fmt.Sprintf("%s has an issuing CA that this authority certified on %s (serial %s), and leaves after it", trail, chain.Stamp(made.Time), made.Serial), &f)
			return f.Err()
		}
	}
	return nil
}

// empty reports whether h has no certificates, and its operator doesn't say that it begins.
func (h *history) empty() bool {
	_, err := os.Lstat(filepath.Join(h.dir, anew))
	return len(h.all()) == 0 && err != nil
}

// lost adds the fault of an empty history, with the evidence that it wasn't always.
func (h *history) lost(path, evidence string, f *setting.Faults) {
	f.Add(setting.Join(path, "ephemeral.history"), "%s holds no issuing certificate, but %s: mount it, or restore it from a copy; where they are lost for good, make the file %s, and clients with a new trusted root refuse all that they signed",
		h.dir, evidence, filepath.Join(h.dir, anew))
}

// refresh reads what is new in the folder, and reports whether what it holds has
// changed. A folder that was never there is empty; one that had certificates never is
// again, since the one in use is among them. An error names the file; what was known
// stays so.
func (h *history) refresh() (changed bool, err error) {
	entries, err := os.ReadDir(h.dir)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil && (len(h.known) > 0 || !errors.Is(err, fs.ErrNotExist)) {
		return false, err
	}
	next := make(map[string]*x509.Certificate, len(h.known))
	for _, e := range entries {
		// A hidden one is being written, or was when the power went.
		if strings.HasPrefix(e.Name(), ".") || durable.OfTheSystem(e.Name()) {
			continue
		}
		c := h.known[e.Name()]
		if c == nil {
			if c, err = h.read(e.Name()); err != nil {
				return false, err
			}
		}
		next[e.Name()] = c
	}
	if len(next) == 0 && len(h.known) > 0 {
		return false, fmt.Errorf("%s: holds none of %d issuing certificates any more: mount it, or restore it from a copy", h.dir, len(h.known))
	}
	if len(next) > maxHistory {
		return false, fmt.Errorf("%s: more than %d certificates: move those elsewhere whose signatures nobody verifies any more", h.dir, maxHistory)
	}
	changed = !maps.EqualFunc(next, h.known, func(a, b *x509.Certificate) bool { return a.Equal(b) })
	h.known = next
	return changed, nil
}

func (h *history) read(name string) (*x509.Certificate, error) {
	path := filepath.Join(h.dir, name)
	b, err := durable.ReadPlain(path, maxHistoryFile)
	if err != nil {
		return nil, fmt.Errorf("%w: if it isn't of this history, move it elsewhere", err)
	}
	c, err := parseHistory(name, b, h.parent)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// prepare makes the folder and shows that it can be written, before a key is
// used for what couldn't be kept.
func (h *history) prepare() error {
	if err := os.MkdirAll(h.dir, 0o750); err != nil {
		return err
	}
	trial := filepath.Join(h.dir, ".trial-"+rand.Text())
	if err := durable.WriteNew(trial, nil, 0o644); err != nil {
		return err
	}
	return os.Remove(trial)
}

// add writes a certificate, which is on disk and whole, or not there, when add
// returns.
func (h *history) add(c *x509.Certificate) error {
	if err := durable.Put(filepath.Join(h.dir, historyName(c)), []byte(chain.Encode(c.Raw)), 0o644); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[string]*x509.Certificate{historyName(c): c}
	maps.Copy(next, h.known)
	h.known = next
	return nil
}

// all are the certificates in the order of their start.
func (h *history) all() []*x509.Certificate {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.SortedFunc(maps.Values(h.known), func(a, b *x509.Certificate) int {
		return cmp.Or(a.NotBefore.Compare(b.NotBefore), bytes.Compare(a.Raw, b.Raw))
	})
}
