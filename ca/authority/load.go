package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The propagation guard's time: a client that fetches the trusted root once a day
// knows an authority a day after it was published.
const (
	DefaultPropagation = 24 * time.Hour
	maxPropagation     = 720 * time.Hour
)

// authorityName is what an authority may be called: metrics are labelled by it.
var authorityName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// maxAuthorities bounds the documents that every client fetches.
const maxAuthorities = 64

// CheckName adds a fault when name can't be an authority's.
func CheckName(path, name string, f *setting.Faults) {
	if !authorityName.MatchString(name) {
		f.Add(path, "%q isn't a name: letters a-z, digits and hyphens, 32 at most, such as 2027-1", name)
	}
}

// checkAuthorities adds the faults of `authorities` and what belongs to it.
func (c *Config) checkAuthorities(path string, f *setting.Faults) {
	list := setting.Join(path, "authorities")
	if !reflect.ValueOf(c.Authority).IsZero() {
		f.Add(list, "stands beside %s: move that one into the list, with a name and `state: active`", setting.Join(path, "authority"))
	}
	if len(c.Authorities) > maxAuthorities {
		f.Add(list, "has %d authorities; at most %d: remove distrusted ones", len(c.Authorities), maxAuthorities)
	}
	if c.Propagation < 0 || c.Propagation > maxPropagation {
		f.Add(setting.Join(path, "propagation"), "%v is out of bounds: from 0s to %v", c.Propagation, maxPropagation)
	}
	for i, a := range c.Authorities {
		at := setting.Index(list, i)
		CheckName(setting.Join(at, "name"), a.Name, f)
		if first := slices.IndexFunc(c.Authorities, func(b NamedAuthority) bool { return b.Name == a.Name }); first < i {
			f.Add(setting.Join(at, "name"), "%q is the name of %s already; each has one of its own", a.Name, setting.Index(list, first))
		}
		a.check(at, f)
		if c.StateFile != "" && a.Record != (lifecycle.Record{}) {
			f.Add(setting.Join(at, "state"), "stands in state_file: remove state and its times here, or state_file")
		}
	}
	if c.StateFile == "" {
		lifecycle.AddFaults(list, lifecycle.Check(c.records(), c.Propagation), f)
	}
}

// records are the states as the configuration itself has them.
func (c *Config) records() []lifecycle.Entry {
	all := make([]lifecycle.Entry, len(c.Authorities))
	for i, a := range c.Authorities {
		all[i] = lifecycle.Entry{Name: a.Name, Record: a.Record}
	}
	return all
}

