package ctlog

import (
	"slices"
	"testing"
)

// TestChoose compares with all choices there are: the first in the order of
// preference that is large and diverse enough, or none.
func TestChoose(t *testing.T) {
	t.Parallel()
	const most = 5
	for logs := 1; logs <= most; logs++ {
		for code := range 1 << (2 * logs) { // four operators
			operator := func(log int) string { return string(rune('a' + code>>(2*log)&3)) }
			var all []int
			for log := range logs {
				all = append(all, log)
			}
			for scts := 1; scts <= most; scts++ {
				for operators := 1; operators <= scts; operators++ {
					q := quorum{scts, operators}
					got, want := q.choose(all, operator), q.search(logs, operator)
					if !slices.Equal(got, want) {
						t.Fatalf("%+v of %d logs, operators %b: %v, want %v", q, logs, code, got, want)
					}
				}
			}
		}
	}
}

// search tries every subset, in lexicographic order.
func (q quorum) search(logs int, operator func(int) string) (best []int) {
	for subset := range 1 << logs {
		var chosen []int
		seen := map[string]bool{}
		for log := range logs {
			if subset>>log&1 == 1 {
				chosen = append(chosen, log)
				seen[operator(log)] = true
			}
		}
		if len(chosen) == q.scts && len(seen) >= q.operators && (best == nil || slices.Compare(chosen, best) < 0) {
			best = chosen
		}
	}
	return best
}
