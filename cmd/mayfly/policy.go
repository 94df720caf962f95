package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newPolicyTestCommand(streams streams) *cobra.Command {
	return withConfig(&cobra.Command{
		Use:   "test FILE|-",
		Short: "Compare what a policy decides with what it should",
		Long: `Runs a table of claims against a configuration, by the rules that the service
would apply to a genuine token with these claims, and compares the outcomes with
those expected. It sends nothing. The exit status is 1 when any case fails.

FILE is YAML. Of expect, allow is required; the rest is compared where it is written:

  cases:
    - name: a release of ours
      issuer: https://token.actions.githubusercontent.com
      audience: https://ca.example.com
      claims: {sub: "repo:acme/app:ref:refs/heads/main", repository_owner: acme}
      expect:
        allow: true            # or false, with reason and rule:
        # reason: POLICY_DENIED
        # rule: allow          # or the name of a deny rule
        # san: https://github.com/acme/app/.github/workflows/x.yml@refs/heads/main
        # extensions: {source_repository_owner_uri: https://github.com/acme}
        # profile: release
        # lifetime: 30m`,
		Example: "  mayfly policy test policy_test.yaml --config mayfly.yaml",
	}, loadConfig, func(_ *cobra.Command, _ string, c *config.Config, args []string) error {
		cases, err := readAs(streams.In, args[0], "`mayfly policy test --help` shows the form", parsePolicyCases)
		if err != nil {
			return err
		}
		verifier, err := identity.NewVerifier(c.Issuers, identity.Options{Now: time.Now, Deny: c.Deny, Transport: canned{}})
		if err != nil {
			return startFailure(err, "")
		}
		return runPolicyCases(streams.Out, verifier, cases)
	})
}

// policyCase is one line of the table.
type policyCase struct {
	Name     string         `yaml:"name"`
	Issuer   string         `yaml:"issuer"`
	Audience string         `yaml:"audience"`
	Claims   map[string]any `yaml:"claims"`
	Expect   struct {
		Allow      *bool             `yaml:"allow"`
		Reason     string            `yaml:"reason"`
		Rule       string            `yaml:"rule"`
		SAN        string            `yaml:"san"`
		Extensions map[string]string `yaml:"extensions"`
		Profile    string            `yaml:"profile"`
		Lifetime   time.Duration     `yaml:"lifetime"`
	} `yaml:"expect"`
}

// maxPolicyCases bounds a table.
const maxPolicyCases = 10_000

