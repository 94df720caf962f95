package lifecycle

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

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

// CheckSigned gives the fault of an authority that is active although clients couldn't
// know it by the signed trust root of t, unless that was forced.
func CheckSigned(all []Entry, t Terms) []Fault {
	i := slices.IndexFunc(all, func(e Entry) bool { return e.State == Active })
	if i < 0 || t.SignedSince == nil || t.Propagation == 0 || all[i].Forced != "" || first(all, i) {
		return nil
	}
	const risk = "`mayfly authority activate %s --force` says what sooner risks"
	switch since, listed := t.known(all[i]); {
	case !listed:
		return []Fault{{i, "state", fmt.Sprintf("the signed trust root doesn't list %s, so clients refuse what it signs: "+notListed+"; "+risk, all[i].Name, all[i].Name)}}
	case all[i].Activated.Before(since.Add(t.Propagation)):
		return []Fault{{i, "activated", fmt.Sprintf("%s is %v after the signed trust root began to list %s, and clients need %v to learn of it; "+risk,
			stamp(all[i].Activated), all[i].Activated.Sub(since), all[i].Name, t.Propagation, all[i].Name)}}
	}
	return nil
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
