package policy

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func input(tb testing.TB, claims string) *Input {
	tb.Helper()
	set, err := claim.Parse(claims)
	if err != nil {
		tb.Fatal(err)
	}
	return &Input{
		Claims: set, Issuer: "https://issuer.example", Subject: "alice", SAN: "https://github.com/acme/app/.github/workflows/x.yml@refs/heads/main",
		SANType: "uri", Type: "ci-provider", Audience: "sigstore", Time: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC),
	}
}

const someClaims = `{"sub":"alice","repository_owner":"acme","run_id":7,"ratio":0.5,"big":123456789012345678901234567890,"yes":true,"nothing":null,
	"groups":["dev","ops"],"act":{"name":"bot","deep":{"x":[1,2]}},"a.b/c":"dotted"}`

func TestHolds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want bool
	}{
		{`true`, true},
		{`false`, false},
		{`claims.repository_owner == "acme" && principal.san.startsWith("https://github.com/acme/")`, true},
		{`claims.repository_owner == "Acme"`, false},
		{`claims["a.b/c"] == "dotted"`, true},
		{`claims.run_id == 7 && claims.run_id > 6`, true},
		{`claims.run_id == "7"`, false},
		{`claims.ratio < 1.0 && claims.big > 1.0`, true},
		{`claims.yes && claims.nothing == null`, true},
		{`"ops" in claims.groups && !("root" in claims.groups)`, true},
		{`claims.groups.exists(g, g.startsWith("de")) && size(claims.groups) == 2`, true},
		{`claims.act.name == "bot" && claims.act.deep.x[1] == 2`, true},
		{`claims.act == {"name": "bot", "deep": {"x": [1, 2]}}`, true},
		{`{"name": "bot", "deep": {"x": [1, 2]}} == claims.act && claims.act == claims.act`, true},
		{`claims.all(name, name != "admin") && size(claims) == 10 && "sub" in claims`, true},
		{`has(claims.environment)`, false},
		{`!has(claims.environment) || claims.environment == "production"`, true},
		{`claims.absent == "x" || true`, true}, // CEL: an error beside what decides is no error
		{`principal.issuer == "https://issuer.example" && principal.subject == "alice" && principal.audience == "sigstore"`, true},
		{`principal.san_type == "uri" && principal.type == "ci-provider"`, true},
		{`request.time < timestamp("2027-01-01T00:00:00Z") && request.time.getDayOfWeek("UTC") == 1`, true},
		{`claims.repository_owner.matches("^ac.e$") && claims.sub.upperAscii() == "ALICE"`, true},
	} {
		x, err := compile(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got, err := x.Holds(input(t, someClaims)); err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.text, got, err, c.want)
		}
		if x.Text != c.text {
			t.Errorf("%s: its text is %q", c.text, x.Text)
		}
	}
}

func TestAnExpressionThatCannotBeDecidedSaysWhy(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct{ absent, says string }{
		`claims.environment == "production"`:                  {"environment", `no claim "environment"`},
		`claims["environment"] == "production"`:               {"environment", ""},
		`claims.environment in claims.groups`:                 {"environment", ""},
		`claims.run_id.startsWith("7") && claims.absent == 1`: {"absent", ""}, // in whatever order
		`claims.absent == 1 && claims.run_id.startsWith("7")`: {"absent", ""},
		`claims.act.other == "x"`:                             {"", "no claims.act.other"},
		`claims[claims.sub] == "x"`:                           {"", "can't work with"}, // never a value of the token
		`claims.run_id.startsWith("7")`:                       {"", "can't work with"},
		`claims.sub > 3`:                                      {"", ""},
		`claims.groups[9] == "x"`:                             {"", ""},
		`claims.sub && true`:                                  {"", ""},
		`int(claims.sub) == 1`:                                {"", ""},
		`{"a": true}[claims.sub]`:                             {"", ""},
		`claims.list.exists(e, e.name == "x")`:                {"", ""},
		`!has(claims.absent) && claims.sub > 3`:               {"", ""}, // asking for a claim isn't reading it
		`!("absent" in claims) && claims.sub > 3`:             {"", ""},
		`[dyn(1)].exists(claims, claims.absent == 1)`:         {"", ""}, // another thing by that name
		`[claims].exists(c, c.absent == 1)`:                   {"", ""},
	} {
		x, err := compile(text)
		if err != nil {
			t.Fatal(err)
		}
		var undecided *Undecided
		holds, err := x.Holds(input(t, strings.TrimSuffix(someClaims, "}")+`,"list":[{"name":"y"},{}]}`))
		if holds || !errors.As(err, &undecided) || undecided.Absent != want.absent || !strings.Contains(err.Error(), want.says) || strings.Contains(err.Error(), "alice") {
			t.Errorf("%s: %v, %v", text, holds, err)
		}
	}
}

