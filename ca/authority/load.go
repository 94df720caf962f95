package authority

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The places of authorities in the configuration, for faults.
const (
	singlePath = "ca.authority"
	listPath   = "ca.authorities"
)

// LoadOptions are what authorities are loaded with.
type LoadOptions struct {
	Now time.Time
	// Lifetime is the longest that a certificate may be given: an authority that
	// doesn't last so long isn't used. Zero is MaxLeafLifetime.
	Lifetime time.Duration
	// KMS has what the keys' backends work with; what the configuration says of a
	// key takes its place.
	KMS kms.Options
	// Remark takes what clients put up with in a chain, by its place in the
	// configuration; nil drops it.
	Remark func(remark string)
	// Before are the authorities in force, nil at the start. The one that signs goes
	// on with its open key where nothing about it has changed.
	Before *Set
}

// need is what a chain is wanted for that signs now.
func (o *LoadOptions) need() chain.Need {
	return chain.Need{Now: o.Now, Lifetime: cmp.Or(o.Lifetime, MaxLeafLifetime)}
}

// Load reads the chain of the configuration's one authority, opens its key, and
// checks that they fit each other and may issue code-signing certificates. Its
// error is a *setting.FaultError with every fault, each with its fix.
func Load(ctx context.Context, c Config, o LoadOptions) (*Authority, error) {
	var f setting.Faults
	a := load(ctx, singlePath, c, o, &f)
	return a, f.Err()
}

// LoadNamed is Load for the authority of s called name, as a start that makes it
// active would load it.
func LoadNamed(ctx context.Context, s Section, name string, o LoadOptions) (*Authority, error) {
	all := s.All()
	i := indexOf(all, name)
	var f setting.Faults
	if i < 0 {
		names := make([]string, len(all))
		for i, a := range all {
			names[i] = a.Name
		}
		f.Add(listPath, "has no authority %q; it has: %s", name, strings.Join(names, ", "))
		return nil, f.Err()
	}
	path := setting.Index(listPath, i)
	a := load(ctx, path, all[i].Config, o, &f)
	if a == nil {
		return nil, f.Err()
	}
	if checkRecorded(path, all[i].Config, a.Certificate, lifecycle.Entry{Name: name, Record: all[i].Record}, &f); f.Len() > 0 {
		a.Close()
		return nil, f.Err()
	}
	return a, nil
}

// checkRecorded wants a chain to begin with the certificate that clients were told of.
func checkRecorded(path string, c Config, first *x509.Certificate, e lifecycle.Entry, f *setting.Faults) {
	if now := chain.Fingerprint(first.Raw); e.Listed() && e.Certificate != "" && now != e.Certificate {
		f.Add(path+".chain", "%s: begins with a certificate of the SHA-256 %s, but clients were told to trust %s with %s: put its chain back, and give what is new a name of its own",
			c.Chain, now, e.Name, e.Certificate)
	}
}

// load is Load for the authority at path of the configuration; nil where it adds faults.
func load(ctx context.Context, path string, c Config, o LoadOptions, f *setting.Faults) *Authority {
	before := f.Len()
	if c.check(path, f); f.Len() > before {
		return nil
	}
	certs := loadChain(path, c, o.need(), o.Remark, f)
	var ephemeral *history
	if c.mode() == ModeEphemeral && len(certs) > 0 {
		ephemeral = newHistory(c.Ephemeral, certs, path, f)
	}
	signer := openKey(ctx, path, c, certs, o.KMS, f)
	if f.Len() > before {
		kms.Close(signer)
		return nil
	}
	a, err := New(certs, signer, c)
	if err != nil {
		f.Add(path, "%v", err)
		kms.Close(signer)
		return nil
	}
	if a.path, a.history = path, ephemeral; ephemeral != nil {
		a.renewal = nil
	}
	return a
}

// openKey is cacert.OpenKey for the authority at path of the configuration.
func openKey(ctx context.Context, path string, c Config, certs []*x509.Certificate, o kms.Options, f *setting.Faults) kms.Signer {
	o.Passphrase, o.Access, o.SealedKey = c.Passphrase, c.Access, c.SealedKey
	return cacert.OpenKey(ctx, path, c.Key, "issuing certificate", c.Chain, certs, o, f)
}

// loadChain reads and checks the chain file of the authority at path of the
// configuration, and gives what certificates it has. Without a time in need, it is
// held to the time when all of it began.
func loadChain(path string, c Config, need chain.Need, remark func(string), f *setting.Faults) []*x509.Certificate {
	if c.mode() == ModeEphemeral {
		need.Below = 1
	}
	return cacert.Read(path, c.Chain, func(certs []*x509.Certificate) chain.Findings {
		if need.Now.IsZero() {
			need.Now, _ = window(certs)
		}
		return cacert.Check(certs, need)
	}, remark, f)
}

