package identity

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

func wildcards(p pattern) (n int) {
	for _, part := range p.parts {
		if part == wildcard {
			n++
		}
	}
	return n
}

// first is the first entry, or nil.
func first(entries []*issuer) *issuer {
	if len(entries) == 0 {
		return nil
	}
	return entries[0]
}

// TestIndexAgreesWithThePatterns holds the index against trying every
// pattern in the order of the written rule, over generated ones.
func TestIndexAgreesWithThePatterns(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	found := 0
	for range 200 {
		var patterns []*issuer
		for range 1 + random.IntN(12) {
			text := "https://" + pick("*", "a", "b") + "." + pick("*", "x") + ".example.com" + pick("", "/", "/*", "/id/*", "/*/*", "/*/k")
			p, err := compilePattern(text)
			if err != nil {
				continue // it has no wildcard
			}
			clash := slices.ContainsFunc(patterns, func(o *issuer) bool { r := o.pattern.compare(&p); return r == equal || r == crossing })
			if !clash {
				patterns = append(patterns, &issuer{pattern: p})
			}
		}
		index := newPatternIndex(patterns)
		ordered := slices.SortedFunc(slices.Values(patterns), func(a, b *issuer) int { return cmp.Compare(wildcards(a.pattern), wildcards(b.pattern)) })
		for range 50 {
			url := pick("https://", "http://") + pick("a", "b", "c", "*", "", "A") + "." + pick("x", "y", "*") + ".example.com" +
				pick("", "/", "//", "/id", "/id/k", "/id/", "/q/k", "/*/*", "/id/k/", "/é", strings.Repeat("/s", 40))
			var want *issuer
			if at := slices.IndexFunc(ordered, func(i *issuer) bool { return i.pattern.match(url) }); at >= 0 {
				want = ordered[at]
				found++
			}
			if got := first(index.find(url)); got != want {
				t.Fatalf("%s: %v, want %v", url, got, want)
			}
		}
	}
	if found < 250 {
		t.Errorf("only %d of the issuers matched", found)
	}
}

// TestMostSpecificPatternWins, however the configuration is ordered.
func TestMostSpecificPatternWins(t *testing.T) {
	t.Parallel()
	texts := []string{"https://*.k8s.example.com/id/*", "https://eu.k8s.example.com/id/*", "https://*.k8s.example.com/*/*", "https://*.k8s.example.com/id/own"}
	for url, want := range map[string]string{
		"https://us.k8s.example.com/id/A":   texts[0],
		"https://eu.k8s.example.com/id/A":   texts[1],
		"https://us.k8s.example.com/x/A":    texts[2],
		"https://us.k8s.example.com/id/own": texts[3],
	} {
		for range 100 {
			order := rand.Perm(len(texts))
			var patterns []*issuer
			for _, n := range order {
				p, err := compilePattern(texts[n])
				if err != nil {
					t.Fatal(err)
				}
				if url == "https://us.k8s.example.com/id/own" || texts[n] != texts[3] {
					patterns = append(patterns, &issuer{pattern: p})
				}
			}
			if got := first(newPatternIndex(patterns).find(url)); got == nil || got.pattern.text != want {
				t.Fatalf("%s in the order %v: %v, want %s", url, order, got, want)
			}
		}
	}
	var f setting.Faults
	CheckIssuers("issuers", []IssuerConfig{
		{Pattern: texts[1], Type: TypeEmail, Allow: "true", Audiences: []string{"a"}}, {Pattern: texts[3], Type: TypeEmail, Allow: "true", Audiences: []string{"a"}},
	}, &f)
	if f.Len() != 1 || !strings.Contains(f.Err().Error(), "neither is the more specific") {
		t.Errorf("crossing patterns: %v", f.Err())
	}
}
