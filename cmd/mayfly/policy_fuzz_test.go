package main

import "testing"

// FuzzPolicyCases reads any table of cases.
func FuzzPolicyCases(f *testing.F) {
	for _, text := range []string{
		"", "cases: []", "cases: [{name: a, issuer: i, audience: b, claims: {sub: x}, expect: {allow: true, lifetime: 5m}}]",
		"cases: [{name: a, issuer: i, audience: b, claims: {1: {2: 3}}, expect: {allow: false}}]", "cases: &a [*a]", "--- {}\n--- {}",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cases, err := parsePolicyCases(data)
		if err == nil && len(cases) == 0 {
			t.Error("no cases and no error")
		}
	})
}