// TestDenyRulesThatCantBeDecidedRefuse: only a claim that the rule reads by name,
// and that the token lacks, lets a token pass.
func TestDenyRulesThatCantBeDecidedRefuse(t *testing.T) {
	t.Parallel()
	in := input(t, `{"sub":"alice","n":7,"groups":[{"name":"dev"},{"id":4},{"name":"ops"}],"act":{"name":"bot"},"nothing":null}`)
	for text, refuses := range map[string]bool{
		`claims.groups.exists(g, g.name == "root")`:                                               true, // an element has no name
		`claims.groups.exists(g, g.name == "ops")`:                                                true,
		`claims.groups.exists(g, has(g.name) && g.name == "root")`:                                false,
		`claims.groups[0].id == 4`:                                                                true,
		`{"bob": true}[claims.sub]`:                                                               true, // the operator's own map
		`{"bob": true}[claims.sub] && claims.absent == "x"`:                                       false,
		`claims.absent == "x" && {"bob": true}[claims.sub]`:                                       false,
		`claims.act.name == "evil" || claims.act.version == "3"`:                                  true,
		`claims.act.version == "3" || claims.act.name == "evil"`:                                  true,
		`claims.act.version == "3" || claims.act.name == "bot"`:                                   true,
		`claims[claims.sub] == "x"`:                                                               true, // which claim, the token chose
		`claims.nothing.startsWith("x")`:                                                          true, // null is there
		`claims.n.startsWith("7")`:                                                                true,
		`claims.absent == "x"`:                                                                    false,
		`claims.absent.deep == "x"`:                                                               false,
		`claims["absent"] == "x" || claims.sub == "bob"`:                                          false,
		`claims.absent == "x" || claims.sub == "alice"`:                                           true,
		`has(claims.absent) && claims.absent == "x" || claims.groups.exists(g, g.name == "root")`: true, // the absence was thought of
		`"absent" in claims && claims.absent == "x" || claims.n.startsWith("7")`:                  true,
		`has(claims.absent.deep)`:                                                                 false, // that asks for the member
		`has(claims.act.deep)`:                                                                    false,
		`has(claims.absent) && claims.n.startsWith("7")`:                                          false,
		`!has(claims.absent) && claims.n.startsWith("7")`:                                         true,
		`principal.san.lowerAscii() == "x" || [claims].exists(c, c.absent == "x")`:                true, // the name isn't read by name
		`claims.groups.map(g, g.name).size() > 9`:                                                 true,
		`claims.groups.exists(g, g.name == "root") || claims.groups.exists(g, g.id == 4)`:         true,
	} {
		var f setting.Faults
		rules := Rules("deny", []Deny{{Name: "r", When: text}}, &f)
		if err := f.Err(); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := rules[0].Holds(in); got != refuses {
			t.Errorf("%s: refuses %v (%v), want %v", text, got, err, refuses)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                      "is empty",
		" \n":                   "is empty",
		`claims.x ==`:           "line 1, column",
		`claim.x == "y"`:        "undeclared reference to 'claim'",
		`principal.sann == "y"`: "it can read claims, principal.issuer",
		`"yes"`:                 "is of type string",
		`claims.x`:              "is of type dyn",
		`1 + 1`:                 "is of type int",
		`principal.san == 1`:    "no matching overload",
		`claims.x == "` + strings.Repeat("a", 4096):                           "is longer than",
		`claims.a.all(a, claims.b.all(b, claims.c.all(c, a == b && b == c)))`: "costs too much",
		`claims.a.all(a, claims.b.exists(b, b == a))`:                         "costs too much",
		strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100):          "doesn't compile",
	} {
		if _, err := compile(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v; want %q", text, err, want)
		}
	}
}

// TestCompileAtOnce is for the race detector: an unknown name, for which cel-go makes
// its suggestions, beside a loop, which copies them.
func TestCompileAtOnce(t *testing.T) {
	var all sync.WaitGroup
	for range 20 {
		fields, err := NewFields([]string{"san"}, []string{"time"})
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if _, err := fields.Compile(`sann.x == "y"`); err == nil {
				t.Error("an unknown name was taken")
			}
		})
		all.Go(func() {
			if _, err := fields.Compile(`[san].exists(s, s == "y")`); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// BenchmarkHolds is what one condition costs a request.
func BenchmarkHolds(b *testing.B) {
	in := input(b, someClaims)
	for name, text := range map[string]string{
		"true":  `true`,
		"two":   `claims.repository_owner == "acme" && principal.san.startsWith("https://github.com/acme/")`,
		"group": `"ops" in claims.groups || claims.groups.exists(g, g == "x")`,
	} {
		x, err := compile(text)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if ok, err := x.Holds(in); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