// Records are the states of `authorities` in their order, from the state file
// where there is one; a missing file is no fault and gives none a state. The error
// is a *setting.FaultError.
func (c *Config) Records() ([]lifecycle.Entry, error) {
	all := c.records()
	if c.StateFile == "" {
		return all, nil
	}
	var f setting.Faults
	const path = "ca.state_file"
	kept, err := lifecycle.Read(string(c.StateFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Add(path, "%v", err)
	}
	for _, e := range kept {
		if i := lifecycle.Find(all, e.Name); i >= 0 {
			all[i].Record = e.Record
		} else if e.Listed() {
			f.Add(path, "%s has the %s authority %q, which ca.authorities doesn't: put it back, or distrust it before it is removed", c.StateFile, e.State, e.Name)
		}
	}
	return all, f.Err()
}

// LoadOptions are what authorities are loaded with.
type LoadOptions struct {
	Now time.Time
	// Lifetime is the longest that a certificate may be given: an authority that
	// doesn't last so long isn't used. Zero is MaxLifetime.
	Lifetime time.Duration
	// KMS has what the keys' backends work with; what the configuration says of a
	// key takes its place.
	KMS kms.Options
	// Before are the authorities in force, nil at the start. The one that signs goes
	// on with its open key where nothing about it has changed.
	Before *Authorities
}

// LoadAuthorities loads what c names: the chains of all that are listed, and the
// key of the one that signs. The key of one that is to follow is opened as well,
// compared and closed; a KMS that can't be reached at the moment is no reason not
// to start, as that one signs nothing yet. Its error is a *setting.FaultError with
// every fault.
func LoadAuthorities(ctx context.Context, c Config, o LoadOptions) (*Authorities, error) {
	if o.Lifetime == 0 {
		o.Lifetime = MaxLifetime
	}
	need := chain.Need{Now: o.Now, Lifetime: o.Lifetime}
	if len(c.Authorities) == 0 {
		if o.Before != nil && reflect.DeepEqual(o.Before.Active.config, c.Authority) {
			return o.Before, nil // it can't change while the service runs
		}
		a, err := loadAuthority(ctx, single, c.Authority, need, o.KMS)
		if err != nil {
			return nil, err
		}
		return One(a), nil
	}
	records, err := c.Records()
	if err != nil {
		return nil, err
	}
	var f setting.Faults
	const list = "ca.authorities"
	lifecycle.AddFaults(list, append(lifecycle.Check(records, c.Propagation), lifecycle.CheckTimes(records, o.Now)...), &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	l := loading{o: o, need: need, faults: &f, all: &Authorities{Records: records}}
	for i, r := range records {
		l.load(ctx, setting.Index(list, i), c.Authorities[i].AuthorityConfig, r)
	}
	if err := f.Err(); err != nil {
		if a := l.all.Active; a != nil && (o.Before == nil || a != o.Before.Active) {
			a.Close()
		}
		return nil, err
	}
	l.all.Sort()
	return l.all, nil
}

// loading collects authorities and their faults.
type loading struct {
	o      LoadOptions
	need   chain.Need
	faults *setting.Faults
	all    *Authorities
}

// load adds one authority by its state.
func (l *loading) load(ctx context.Context, path string, c AuthorityConfig, e lifecycle.Entry) {
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
		l.all.Active = a
		l.all.Listed = append(l.all.Listed, a.Listed(e.Name))
	case lifecycle.Published:
		certs := loadChain(path, c, l.need, l.faults)
		l.try(ctx, path, c, e.Name, certs)
		l.list(path, c, certs, e)
	case lifecycle.Retired:
		// Its certificates may have expired since, and its key be gone.
		l.list(path, c, loadChain(path, c, chain.Need{}, l.faults), e)
	case lifecycle.Prepared, lifecycle.Distrusted, "":
	}
}

// active gives the one that signs: as it is in force, when nothing about it has changed.
func (l *loading) active(ctx context.Context, path string, c AuthorityConfig) *Authority {
	if before := l.o.Before; before != nil && reflect.DeepEqual(before.Active.config, c) {
		var f setting.Faults
		if certs := loadChain(path, c, l.need, &f); f.Len() == 0 && sameChain(certs, before.Active.chain) {
			return before.Active
		}
	}
	a, err := loadAuthority(ctx, path, c, l.need, l.o.KMS)
	var faults *setting.FaultError
	switch {
	case errors.As(err, &faults):
		l.faults.AddAll(faults)
	case err != nil:
		l.faults.Add(path, "%v", err)
	}
	return a
}

// try opens a key that is to sign later.
func (l *loading) try(ctx context.Context, path string, c AuthorityConfig, name string, certs []*x509.Certificate) {
	signer, err := kms.Open(ctx, string(c.Key), c.options(l.o.KMS))
	var call *kms.CallError
	switch {
	case err == nil:
		checkKey(path, c, certs, signer, l.faults)
		kms.Close(signer)
	case errors.As(err, &call) && call.Temporary() && l.o.KMS.Logger != nil:
		l.o.KMS.Logger.LogAttrs(ctx, slog.LevelWarn, "the key of a published authority can't be used at the moment; it signs nothing yet",
			slog.String("authority", name), slog.Any("error", err))
	default:
		l.faults.Add(path+".key", "%v", err)
	}
}

// list adds what clients are shown of an authority that doesn't sign.
func (l *loading) list(path string, c AuthorityConfig, certs []*x509.Certificate, e lifecycle.Entry) {
	if len(certs) == 0 {
		return
	}
	if c.mode() == ModeEphemeral { // what it certified is what signed
		for _, made := range newCertifier(c.Ephemeral, certs, path, l.faults).history.all() {
			l.add(e, append([]*x509.Certificate{made}, certs...))
		}
		return
	}
	l.add(e, certs)
}

// add lists a chain, until the end of its authority's window.
func (l *loading) add(e lifecycle.Entry, certs []*x509.Certificate) {
	entry := Listed{Name: e.Name}
	entry.NotBefore, entry.NotAfter = window(certs)
	for _, c := range certs {
		entry.Chain = append(entry.Chain, c.Raw)
	}
	entry.Start, entry.End = entry.NotBefore, entry.NotAfter
	if end := e.WindowEnd(); !end.IsZero() && end.Before(entry.End) {
		entry.End = end
	}
	l.all.Listed = append(l.all.Listed, entry)
}

func sameChain(certs []*x509.Certificate, chain [][]byte) bool {
	return slices.EqualFunc(certs, chain, func(c *x509.Certificate, der []byte) bool { return bytes.Equal(c.Raw, der) })
}

// CheckAuthority checks the key and the chain of c's authority called name, as a
// start that makes it active would. Its error is a *setting.FaultError.
func CheckAuthority(ctx context.Context, c Config, name string, o LoadOptions) (*Authority, error) {
	i := slices.IndexFunc(c.Authorities, func(a NamedAuthority) bool { return a.Name == name })
	if i < 0 {
		names := make([]string, len(c.Authorities))
		for i, a := range c.Authorities {
			names[i] = a.Name
		}
		var f setting.Faults
		f.Add("ca.authorities", "has no authority %q; it has: %s", name, strings.Join(names, ", "))
		return nil, f.Err()
	}
	if o.Lifetime == 0 {
		o.Lifetime = MaxLifetime
	}
	return loadAuthority(ctx, setting.Index("ca.authorities", i), c.Authorities[i].AuthorityConfig, chain.Need{Now: o.Now, Lifetime: o.Lifetime}, o.KMS)
}
