// Package lifecycle is the order in which certificate authorities come to sign
// and stop: prepared → published → active → retired → distrusted. What may follow
// what is one table, [Do] takes a step by it, and [Check] finds what no steps can
// have led to, since states may be written by hand.
package lifecycle

import (
	"cmp"
	"crypto/sha256"
	"errors"
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
	return r.times()[r.State]
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

// Check adds every reason why all can't be in force. It needs no clock; see [CheckTimes].
func Check(path string, all []Entry, propagation time.Duration, f *setting.Faults) {
	active := 0
	for i, e := range all {
		at := setting.Section{Path: setting.Index(path, i), Faults: f}
		switch e.State {
		case "", Prepared:
		case Published:
			at.Wrong(e.Published.IsZero(), "published", "required of a published authority: run `mayfly authority publish %s`, which records when clients were first told", e.Name)
		case Active:
			if active++; !first(all, i) {
				checkGuard(at.Path, e, propagation, f)
			}
		case Retired:
			at.Wrong(e.Retired.IsZero(), "retired", "required of a retired authority: when it stopped signing")
			at.Wrong(!e.Retired.IsZero() && e.Retired.Before(e.Activated), "retired", "%s is before it was activated, %s", stamp(e.Retired), stamp(e.Activated))
		case Distrusted:
			at.Wrong(e.Distrusted.IsZero(), "distrusted", "required of a distrusted authority: when it was taken out of the trusted root")
		default:
			f.Add(setting.Join(at.Path, "state"), "%q is none of %v", e.State, States)
		}
	}
	if active != 1 {
		f.Add(path, "%d authorities are active; exactly one must be: `mayfly authority list` shows their states and what can follow", active)
	}
}

// checkGuard is the propagation guard for an authority that is active, however it
// came to be.
func checkGuard(path string, e Entry, propagation time.Duration, f *setting.Faults) {
	published, activated := setting.Join(path, "published"), setting.Join(path, "activated")
	switch {
	case e.Forced != "":
	case e.Published.IsZero():
		f.Add(published, "required of an active authority that follows another: when the trusted root began to list it; publish it first, activate it %v later", propagation)
	case e.Activated.IsZero():
		f.Add(activated, "required of an active authority that follows another: run `mayfly authority activate %s`", e.Name)
	case e.Activated.Before(e.Published.Add(propagation)):
		f.Add(activated, "%s is %v after it was published, and clients need %v to learn of it: activate it after %s; `mayfly authority activate %s --force` says what sooner risks",
			stamp(e.Activated), e.Activated.Sub(e.Published), propagation, stamp(e.Published.Add(propagation)), e.Name)
	}
}

// CheckTimes adds every time that lies in the future of now: a state begins when
// it is written, never by itself.
func CheckTimes(path string, all []Entry, now time.Time, f *setting.Faults) {
	for i, e := range all {
		for state, t := range e.times() {
			field := string(state)
			if state == Active {
				field = "activated"
			}
			f.When(t.After(now.Add(skew)), setting.Join(setting.Index(path, i), field),
				"%s is in the future: a state begins when it is recorded; or correct this machine's clock (%s)", stamp(t), stamp(now))
		}
	}
}

// times are when it came to each state.
func (r Record) times() map[State]time.Time {
	return map[State]time.Time{
		Prepared: r.Prepared, Published: r.Published, Active: r.Activated, Retired: r.Retired, Distrusted: r.Distrusted,
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

// CheckFollow adds every reason why next, whose active authority is the one
// given, can't follow what is in force in this very process. chains are next's, as
// InForce has them. [Check] knows only what is written; this knows what the process
// did, whatever is written. No records are those of a configuration with one
// authority, which never changes.
func CheckFollow(path string, before InForce, next []Entry, active [sha256.Size]byte, chains map[string][sha256.Size]byte, t Terms, f *setting.Faults) {
	if len(next) == 0 {
		return
	}
	for _, l := range before.Listed {
		i := Find(next, l.Name)
		if i < 0 {
			f.Add(path, "%s is gone, but clients are told to trust it: put it back, or distrust it first", l.Name)
			continue
		}
		at, r, signed := setting.Index(path, i), next[i], l.ID == before.Active
		end := r.WindowEnd()
		switch {
		case r.Listed() && chains[l.Name] != before.Chains[l.Name]:
			f.Add(setting.Join(at, "chain"), "begins with another certificate than the one of %s that clients are told to trust: put it back, and give what is new a name of its own", l.Name)
		case !r.Listed() && r.State != Distrusted:
			f.Add(setting.Join(at, "state"), "%s is no more listed, but clients are told to trust it: put its state back, or distrust it first", l.Name)
		case signed && r.State == Distrusted:
			f.Add(setting.Join(at, "state"), "%s signs in this service: activate another first, then distrust it", l.Name)
		case signed && !end.IsZero() && end.Before(t.Now):
			f.Add(setting.Join(at, "retired"), "%s signed in this service until now, and clients would refuse what began after %s: run `mayfly authority retire %s --again`, which records the time again",
				l.Name, stamp(end), l.Name)
		}
	}
	first, ok := before.FirstListed[active]
	if !ok && !slices.ContainsFunc(before.Listed, func(l Listed) bool { return l.ID == active }) {
		first, ok = t.Now, true // it was never listed here
	}
	i := slices.IndexFunc(next, func(e Entry) bool { return e.State == Active })
	if listed := t.Now.Sub(first); ok && i >= 0 && next[i].Forced == "" && listed < t.Propagation-t.Propagation/takeUp {
		f.Add(setting.Join(setting.Index(path, i), "published"), "this service has listed %s for %v, whatever is written, and clients need %v to learn of it: activate it later; `mayfly authority activate %s --force` says what sooner risks",
			next[i].Name, listed.Truncate(time.Second), t.Propagation, next[i].Name)
	}
}

// Action is what a person does to an authority.
type Action string

// The actions.
const (
	Prepare  Action = "prepare"
	Publish  Action = "publish"
	Activate Action = "activate"
	Retire   Action = "retire"
	Distrust Action = "distrust"
)

// step is one way from a state to another.
type step struct {
	action   Action
	from, to State
	// key says that the key must open and fit, and the chain be fit to issue.
	key bool
	// guard says that clients must have been told for the propagation time.
	guard bool
}

// steps are all that there are. A retired authority can sign again only through
// published: clients that read the trusted root meanwhile know its window as
// closed, and have to be told first, as of a new one. The active one can be
// neither retired nor distrusted by itself, since nothing would sign then:
// activating another retires it.
var steps = []step{
	{action: Prepare, from: "", to: Prepared, key: true},
	{action: Publish, from: Prepared, to: Published, key: true},
	{action: Publish, from: Retired, to: Published, key: true}, // its window is open again
	{action: Activate, from: Published, to: Active, key: true, guard: true},
	{action: Retire, from: Published, to: Retired}, // withdrawn
	{action: Retire, from: Retired, to: Retired},   // its window ends later
	{action: Distrust, from: Prepared, to: Distrusted},
	{action: Distrust, from: Published, to: Distrusted},
	{action: Distrust, from: Retired, to: Distrusted},
}

// Terms are what a step is taken under.
type Terms struct {
	Now         time.Time
	Propagation time.Duration
	// Force overrides the propagation guard.
	Force bool
	// SignedSince is since when the signed trust root lists an authority: zero for what
	// every client knows; false where it isn't listed. Nil where there is none.
	SignedSince func(name string) (time.Time, bool)
	// Again lets a retired authority be retired again, which moves its window's end.
	Again bool
}

// ErrTooSoon is in the error of an activation that the propagation guard stopped.
var ErrTooSoon = errors.New("clients may not know it yet")

// Find is the place of a name in all, or -1.
func Find(all []Entry, name string) int {
	return slices.IndexFunc(all, func(e Entry) bool { return e.Name == name })
}

// NoStepError says that an action can't follow an authority's state.
type NoStepError struct{ text string }

func (e *NoStepError) Error() string { return e.text }

func noStep(format string, args ...any) error { return &NoStepError{fmt.Sprintf(format, args...)} }

// find is the step, or why there is none.
func find(e Entry, action Action) (step, error) {
	for _, s := range steps {
		if s.action == action && s.from == e.State {
			return s, nil
		}
	}
	switch {
	case e.State == Active && action == Activate:
		return step{}, noStep("%s is active already", e.Name)
	case e.State == Active:
		return step{}, noStep("%s is active: activate another authority first, which retires this one", e.Name)
	}
	state := cmp.Or(e.State, "in no state yet")
	legal := "nothing follows; remove it from the configuration"
	if next := Next(e.Record); len(next) > 0 {
		legal = "what can follow is: " + setting.List(next)
	}
	return step{}, noStep("%s is %s, and %s can't follow that; %s", e.Name, state, action, legal)
}

// Next are the actions that can follow.
func Next(r Record) []Action {
	var all []Action
	for _, s := range steps {
		if s.from == r.State {
			all = append(all, s.action)
		}
	}
	return all
}

// NeedsKey reports whether the step demands that the authority's key opens and its
// chain is fit to issue. The error is a *NoStepError.
func NeedsKey(e Entry, action Action) (bool, error) {
	s, err := find(e, action)
	return s.key, err
}

// known is since when clients can learn of an authority; false where they can't yet.
func (t Terms) known(e Entry) (time.Time, bool) {
	if t.SignedSince == nil {
		return e.Published, true
	}
	since, listed := t.SignedSince(e.Name)
	if since.Before(e.Published) {
		since = e.Published
	}
	return since, listed
}

// Wait is how long the propagation guard still holds all[i] back; 0 when it
// doesn't.
func Wait(all []Entry, i int, t Terms) time.Duration {
	if first(all, i) {
		return 0
	}
	since, listed := t.known(all[i])
	if !listed {
		since = t.Now
	}
	return max(0, since.Add(t.Propagation).Sub(t.Now))
}

// CheckSigned adds the fault of an authority that is active although clients couldn't
// know it by the signed trust root of t, unless that was forced.
func CheckSigned(path string, all []Entry, t Terms, f *setting.Faults) {
	i := slices.IndexFunc(all, func(e Entry) bool { return e.State == Active })
	if i < 0 || t.SignedSince == nil || t.Propagation == 0 || all[i].Forced != "" || first(all, i) {
		return
	}
	at := setting.Index(path, i)
	const risk = "`mayfly authority activate %s --force` says what sooner risks"
	switch since, listed := t.known(all[i]); {
	case !listed:
		f.Add(setting.Join(at, "state"), "the signed trust root doesn't list %s, so clients refuse what it signs: "+notListed+"; "+risk, all[i].Name, all[i].Name)
	case all[i].Activated.Before(since.Add(t.Propagation)):
		f.Add(setting.Join(at, "activated"), "%s is %v after the signed trust root began to list %s, and clients need %v to learn of it; "+risk,
			stamp(all[i].Activated), all[i].Activated.Sub(since), all[i].Name, t.Propagation, all[i].Name)
	}
}

// notListed is what to do about an authority that people haven't signed for.
const notListed = "have people sign one that does (mayfly tuf stage, sign, publish)"

// Do takes a step with the authority called name and gives all records after it:
// whole, in one piece. all stays as it is. The error is a *NoStepError or wraps
// [ErrTooSoon], where there is an authority of that name.
func Do(all []Entry, name string, action Action, t Terms) ([]Entry, error) {
	i := Find(all, name)
	if i < 0 {
		return nil, fmt.Errorf("there is no authority %q", name)
	}
	s, err := find(all[i], action)
	if err != nil {
		return nil, err
	}
	now := t.Now.UTC().Truncate(time.Second)
	next := slices.Clone(all)
	e := &next[i]
	e.State = s.to
	switch s.action {
	case Prepare:
		e.Prepared = now
	case Publish:
		e.Published, e.Retired, e.Forced = now, time.Time{}, ""
	case Activate:
		if wait := Wait(all, i, t); wait > 0 && !t.Force {
			since, listed := t.known(all[i])
			if !listed {
				return nil, fmt.Errorf("the signed trust root doesn't list %s: %w; "+notListed+", and activate it %v later", name, ErrTooSoon, t.Propagation)
			}
			return nil, fmt.Errorf("%s was published at %s: %w; they are given %v, until %s",
				name, stamp(since), ErrTooSoon, t.Propagation, stamp(since.Add(t.Propagation)))
		} else if wait > 0 {
			e.Forced = fmt.Sprintf("%s: activated %v after it was published, of %v", stamp(now), now.Sub(e.Published), t.Propagation)
		}
		for j := range next {
			if j != i && next[j].State == Active {
				next[j].State, next[j].Retired = Retired, now
			}
		}
		e.Activated = now
	case Retire:
		if all[i].State == Retired && !t.Again {
			return nil, noStep("%s is retired since %s, and its window ends at %s; `mayfly authority retire %s --again` moves the end to an hour from now, and clients trust for longer what its key signs",
				name, stamp(all[i].Retired), stamp(all[i].WindowEnd()), name)
		}
		e.Retired = now
	case Distrust:
		e.Distrusted = now
	}
	return next, nil
}
