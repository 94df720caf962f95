package ctlog

import (
	"context"
	"errors"
	"slices"
	"time"
)

// quorum is how many SCTs a certificate gets, and of how many operators.
type quorum struct{ scts, operators int }

// choose picks as many logs as SCTs are wanted, of as many operators, the earlier
// in the list the better; nil when the list doesn't have them. Operators are given
// by log; logs that name none are of one operator.
func (q quorum) choose(logs []int, operator func(log int) string) []int {
	var chosen []int
	seen := make(map[string]bool, q.scts)
	for _, log := range logs {
		if len(chosen) == q.scts {
			break
		}
		after := q.scts - len(chosen) - 1 // places left when this one is taken
		missing := q.operators - len(seen)
		if !seen[operator(log)] {
			missing--
		}
		// An operator's further log is no good where each place left needs a new one.
		if missing > after {
			continue
		}
		chosen = append(chosen, log)
		seen[operator(log)] = true
	}
	if len(chosen) < q.scts || len(seen) < q.operators {
		return nil
	}
	return chosen
}

// attemptState is what is known of each log during one submission.
type attemptState int

const (
	unasked attemptState = iota
	asked
	silent // asked, and without an answer for the stagger time
	answered
	failed
)

// prefer lists the logs that may still give an SCT, or have: those that did first,
// silent ones last, else in their order.
func prefer(all []attemptState) []int {
	return slices.Concat(having(all, answered), having(all, unasked, asked), having(all, silent))
}

// having lists the logs in any of some states.
func having(all []attemptState, wanted ...attemptState) []int {
	var list []int
	for log, s := range all {
		if slices.Contains(wanted, s) {
			list = append(list, log)
		}
	}
	return list
}

// suffices reports whether a certificate could get its SCTs from the logs.
func (p *Policy) suffices(logs []knownLog) bool {
	all := having(make([]attemptState, len(logs)), unasked)
	return p.quorum.choose(all, func(i int) string { return logs[i].description.Operator }) != nil
}

// ErrSuperseded is the cause with which a submission's context ends when the log was
// silent for the stagger time, and another one asked after it has answered. The log
// may take that for a failure of its own.
var ErrSuperseded = errors.New("ctlog: another log was asked later and answered first")

// answer is what one log said.
type answer struct {
	log int // its place among those that were eligible
	sct SCT
	err error
}

// race asks the logs in their order until enough have given an SCT. ctx is the
// caller's, bounded the same with the policy's timeout.
func (p *Policy) race(ctx, bounded context.Context, eligible []knownLog, chain Chain) ([]SCT, error) {
	answers := make(chan answer, len(eligible)) // never blocks a late log
	states, scts := make([]attemptState, len(eligible)), make([]SCT, len(eligible))
	leave := make([]context.CancelCauseFunc, len(eligible)) // those that were asked
	operator := func(i int) string { return eligible[i].description.Operator }
	stagger := time.NewTimer(p.o.Stagger)
	defer stagger.Stop()

	var failures []error
	for {
		if chosen := p.quorum.choose(having(states, answered), operator); chosen != nil {
			out := make([]SCT, len(chosen))
			for i, log := range chosen {
				out[i] = scts[log]
			}
			for _, log := range having(states, silent) {
				leave[log](ErrSuperseded)
			}
			return out, nil
		}
		plan := p.quorum.choose(prefer(states), operator)
		if plan == nil { // too many have failed
			return nil, p.refusal(ctx, failures)
		}
		for _, log := range plan {
			if states[log] != unasked {
				continue
			}
			states[log] = asked
			stagger.Reset(p.o.Stagger)
			var alone context.Context
			alone, leave[log] = context.WithCancelCause(bounded)
			go func() {
				sct, err := p.ask(alone, eligible[log], chain)
				answers <- answer{log, sct, err}
			}()
		}
		select {
		case a := <-answers:
			states[a.log], scts[a.log] = answered, a.sct
			if a.err != nil {
				states[a.log] = failed
				failures = append(failures, a.err)
			}
		case <-stagger.C:
			for _, log := range having(states, asked) {
				states[log] = silent
			}
		case <-bounded.Done():
			return nil, p.refusal(ctx, append(failures, context.Cause(bounded)))
		}
	}
}
