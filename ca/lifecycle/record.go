// Package lifecycle is the order in which certificate authorities come to sign
// and stop: prepared → published → active → retired → distrusted. What may follow
// what is one table, [Do] takes a step by it, and [Check] finds what no steps can
// have led to, since states may be written by hand.
package lifecycle

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// State is where an authority stands. An authority without one isn't used at all.
type State string

// The states, in their order.
const (
	Prepared   State = "prepared"   // key and chain were checked; no client knows it
	Published  State = "published"  // clients are told to trust it; it signs nothing
	Active     State = "active"     // it signs; exactly one does
	Retired    State = "retired"    // it signs no more; what it signed stays trusted
	Distrusted State = "distrusted" // clients are told of it no more
)

// States are all of them.
var States = []State{Prepared, Published, Active, Retired, Distrusted}

// Handover is how long after its retirement an authority's window stays open:
// replicas take a configuration up at different times, and a leaf that began after
// the window's end would be refused by clients.
const Handover = time.Hour

// skew is how far a recorded time may lie in the future: the clock of another machine.
const skew = 5 * time.Minute

// Record is the state of one authority and when it came to each. `mayfly
// authority` keeps it.
type Record struct {
	// State is `prepared`, `published`, `active`, `retired` or `distrusted`; an
	// authority without one isn't used.
	State State `yaml:"state,omitempty"`
	// Prepared is when its key and chain were first checked.
	Prepared time.Time `yaml:"prepared,omitempty"`
	// Published is when the trusted root began to list it.
	Published time.Time `yaml:"published,omitempty"`
	// Activated is when it began to sign.
	Activated time.Time `yaml:"activated,omitempty"`
	// Retired is when it stopped. Its window in the trusted root ends an hour later.
	Retired time.Time `yaml:"retired,omitempty"`
	// Distrusted is when it was taken out of the trusted root.
	Distrusted time.Time `yaml:"distrusted,omitempty"`
	// Forced says when and how the propagation guard was overridden.
	Forced string `yaml:"forced,omitempty"`
	// Certificate is the SHA-256 of its issuing certificate (with `mode: ephemeral`, of the
	// signing CA's), in hexadecimal, from the time on when clients are told of it. A chain
	// file that begins with another is refused.
	Certificate string `yaml:"certificate,omitempty"`
}

// Entry is the record of one authority by its name.
type Entry struct {
	Name string
	Record
}

// Listed reports whether the trust bundle and the trusted root show it.
func (r Record) Listed() bool { return r.State == Published || r.State == Active || r.State == Retired }

// Since is when it came to its state; zero where that isn't known.
func (r Record) Since() time.Time {
	return map[State]time.Time{
		Prepared: r.Prepared, Published: r.Published, Active: r.Activated, Retired: r.Retired, Distrusted: r.Distrusted,
	}[r.State]
}

// WindowEnd is the end of its window in the trusted root; zero leaves it to its chain.
func (r Record) WindowEnd() time.Time {
	if r.State != Retired {
		return time.Time{}
	}
	return r.Retired.Add(Handover)
}

// HasSigned reports whether it was the active one at some time. The first of all
// may have no time of its own: it signed before there was a second.
func (r Record) HasSigned() bool {
	past := r.State == Retired || r.State == Distrusted
	return r.State == Active || !r.Activated.IsZero() || past && r.Prepared.IsZero() && r.Published.IsZero()
}

// first reports whether no other than all[i] has ever signed: clients know of
// nothing that it replaces.
func first(all []Entry, i int) bool {
	for j, e := range all {
		if j != i && e.HasSigned() {
			return false
		}
	}
	return true
}

// Fault is what is wrong with the record of one authority, or with all of them
// where Entry is -1. Field is the setting, or empty.
type Fault struct {
	Entry int
	Field string
	Text  string
}

// Check gives every reason why all can't be in force. It needs no clock; see [CheckTimes].
func Check(all []Entry, propagation time.Duration) []Fault {
	var faults []Fault
	active := 0
	for i, e := range all {
		add := func(field, format string, args ...any) {
			faults = append(faults, Fault{i, field, fmt.Sprintf(format, args...)})
		}
		switch e.State {
		case "", Prepared:
		case Published:
			if e.Published.IsZero() {
				add("published", "required of a published authority: run `mayfly authority publish %s`, which records when clients were first told", e.Name)
			}
		case Active:
			if active++; !first(all, i) {
				checkGuard(e, propagation, add)
			}
		case Retired:
			if e.Retired.IsZero() {
				add("retired", "required of a retired authority: when it stopped signing")
			} else if e.Retired.Before(e.Activated) {
				add("retired", "%s is before it was activated, %s", stamp(e.Retired), stamp(e.Activated))
			}
		case Distrusted:
			if e.Distrusted.IsZero() {
				add("distrusted", "required of a distrusted authority: when it was taken out of the trusted root")
			}
		default:
			add("state", "%q is none of %v", e.State, States)
		}
	}
	if active != 1 {
		faults = append(faults, Fault{-1, "", fmt.Sprintf("%d authorities are active; exactly one must be: `mayfly authority list` shows their states and what can follow", active)})
	}
	return faults
}

// checkGuard is the propagation guard for an authority that is active, however it
// came to be.
func checkGuard(e Entry, propagation time.Duration, add func(field, format string, args ...any)) {
	switch {
	case e.Forced != "":
	case e.Published.IsZero():
		add("published", "required of an active authority that follows another: when the trusted root began to list it; publish it first, activate it %v later", propagation)
	case e.Activated.IsZero():
		add("activated", "required of an active authority that follows another: run `mayfly authority activate %s`", e.Name)
	case e.Activated.Before(e.Published.Add(propagation)):
		add("activated", "%s is %v after it was published, and clients need %v to learn of it: activate it after %s; `mayfly authority activate %s --force` says what sooner risks",
			stamp(e.Activated), e.Activated.Sub(e.Published), propagation, stamp(e.Published.Add(propagation)), e.Name)
	}
}

// CheckTimes gives every time that lies in the future of now: a state begins when
// it is written, never by itself.
func CheckTimes(all []Entry, now time.Time) []Fault {
	var faults []Fault
	for i, e := range all {
		for field, t := range e.times() {
			if t.After(now.Add(skew)) {
				faults = append(faults, Fault{i, field, fmt.Sprintf("%s is in the future: a state begins when it is recorded; or correct this machine's clock (%s)", stamp(t), stamp(now))})
			}
		}
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.Entry - b.Entry })
	return faults
}

// times are the record's by the names of their settings.
func (r Record) times() map[string]time.Time {
	return map[string]time.Time{
		"prepared": r.Prepared, "published": r.Published, "activated": r.Activated, "retired": r.Retired, "distrusted": r.Distrusted,
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

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
