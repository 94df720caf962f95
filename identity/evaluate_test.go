package identity

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func policed(t *testing.T, o Options, issuers ...IssuerConfig) *Verifier {
	t.Helper()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	o.Now, o.Transport = cmpNow(o.Now), w
	v, err := NewVerifier(issuers, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func cmpNow(now func() time.Time) func() time.Time {
	if now == nil {
		return atMoment
	}
	return now
}

func TestAllow(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		`true`:  true,
		`false`: false,
		`claims.email == "alice@example.com" && principal.san_type == "email"`: true,
		`principal.san.endsWith("@example.org")`:                               false,
		`claims.groups.exists(g, g == "dev")`:                                  false, // there is none
		`request.time < timestamp("2026-01-01T00:00:00Z")`:                     false,
		`claims.sub > 4`: false, // an error never allows
	} {
		c := emailIssuer()
		c.Allow = text
		v := policed(t, Options{}, c)
		if want {
			if _, err := v.Authenticate(t.Context(), token(t, nil)); err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		e := wantFault(t, v, text, token(t, nil), fault.PolicyDenied)
		if e.Metadata["rule"] != "allow" || !strings.Contains(e.Public, "https://issuer.example") || strings.Contains(e.Error(), "alice") {
			t.Errorf("%s: %v %v", text, e, e.Metadata)
		}
		if got := testutil.ToFloat64(v.metrics.denials.WithLabelValues("allow")); got != 1 {
			t.Errorf("%s: counted %v", text, got)
		}
	}
}

func TestDeny(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Allow = `claims.sub == "alice"`
	now := moment
	var log bytes.Buffer
	deny := []policy.Deny{
		{Name: "other-claims", When: `claims.runner == "r1"`}, // not in this token: not meant
		{Name: "past", When: `true`, Until: moment},
		{Name: "hour", When: `principal.san == "alice@example.com"`, Until: moment.Add(time.Hour)},
		{Name: "broken", When: `claims.sub > 4`},
	}
	v := policed(t, Options{Deny: deny, Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil))}, c)
	if n := strings.Count(log.String(), "rule=past"); n != 1 || strings.Contains(log.String(), "rule=hour") {
		t.Errorf("log at start: %s", log.String())
	}
	tok := token(t, map[string]any{"exp": moment.Add(10 * time.Hour).Unix()})
	if e := wantFault(t, v, "the rule of an hour", tok, fault.PolicyDenied); e.Metadata["rule"] != "hour" || !strings.Contains(e.Public, "hour") {
		t.Errorf("%v %v", e, e.Metadata)
	}
	if x := v.Explain(t.Context(), tok); x.Refusal == nil || x.Rule != "hour" {
		t.Errorf("explained as %+v", x)
	}
	now = moment.Add(time.Hour)
	if e := wantFault(t, v, "one that can't be decided refuses", tok, fault.PolicyDenied); e.Metadata["rule"] != "broken" {
		t.Errorf("%v %v", e, e.Metadata)
	}
	if n := strings.Count(log.String(), "rule=hour"); n != 1 {
		t.Errorf("log after an hour: %s", log.String())
	}
	for rule, want := range map[string]float64{"hour": 1, "broken": 1, "allow": 0, "past": 0, "other-claims": 0} {
		if got := testutil.ToFloat64(v.metrics.denials.WithLabelValues(rule)); got != want {
			t.Errorf("%s was counted %v times, want %v", rule, got, want)
		}
	}
}

// TestUndecidedRulesAreCountedAndLogged: what refuses is told, what isn't meant is only counted.
func TestUndecidedRulesAreCountedAndLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := emailIssuer()
	c.Allow = `claims.department == "x" || claims.sub == "carol"`
	v := policed(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil)), Deny: []policy.Deny{
		{Name: "other-claims", When: `claims.runner == "r1"`},
		{Name: "members", When: `claims.teams.exists(x, x.name == "root")`},
	}}, c)
	teams := map[string]any{"teams": []any{map[string]any{"name": "dev"}, map[string]any{"id": "SECRET"}}}
	if e := wantFault(t, v, "a team without a name", token(t, teams), fault.PolicyDenied); e.Metadata["rule"] != "members" {
		t.Errorf("%v %v", e, e.Metadata)
	}
	if text := log.String(); strings.Count(text, "couldn't be decided") != 1 || !strings.Contains(text, "rule=members") || strings.Contains(text, "SECRET") {
		t.Errorf("log: %s", text)
	}
	wantFault(t, v, "no department", token(t, nil), fault.PolicyDenied)
	v.Explain(t.Context(), token(t, teams)) // counts nothing
	for labels, want := range map[[2]string]float64{{"other-claims", "ignored"}: 2, {"members", "refused"}: 1, {"members", "ignored"}: 1, {"allow", "refused"}: 1} {
		if got := testutil.ToFloat64(v.metrics.undecided.WithLabelValues(labels[0], labels[1])); got != want {
			t.Errorf("%v was counted %v times, want %v", labels, got, want)
		}
	}
}

