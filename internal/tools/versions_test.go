package tools_test

import (
	"maps"
	"os"
	"slices"
	"testing"

	"golang.org/x/mod/modfile"
)

// bent are the modules that the foreign clients want newer than the product, each
// with the reason why figures and documents made here are the product's even so.
var bent = map[string]string{}

// TestVersionsAreTheProducts: what the bench measures and configdoc describes in
// process is built with the product's own dependencies.
func TestVersionsAreTheProducts(t *testing.T) {
	t.Parallel()
	here, product := versions(t, "go.mod"), versions(t, "../../go.mod")
	exceptions := maps.Clone(bent)
	for path, want := range product {
		got, used := here[path]
		if !used || got == want {
			continue
		}
		if _, ok := exceptions[path]; !ok {
			t.Errorf("%s is %s here and %s in the product", path, got, want)
		}
		delete(exceptions, path)
	}
	for _, path := range slices.Sorted(maps.Keys(exceptions)) {
		t.Errorf("%s is the same version in both: take the exception out", path)
	}
}

func versions(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := modfile.Parse(file, text, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string, len(parsed.Require))
	for _, r := range parsed.Require {
		all[r.Mod.Path] = r.Mod.Version
	}
	if len(all) < 10 {
		t.Fatalf("%s requires %d modules: is it the right file?", file, len(all))
	}
	return all
}