// LoadSet loads what s names: the chains of all that clients trust, and the key of
// the one that signs. The key of one that is to follow is opened as well, compared
// and closed; a KMS that can't be reached at the moment is no reason not to start,
// as that one signs nothing yet. Its error is a *setting.FaultError with every
// fault.
func LoadSet(ctx context.Context, s Section, o LoadOptions) (*Set, error) {
	all := s.All()
	if len(all) == 0 {
		if o.Before != nil && reflect.DeepEqual(o.Before.Active.config, s.Authority) {
			return o.Before, nil // it can't change while the service runs
		}
		a, err := Load(ctx, s.Authority, o)
		if err != nil {
			return nil, err
		}
		return Single(a), nil
	}
	records, err := s.Records()
	if err != nil {
		return nil, err
	}
	var f setting.Faults
	lifecycle.Check(listPath, records, s.Propagation, &f)
	lifecycle.CheckTimes(listPath, records, o.Now, &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	l := loading{o: o, faults: &f, set: &Set{Records: records, Chains: make(map[string][sha256.Size]byte)}}
	for i, r := range records {
		l.load(ctx, setting.Index(listPath, i), all[i].Config, r)
	}
	if err := f.Err(); err != nil {
		if a := l.set.Active; a != nil && (o.Before == nil || a != o.Before.Active) {
			a.Close()
		}
		return nil, err
	}
	l.set.sort()
	return l.set, nil
}

// loading collects authorities and their faults.
type loading struct {
	o      LoadOptions
	faults *setting.Faults
	set    *Set
}

// load adds one authority by its state.
func (l *loading) load(ctx context.Context, path string, c Config, e lifecycle.Entry) {
	switch e.State {
	case lifecycle.Active:
		a := l.active(ctx, path, c)
		if a == nil {
			return
		}
		if e.Forced != "" && l.o.KMS.Logger != nil {
			l.o.KMS.Logger.LogAttrs(ctx, slog.LevelWarn, "the active authority was forced past the propagation guard: clients that haven't fetched the trusted root since it was published refuse its certificates",
				slog.String("authority", e.Name), slog.String("forced", e.Forced))
		}
		l.set.Active = a
		checkRecorded(path, c, a.Certificate, e, l.faults)
		l.set.Trusted = append(l.set.Trusted, a.Trusted(e.Name))
		l.set.Chains[e.Name] = lifecycle.ID(a.Chain[0])
	case lifecycle.Published:
		certs := loadChain(path, c, l.o.need(), l.o.Remark, l.faults)
		l.try(ctx, path, c, e.Name, certs)
		l.trust(path, c, certs, e)
	case lifecycle.Retired:
		// Its certificates may have expired since, and its key be gone.
		l.trust(path, c, loadChain(path, c, chain.Need{}, l.o.Remark, l.faults), e)
	case lifecycle.Prepared, lifecycle.Distrusted, "":
	}
}

// active gives the one that signs: as it is in force, when nothing about it has changed.
func (l *loading) active(ctx context.Context, path string, c Config) *Authority {
	if before := l.o.Before; before != nil && reflect.DeepEqual(before.Active.config, c) {
		var f setting.Faults
		if certs := loadChain(path, c, l.o.need(), nil, &f); f.Len() == 0 && slices.EqualFunc(certs, before.Active.Chain, func(c *x509.Certificate, der []byte) bool { return bytes.Equal(c.Raw, der) }) {
			return before.Active
		}
	}
	return load(ctx, path, c, l.o, l.faults)
}

// try opens a key that is to sign later.
func (l *loading) try(ctx context.Context, path string, c Config, name string, certs []*x509.Certificate) {
	var f setting.Faults
	o := l.o.KMS
	o.Later = false
	kms.Close(openKey(ctx, path, c, certs, o, &f))
	faults, failed := errors.AsType[*setting.FaultError](f.Err())
	if call, ok := errors.AsType[*kms.CallError](f.Err()); ok && call.Temporary() && l.o.KMS.Logger != nil {
		l.o.KMS.Logger.LogAttrs(ctx, slog.LevelWarn, "the key of a published authority can't be used at the moment; it signs nothing yet",
			slog.String("authority", name), slog.Any("error", faults))
	} else if failed {
		l.faults.AddAll(faults)
	}
}

// OpenKey opens the key of an authority for lists of revoked certificates, whatever its
// state, and though its chain may have expired. Beside an error of the key it gives the
// issuing certificate. The key of a signing CA (mode ephemeral) signs none.
func OpenKey(ctx context.Context, c Config, o kms.Options) (*x509.Certificate, kms.Signer, error) {
	var f setting.Faults
	certs := loadChain("authority", c, chain.Need{}, nil, &f)
	if err := f.Err(); err != nil || c.mode() == ModeEphemeral {
		return nil, nil, err
	}
	signer := openKey(ctx, "authority", c, certs, o, &f)
	return certs[0], signer, f.Err()
}

// trust adds what clients are shown of an authority that doesn't sign, until the
// end of its window.
func (l *loading) trust(path string, c Config, certs []*x509.Certificate, e lifecycle.Entry) {
	if len(certs) == 0 {
		return
	}
	checkRecorded(path, c, certs[0], e, l.faults)
	l.set.Chains[e.Name] = lifecycle.ID(certs[0].Raw)
	chains := [][]*x509.Certificate{certs}
	if c.mode() == ModeEphemeral { // what it certified is what signed
		before := l.faults.Len()
		h := newHistory(c.Ephemeral, certs, path, l.faults)
		chains = nil
		for _, issuing := range h.all() {
			chains = append(chains, append([]*x509.Certificate{issuing}, certs...))
		}
		if e.HasSigned() && l.faults.Len() == before && h.empty() {
			h.lost(path, e.Name+" has signed", l.faults)
		}
	}
	for _, chain := range chains {
		t := trusted(e.Name, chain)
		if end := e.WindowEnd(); !end.IsZero() && end.Before(t.End) {
			t.End = end
		}
		l.set.Trusted = append(l.set.Trusted, t)
	}
}

// DefaultName is the name of the authority of a configuration that has only one
// and gives it none.
const DefaultName = "default"

// Set is all that a CA has at one time: the authority that signs, and those whose
// certificates its clients are to trust. It never changes; [InForce.Use] puts
// another in its place.
type Set struct {
	// Active signs; never nil.
	Active *Authority
	// Trusted are what the trust bundle and the trusted root show, in the order of
	// their start. Active is among them; distrusted ones are not.
	Trusted []Trusted
	// Chains are the SHA-256 of the first certificates of the configured chains of
	// those that are trusted, by name.
	Chains map[string][sha256.Size]byte
	// Records are the states that they were loaded by; none where the configuration
	// has only one authority.
	Records []lifecycle.Entry
}

// Trusted is one authority as the documents for clients show it.
type Trusted struct {
	// Name is the configured one: [a-z0-9-].
	Name string
	// Chain is in DER, from the issuing certificate to the self-signed root.
	Chain [][]byte
	// Start and End bound when its certificates began that clients are to trust,
	// both included; a zero End is open.
	Start, End time.Time
	// NotBefore and NotAfter bound when all of the chain is valid.
	NotBefore, NotAfter time.Time
	// Renewed says that another follows it without anybody's doing.
	Renewed bool
}

// Single is the set of a CA that has only a: trusted for as long as its chain is
// valid.
func Single(a *Authority) *Set { return &Set{Active: a, Trusted: []Trusted{a.Trusted(DefaultName)}} }

// Trusted is how a is shown under name when it is trusted for as long as its chain
// is valid.
func (a *Authority) Trusted(name string) Trusted {
	return Trusted{Name: name, Chain: a.Chain, Start: a.notBefore, End: a.notAfter, NotBefore: a.notBefore, NotAfter: a.notAfter}
}

// trusted is how a chain is shown that is trusted for as long as it is valid.
func trusted(name string, certs []*x509.Certificate) Trusted {
	t := Trusted{Name: name}
	t.NotBefore, t.NotAfter = window(certs)
	t.Start, t.End = t.NotBefore, t.NotAfter
	for _, c := range certs {
		t.Chain = append(t.Chain, c.Raw)
	}
	return t
}

// sort puts the trusted into the order of the documents.
func (s *Set) sort() {
	slices.SortStableFunc(s.Trusted, func(a, b Trusted) int { return a.Start.Compare(b.Start) })
}

// Roots are the roots of all trusted chains in DER, each once: what a log must
// accept to log what these authorities issue.
func (s *Set) Roots() [][]byte {
	var roots [][]byte
	for _, t := range s.Trusted {
		root := t.Chain[len(t.Chain)-1]
		if !slices.ContainsFunc(roots, func(r []byte) bool { return slices.Equal(r, root) }) {
			roots = append(roots, root)
		}
	}
	return roots
}

// warnAtPercent are the parts of an authority's life, in percent, that are worth a
// warning when no more remains.
var warnAtPercent = []int{30, 10, 0}

// remains is the smallest of warnAtPercent that has come; 100 when none has.
func (t Trusted) remains(now time.Time) int {
	whole, left := t.NotAfter.Sub(t.NotBefore), t.NotAfter.Sub(now)
	reached := 100
	for _, percent := range warnAtPercent {
		if left <= whole/100*time.Duration(percent) {
			reached = percent
		}
	}
	return reached
}

// Expiry says that an authority is near its end, or past it; empty when it isn't.
func (t Trusted) Expiry(now time.Time) string {
	switch percent := t.remains(now); percent {
	case 100:
		return ""
	case 0:
		return "expired"
	default:
		return fmt.Sprintf("less than %d %% of its life remains", percent)
	}
}