// TestRefusalsOfGenuineTokensSayWhose: from the signature on, an error says whose token it was, and its text doesn't.
func TestRefusalsOfGenuineTokensSayWhose(t *testing.T) {
	t.Parallel()
	alice, issuer := SAN{Email, "alice@example.com"}, "https://issuer.example"
	for name, c := range map[string]struct {
		change map[string]any
		deny   []policy.Deny
		once   bool
		want   *RefusedError
	}{
		"allow":      {map[string]any{"sub": "bob"}, nil, false, &RefusedError{Issuer: issuer, Subject: "bob", SAN: alice}},
		"deny":       {nil, []policy.Deny{{Name: "all", When: "true"}}, false, &RefusedError{Issuer: issuer, Subject: "alice", SAN: alice}},
		"a claim":    {map[string]any{"email_verified": false}, nil, false, &RefusedError{Issuer: issuer, Subject: "alice"}},
		"no subject": {map[string]any{"sub": ""}, nil, false, &RefusedError{Issuer: issuer}},
		"used twice": {nil, nil, true, &RefusedError{Issuer: issuer, Subject: "alice", SAN: alice}},
		"audience":   {map[string]any{"aud": "other"}, nil, false, nil},
		"expired":    {map[string]any{"exp": moment.Add(-time.Hour).Unix()}, nil, false, nil},
	} {
		config := emailIssuer()
		config.Allow, config.OneTime = `claims.sub == "alice"`, c.once
		v := policed(t, Options{Deny: c.deny}, config)
		tok := token(t, c.change)
		p, err := v.Authenticate(t.Context(), tok)
		if c.once && err == nil {
			p, err = v.Authenticate(t.Context(), tok)
		}
		var got *RefusedError
		switch {
		case err == nil || !p.IsZero():
			t.Errorf("%s: %+v, %v", name, p, err)
		case errors.As(err, &got) != (c.want != nil):
			t.Errorf("%s: %#v", name, err)
		case got != nil && (got.Issuer != c.want.Issuer || got.Subject != c.want.Subject || got.SAN != c.want.SAN):
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if fault.From(err).Kind() == fault.Internal || strings.Contains(err.Error(), "alice") || strings.Contains(err.Error(), "bob") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Lifetime, c.MaxLifetime = 5*time.Minute, 30*time.Minute
	c.Profiles = []policy.Profile{
		{Name: "absent", When: `claims.ref == "x"`, Lifetime: time.Minute},
		{Name: "bob", When: `claims.sub == "bob"`, Lifetime: 30 * time.Minute},
		{Name: "short", When: `claims.sub.startsWith("b")`, Lifetime: 2 * time.Minute},
	}
	v := policed(t, Options{}, c)
	for sub, want := range map[string]struct {
		profile  string
		lifetime time.Duration
	}{"alice": {"", 5 * time.Minute}, "bob": {"bob", 30 * time.Minute}, "bert": {"short", 2 * time.Minute}} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{"sub": sub}))
		if err != nil || p.Profile() != want.profile || p.Lifetime() != want.lifetime || p.MaxLifetime() != 30*time.Minute {
			t.Errorf("%s: %q %v %v, %v", sub, p.Profile(), p.Lifetime(), p.MaxLifetime(), err)
		}
	}
}

func TestPolicyFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*IssuerConfig)
		want   string
	}{
		"no allow":          {func(c *IssuerConfig) { c.Allow = "" }, "i[0].allow: required"},
		"no bool":           {func(c *IssuerConfig) { c.Allow = "claims.x" }, "i[0].allow: is of type dyn"},
		"unknown name":      {func(c *IssuerConfig) { c.Allow = `subject == "x"` }, "i[0].allow: doesn't compile: line 1, column 1"},
		"lifetime over 10m": {func(c *IssuerConfig) { c.Lifetime = 11 * time.Minute }, "i[0].lifetime: 11m0s is out of bounds: from 1m0s to the issuer's max_lifetime, 10m0s"},
		"max over an hour":  {func(c *IssuerConfig) { c.MaxLifetime = 2 * time.Hour }, "i[0].max_lifetime: "},
		"half a second":     {func(c *IssuerConfig) { c.Lifetime = time.Minute + time.Second/2 }, "i[0].lifetime: "},
		"profile too long":  {func(c *IssuerConfig) { c.Profiles = []policy.Profile{{Name: "a", When: "true", Lifetime: time.Hour}} }, "i[0].profiles[0].lifetime: "},
		"profile's name": {func(c *IssuerConfig) {
			c.Profiles = []policy.Profile{{Name: "A b", When: "true", Lifetime: time.Minute}}
		}, "i[0].profiles[0].name: "},
		"profile's condition": {func(c *IssuerConfig) { c.Profiles = []policy.Profile{{Name: "a", Lifetime: time.Minute}} }, "i[0].profiles[0].when: is empty"},
	} {
		config := emailIssuer()
		c.change(&config)
		var f setting.Faults
		if CheckIssuers("i", []IssuerConfig{config}, &f); f.Len() != 1 || !strings.HasPrefix(f.Err().Error(), c.want) {
			t.Errorf("%s: %v; want %s", name, f.Err(), c.want)
		}
	}
	var f setting.Faults
	policy.Rules("deny", []policy.Deny{{Name: "a", When: "true"}, {Name: "a", When: "true"}, {Name: "allow", When: "1"}, {}}, &f)
	for i, want := range []string{"deny[1].name: a is the name of another", "deny[2].name: allow is the name", "deny[2].when: is of type int", "deny[3].name: \"\" isn't 1 to 64", "deny[3].when: is empty"} {
		if got := strings.Split(f.Err().Error(), "\n"); len(got) != 5 || !strings.HasPrefix(got[i], want) {
			t.Errorf("%q, want %s", got, want)
		}
	}
	if _, err := NewVerifier([]IssuerConfig{emailIssuer()}, Options{Deny: []policy.Deny{{}}}); err == nil || !strings.Contains(err.Error(), "deny[0].name") {
		t.Errorf("a verifier with a bad rule: %v", err)
	}
}

// TestRoutes sends tokens of one issuer to different entries by their audience.
func TestRoutes(t *testing.T) {
	t.Parallel()
	people, machines := emailIssuer(), emailIssuer()
	machines.Type, machines.SubjectDomain, machines.Audiences = TypeUsername, "example.com", []string{"machines", "robots"}
	machines.Allow = `claims.sub == "bot"`
	v := policed(t, Options{}, people, machines)
	for name, c := range map[string]struct {
		aud  any
		sub  string
		want string // "" for refused
	}{
		"the first":      {"sigstore", "alice", "alice@example.com"},
		"the second":     {"robots", "bot", "bot!example.com"},
		"of the second":  {[]string{"else", "machines"}, "bot", "bot!example.com"},
		"its own policy": {"machines", "alice", ""},
	} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{"aud": c.aud, "sub": c.sub}))
		if p.SAN().Value != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %v, %v; want %q", name, p.SAN(), err, c.want)
		}
	}
	for _, aud := range []any{"other", []string{"sigstore", "machines"}, []string{}, nil, 7} {
		e := wantFault(t, v, "audience", token(t, map[string]any{"aud": aud}), fault.TokenAudience, fault.TokenMalformed)
		if e.Reason == fault.TokenAudience && !strings.Contains(e.Error(), "machines") {
			t.Errorf("%v: %v", aud, e)
		}
	}
	if d := v.Issuers(); len(d) != 2 || d[0].URL != d[1].URL || d[0].Audiences[0] != "sigstore" || d[1].Audiences[0] != "machines" || d[1].Type != "username" {
		t.Errorf("described as %+v", d)
	}
	if s := v.Status(); len(s) != 1 || s[0].Name != "https://issuer.example" {
		t.Errorf("its keys are had %d times", len(s))
	}
	pattern := machines
	pattern.URL, pattern.Pattern = "", "https://*.k8s.example.com/id/*"
	second := pattern
	second.Audiences = []string{"others"}
	v = policed(t, Options{}, people, pattern, second)
	if i := v.current.Load().match("https://a.k8s.example.com/id/b"); len(i) != 2 || i[1].config.Audiences[0] != "others" {
		t.Errorf("two entries for one pattern: %+v", i)
	}
	other := machines
	other.MaxKeysAge = time.Hour
	var f setting.Faults
	if CheckIssuers("i", []IssuerConfig{people, other}, &f); f.Len() != 1 || !strings.Contains(f.Err().Error(), "such settings must be the same in both") {
		t.Errorf("two entries that fetch otherwise: %v", f.Err())
	}
}

