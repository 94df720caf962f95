package lifecycle

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// takeUp is the part of the propagation time that a configuration may take to
// reach a process: a replica may begin to list an authority later than the
// command that published it recorded.
const takeUp = 10 // one tenth

// ID is the SHA-256 of an authority's issuing certificate, in DER.
func ID(certificate []byte) [sha256.Size]byte { return sha256.Sum256(certificate) }

// Listed is an authority that a process tells clients to trust.
type Listed struct {
	Name string
	ID   [sha256.Size]byte
}

// InForce is what a process knows of the authorities that it has in force.
type InForce struct {
	Listed []Listed
	Active [sha256.Size]byte // the one that signs
	// Chains are the first certificates of the chain files of those that are listed, by name.
	Chains map[string][sha256.Size]byte
	// FirstListed is when the process began to list those that it didn't list at its start.
	FirstListed map[[sha256.Size]byte]time.Time
}

// CheckFollow gives every reason why next, whose active authority is the one
// given, can't follow what is in force in this very process. chains are next's, as
// InForce has them. [Check] knows only what is written; this knows what the process
// did, whatever is written. No records are those of a configuration with one
// authority, which never changes.
func CheckFollow(before InForce, next []Entry, active [sha256.Size]byte, chains map[string][sha256.Size]byte, t Terms) []Fault {
	var faults []Fault
	add := func(i int, field, format string, args ...any) {
		faults = append(faults, Fault{i, field, fmt.Sprintf(format, args...)})
	}
	if len(next) == 0 {
		return nil
	}
	for _, l := range before.Listed {
		i := Find(next, l.Name)
		if i < 0 {
			add(i, "", "%s is gone, but clients are told to trust it: put it back, or distrust it first", l.Name)
			continue
		}
		r, signed := next[i], l.ID == before.Active
		end := r.WindowEnd()
		switch {
		case r.Listed() && chains[l.Name] != before.Chains[l.Name]:
			add(i, "chain", "begins with another certificate than the one of %s that clients are told to trust: put it back, and give what is new a name of its own", l.Name)
		case !r.Listed() && r.State != Distrusted:
			add(i, "state", "%s is no more listed, but clients are told to trust it: put its state back, or distrust it first", l.Name)
		case signed && r.State == Distrusted:
			add(i, "state", "%s signs in this service: activate another first, then distrust it", l.Name)
		case signed && !end.IsZero() && end.Before(t.Now):
			add(i, "retired", "%s signed in this service until now, and clients would refuse what began after %s: run `mayfly authority retire %s --again`, which records the time again",
				l.Name, stamp(end), l.Name)
		}
	}
	first, ok := before.FirstListed[active]
	if !ok && !slices.ContainsFunc(before.Listed, func(l Listed) bool { return l.ID == active }) {
		first, ok = t.Now, true // it was never listed here
	}
	i := slices.IndexFunc(next, func(e Entry) bool { return e.State == Active })
	if listed := t.Now.Sub(first); ok && i >= 0 && next[i].Forced == "" && listed < t.Propagation-t.Propagation/takeUp {
		add(i, "published", "this service has listed %s for %v, whatever is written, and clients need %v to learn of it: activate it later; `mayfly authority activate %s --force` says what sooner risks",
			next[i].Name, listed.Truncate(time.Second), t.Propagation, next[i].Name)
	}
	return faults
}

// AddFaults puts faults of records under the list at path.
func AddFaults(path string, faults []Fault, f *setting.Faults) {
	for _, r := range faults {
		at := path
		if r.Entry >= 0 {
			at = setting.Index(path, r.Entry)
		}
		if r.Field != "" {
			at = setting.Join(at, r.Field)
		}
		f.Add(at, "%s", r.Text)
	}
}
