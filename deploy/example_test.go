package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/identity"
)

// TestExampleConditionsReadWhatIssuersSend: the example's conditions, and the deny
// rules that it shows in comments, have nothing that `mayfly check` remarks on.
func TestExampleConditionsReadWhatIssuersSend(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("mayfly.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`(?m)^# deny:\n(?:#  .*\n)+`).Find(text)
	if shown == nil {
		t.Fatal("the example shows no deny rule")
	}
	rules := strings.ReplaceAll("\n"+string(shown), "\n# ", "\n")
	file := filepath.Join(t.TempDir(), "mayfly.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), string(shown), rules, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := load(t, file)
	if len(c.Deny) < 2 {
		t.Fatalf("deny rules: %+v", c.Deny)
	}
	if remarks := identity.ConditionRemarks("issuers", c.Issuers, "deny", c.Deny); len(remarks) > 0 {
		t.Errorf("%s", strings.Join(remarks, "\n"))
	}
}