func TestChainguard(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Type = TypeChainguard
	v := policed(t, Options{}, c)
	act := map[string]any{"iss": "https://idp.example", "sub": "x"}
	p, err := v.Authenticate(t.Context(), token(t, map[string]any{"sub": "0475f6baca584a8964a6bce6b74dbe78dd8805b6/b74ceb966caf448f", "act": act}))
	if err != nil || p.SAN() != (SAN{URI, "https://issuer.example/0475f6baca584a8964a6bce6b74dbe78dd8805b6/b74ceb966caf448f"}) {
		t.Errorf("%v %v", p.SAN(), err)
	}
	for name, change := range map[string]map[string]any{
		"no act": {"sub": "a/b"}, "act is text": {"sub": "a/b", "act": "x"}, "leads out": {"sub": "../b", "act": act}, "empty part": {"sub": "a//b", "act": act},
		"query": {"sub": "a?b", "act": act}, "escape": {"sub": "a/%2e%2e/b", "act": act}, "dot": {"sub": "./b", "act": act},
	} {
		wantFault(t, v, name, token(t, change), fault.ClaimMissing, fault.ClaimInvalid)
	}
}

// TestExplainAgrees holds Explain against Authenticate, over what is accepted
// and refused at every step.
func TestExplainAgrees(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Allow, c.OneTime, c.MaxTokenAge = `claims.sub == "alice"`, true, 30*time.Minute
	for name, change := range map[string]map[string]any{
		"issued": {}, "issuer": {"iss": "https://other.example"}, "no issuer": {"iss": 7}, "audience": {"aud": "x"}, "expired": {"exp": moment.Add(-time.Hour).Unix()},
		"old": {"iat": moment.Add(-time.Hour).Unix()}, "party": {"aud": []string{"sigstore", "x"}, "azp": "x"}, "unverified": {"email_verified": false}, "policy": {"sub": "bob"},
	} {
		v := policed(t, Options{}, c)
		tok := token(t, change)
		for range 2 { // it doesn't use the token up
			x := v.Explain(t.Context(), tok)
			last := x.Findings[len(x.Findings)-1]
			if (x.Refusal == nil) != last.OK || last.Step == "" {
				t.Errorf("%s: %+v, and last %+v", name, x.Refusal, last)
			}
		}
		x := v.Explain(t.Context(), tok)
		p, err := v.Authenticate(t.Context(), tok)
		if (err == nil) != (x.Refusal == nil) || p.SAN().Value != x.SAN || p.SAN().Kind.String() != x.SANType || p.Extensions() != x.Set {
			t.Errorf("%s: %v, explained as %v", name, err, x.Refusal)
		}
		if err != nil && (fault.From(err).Reason != x.Refusal.Reason || fault.From(err).Public != x.Refusal.Public) {
			t.Errorf("%s: %v, explained as %v", name, err, x.Refusal)
		}
		if y := v.ExplainClaims(encode(t, claims(change))); (y.Refusal == nil) != (err == nil) && name != "expired" && name != "old" {
			t.Errorf("%s: by its claims %v", name, y.Refusal)
		}
	}
	v := policed(t, Options{}, c)
	for _, text := range []string{"", "x", "{}", "[]", `{"iss":1}`} {
		if x := v.ExplainClaims(text); x.Refusal == nil {
			t.Errorf("%q would be issued", text)
		}
		if x := v.Explain(t.Context(), text); x.Refusal == nil || len(x.Findings) == 0 {
			t.Errorf("%q would be issued", text)
		}
	}
}