// parsePolicyCases reads a table strictly.
func parsePolicyCases(data []byte) ([]policyCase, error) {
	var document struct {
		Cases []policyCase `yaml:"cases"`
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	switch err := d.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("is empty")
	case err != nil:
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	if n := len(document.Cases); n == 0 || n > maxPolicyCases {
		return nil, fmt.Errorf("holds %d cases; 1 to %d are expected", n, maxPolicyCases)
	}
	for i, c := range document.Cases {
		for _, field := range [][2]string{{"name", c.Name}, {"issuer", c.Issuer}, {"audience", c.Audience}} {
			if field[1] == "" {
				return nil, fmt.Errorf("cases[%d].%s: required", i, field[0])
			}
		}
		if c.Expect.Allow == nil {
			return nil, fmt.Errorf("cases[%d].expect.allow: required, true or false", i)
		}
		if _, err := c.token(); err != nil {
			return nil, fmt.Errorf("cases[%d].claims: %w", i, err)
		}
	}
	return document.Cases, nil
}

// token is the case's claims as a token would hold them.
func (c *policyCase) token() (string, error) {
	all := map[string]any{"iss": c.Issuer, "aud": c.Audience}
	for name, value := range c.Claims {
		if _, both := all[name]; both {
			return "", fmt.Errorf("%s is set beside the claims; keep one", map[string]string{"iss": "issuer", "aud": "audience"}[name])
		}
		all[name] = value
	}
	text, err := json.Marshal(all)
	if err != nil {
		return "", errors.New("can't be written as JSON: use text as keys")
	}
	return string(text), nil
}

// runPolicyCases prints the table of outcomes; the error says how many failed.
func runPolicyCases(w io.Writer, v *identity.Verifier, cases []policyCase) error {
	t, failed := newTable(w), 0
	for i := range cases {
		c := &cases[i]
		claims, err := c.token()
		if err != nil {
			return err
		}
		x := v.ExplainClaims(claims)
		wrong := c.differences(x)
		mark := "pass"
		if len(wrong) > 0 {
			mark = "FAIL"
			failed++
		}
		t.row(mark, c.Name, verdictOf(x))
		for _, difference := range wrong {
			t.row("", "  "+difference)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if failed > 0 {
		return fail("", "%d of %d cases failed", failed, len(cases))
	}
	_, err := fmt.Fprintf(w, "%d cases passed\n", len(cases))
	return err
}

func verdictOf(x *identity.Explanation) string {
	if x.Refusal == nil {
		return "allowed: " + x.SAN.Value
	}
	if x.Rule != "" {
		return string(x.Refusal.Reason) + " by " + x.Rule
	}
	return string(x.Refusal.Reason)
}

// differences lists where the outcome isn't as expected.
func (c *policyCase) differences(x *identity.Explanation) []string {
	var all []string
	differ := func(what, expected, actual string) {
		if expected != "" && expected != actual {
			all = append(all, fmt.Sprintf("%s: expected %s, got %s", what, expected, orNone(actual)))
		}
	}
	reason := ""
	if x.Refusal != nil {
		reason = string(x.Refusal.Reason)
	}
	if allowed := x.Refusal == nil; allowed != *c.Expect.Allow {
		text := fmt.Sprintf("allow: expected %t, got %t", *c.Expect.Allow, allowed)
		if !allowed {
			text += ": " + x.Refusal.Public
		}
		all = append(all, text)
	}
	differ("reason", c.Expect.Reason, reason)
	differ("rule", c.Expect.Rule, x.Rule)
	differ("san", c.Expect.SAN, x.SAN.Value)
	differ("profile", c.Expect.Profile, x.Profile)
	if c.Expect.Lifetime != 0 {
		differ("lifetime", c.Expect.Lifetime.String(), x.Lifetime.String())
	}
	got := x.Extensions.Map()
	for _, name := range slices.Sorted(maps.Keys(c.Expect.Extensions)) {
		if want := c.Expect.Extensions[name]; got[name] != want {
			all = append(all, fmt.Sprintf("extensions.%s: expected %s, got %s", name, orNone(want), orNone(got[name])))
		}
	}
	return all
}

func orNone(s string) string { return cmp.Or(s, "none") }

// tokenExplain is the command line of `mayfly token explain`.
type tokenExplain struct {
	token, jwks   string
	at            time.Time
	offline, json bool
}

func newTokenExplainCommand(streams streams) *cobra.Command {
	var e tokenExplain
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say step by step what a configuration makes of a token",
		Long: `Checks a token as the service with this configuration would, by the same code,
and says step by step what it found: which issuer the token is for and why not
the others, what each check expected, the name and the extensions of the
certificate, and the line of the policy that decided. Nothing is issued.

The issuer's keys are fetched, unless --jwks gives them. With --offline nothing
is sent anywhere. The exit status is 0 when a certificate would be issued, and 3
when not.`,
		Example: `  mayfly token explain --config mayfly.yaml --token-file token.jwt
  mayfly token explain --config mayfly.yaml --jwks keys.json --at 2026-05-04T03:02:01Z < token.jwt`,
	}
	flags := cmd.Flags()
	flags.StringVar(&e.token, "token-file", "-", "file with the token, or - for standard input")
	flags.StringVar(&e.jwks, "jwks", "", "file with the issuer's keys, a JSON Web Key Set; nothing is then fetched")
	flags.BoolVar(&e.offline, "offline", false, "send nothing: use --jwks, or the jwks_file of the configuration")
	timeFlag(cmd, &e.at, "at", "check the token as of this time, for one that has expired")
	flags.BoolVar(&e.json, "json", false, "print JSON")
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		return e.run(cmd.Context(), c, streams)
	})
}

func (e *tokenExplain) run(ctx context.Context, c *config.Config, streams streams) error {
	data, err := readInput(streams.In, e.token)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(data))
	o := identity.Options{Now: func() time.Time { return cmp.Or(e.at, time.Now()) }, Deny: c.Deny}
	if err := e.sources(c, &o, token); err != nil {
		return err
	}
	verifier, err := identity.NewVerifier(c.Issuers, o)
	if err != nil {
		return startFailure(err, "")
	}
	x := verifier.Explain(ctx, token)
	err = show(streams.Out, e.json, explained(x), func(w io.Writer) { printExplanation(w, x) })
	if err != nil || x.Refusal == nil {
		return err
	}
	return &failure{code: exitRefused, err: fmt.Errorf("refused: %s: %s", x.Refusal.Reason, x.Refusal.Public)}
}

