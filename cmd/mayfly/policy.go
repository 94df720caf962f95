package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
)

func newPolicyTestCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "test FILE|-", Short: "Compare what a policy decides with what it should",
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
	}
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, loadConfig, func(_ *cobra.Command, _ string, c *config.Config, args []string) error {
		cases, err := readAs(streams.In, args[0], "`mayfly policy test --help` shows the form", parsePolicyCases)
		if err != nil {
			return err
		}
		verifier, err := identity.NewVerifier(c.Issuers, identity.Options{Now: time.Now, Deny: c.Deny, Transport: nobody{}})
		if err != nil {
			return startFailure(err, "")
		}
		return runPolicyCases(streams.Out, *asJSON, verifier, cases)
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
func runPolicyCases(out io.Writer, asJSON bool, v *identity.Verifier, cases []policyCase) error {
	w, failed, all := telling(out, asJSON), 0, []map[string]any{}
	t := newTable(w)
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
		all = append(all, map[string]any{
			"name": c.Name, "passed": len(wrong) == 0, "allowed": x.Issued, "verdict": verdictOf(x), "differences": slices.Concat([]string{}, wrong),
		})
		t.row(mark, c.Name, verdictOf(x))
		for _, difference := range wrong {
			t.row("", "  "+difference)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := show(out, asJSON, map[string]any{"cases": all, "failed": failed}, nil); err != nil {
		return err
	}
	if failed > 0 {
		return fail("", "%d of %d cases failed", failed, len(cases))
	}
	_, err := fmt.Fprintf(w, "%d cases passed\n", len(cases))
	return err
}

func verdictOf(x *identity.Explanation) string {
	switch {
	case x.Issued:
		return "allowed: " + x.SAN
	case x.Rule != "":
		return x.Reason + " by " + x.Rule
	}
	return x.Reason
}

// differences lists where the outcome isn't as expected.
func (c *policyCase) differences(x *identity.Explanation) []string {
	var all []string
	differ := func(what, expected, actual string) {
		if expected != "" && expected != actual {
			all = append(all, fmt.Sprintf("%s: expected %s, got %s", what, expected, orNone(actual)))
		}
	}
	outcome := "true"
	if !x.Issued {
		outcome = "false: " + x.Message
	}
	if *c.Expect.Allow != x.Issued {
		all = append(all, fmt.Sprintf("allow: expected %t, got %s", *c.Expect.Allow, outcome))
	}
	differ("reason", c.Expect.Reason, x.Reason)
	differ("rule", c.Expect.Rule, x.Rule)
	differ("san", c.Expect.SAN, x.SAN)
	differ("profile", c.Expect.Profile, x.Profile)
	if c.Expect.Lifetime != 0 {
		differ("lifetime", c.Expect.Lifetime.String(), x.Lifetime)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Expect.Extensions)) {
		if want := c.Expect.Extensions[name]; x.Extensions[name] != want {
			all = append(all, fmt.Sprintf("extensions.%s: expected %s, got %s", name, orNone(want), orNone(x.Extensions[name])))
		}
	}
	return all
}

func orNone(s string) string { return cmp.Or(s, "none") }
