package ctlog

import "slices"

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