// sources makes the keys come from where the command line says.
func (e *tokenExplain) sources(c *config.Config, o *identity.Options, token string) error {
	if e.jwks == "" {
		if e.offline {
			o.Transport = canned{}
		}
		return nil
	}
	keys, err := readFile(e.jwks)
	if err != nil {
		return err
	}
	if !json.Valid(keys) {
		return fmt.Errorf("%s: isn't a JSON Web Key Set", e.jwks)
	}
	for i := range c.Issuers {
		if entry := &c.Issuers[i]; entry.JWKSFile != "" || entry.JWKSURL != "" { // whose url may be no URL to discover at
			entry.JWKSFile, entry.JWKSURL = "", "https://keys.invalid/keys" // which canned answers
		}
	}
	o.Transport = canned{issuer: claimedIssuer(token), keys: keys}
	return nil
}

// claimedIssuer is what the token says its issuer is, or "": only for
// answering the verifier, which checks it.
func claimedIssuer(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return ""
	}
	return claims.Issuer
}

// canned is a network of one issuer, whose keys are at hand, or of none.
type canned struct {
	issuer string
	keys   []byte
}

// RoundTrip implements http.RoundTripper.
func (n canned) RoundTrip(r *http.Request) (*http.Response, error) {
	if n.issuer == "" {
		return nil, errors.New("--offline: nothing is fetched; give the keys with --jwks")
	}
	body := string(n.keys)
	if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
		document, err := json.Marshal(map[string]string{"issuer": n.issuer, "jwks_uri": strings.TrimSuffix(n.issuer, "/") + "/keys"})
		if err != nil {
			return nil, err
		}
		body = string(document)
	}
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

// explanation is an identity.Explanation in JSON.
type explanation struct {
	Issued      bool               `json:"would_be_issued"`
	Reason      string             `json:"reason,omitempty"`
	Message     string             `json:"message,omitempty"`
	Rule        string             `json:"rule,omitempty"`
	Entry       string             `json:"entry,omitempty"`
	Steps       []identity.Finding `json:"steps"`
	SAN         string             `json:"san,omitempty"`
	SANType     string             `json:"san_type,omitempty"`
	Extensions  map[string]string  `json:"extensions,omitempty"`
	Profile     string             `json:"profile,omitempty"`
	Lifetime    string             `json:"lifetime,omitempty"`
	MaxLifetime string             `json:"max_lifetime,omitempty"`
}

func explained(x *identity.Explanation) explanation {
	e := explanation{
		Issued: x.Refusal == nil, Rule: x.Rule, Entry: x.Entry, Steps: x.Findings, SAN: x.SAN.Value, SANType: x.SAN.Kind.String(), Profile: x.Profile,
	}
	if x.Refusal != nil {
		e.Reason, e.Message = string(x.Refusal.Reason), x.Refusal.Public
		return e
	}
	e.Extensions = x.Extensions.Map()
	if x.Lifetime > 0 {
		e.Lifetime = x.Lifetime.String()
	}
	if x.MaxLifetime > 0 {
		e.MaxLifetime = x.MaxLifetime.String()
	}
	return e
}

func printExplanation(w io.Writer, x *identity.Explanation) {
	line := func(format string, args ...any) { fmt.Fprintln(w, terminal.Line(fmt.Sprintf(format, args...))) }
	for _, f := range x.Findings {
		mark := "ok  "
		if !f.OK {
			mark = "NO  "
		}
		line("%s%s", mark, f.Step)
		if f.Expected != "" {
			line("      expected  %s", f.Expected)
		}
		if f.Actual != "" {
			line("      actual    %s", f.Actual)
		}
		for _, c := range f.Claims {
			line("      reads     %s: %s", c.Name, strings.TrimSpace(c.Kind+" "+c.Value))
		}
		for _, note := range f.Notes {
			line("      %s", note)
		}
	}
	line("")
	if x.Refusal != nil {
		line("No certificate would be issued: %s", x.Refusal.Reason)
		if x.Rule != "" {
			line("The rule %s decided.", x.Rule)
		}
		return
	}
	line("A certificate would be issued; the rule %s of %s decided.", x.Rule, x.Entry)
	line("  %-34s %s", "name ("+x.SAN.Kind.String()+")", x.SAN.Value)
	encoded, err := x.Extensions.Extensions()
	if err == nil {
		var named []extension.Named
		named, err = extension.Name(encoded)
		for _, e := range named {
			line("  %-34s %s", e.Name, e.Value)
		}
	}
	if err != nil {
		line("  extensions: %v", err)
	}
}
