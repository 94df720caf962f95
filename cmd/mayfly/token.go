package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newTokenExplainCommand(streams streams) *cobra.Command {
	var at time.Time
	cmd := &cobra.Command{
		Use: "explain", Short: "Say step by step what a configuration makes of a token",
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
	file := flags.String("token-file", "-", "file with the token, or - for standard input")
	jwks := flags.String("jwks", "", "file with the issuer's keys, a JSON Web Key Set; nothing is then fetched")
	offline := flags.Bool("offline", false, "send nothing: use --jwks, or the jwks_file of the configuration")
	timeFlag(cmd, &at, "at", "check the token as of this time, for one that has expired")
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		data, err := readInput(streams.In, *file)
		if err != nil {
			return err
		}
		token := strings.TrimSpace(string(data))
		o := identity.Options{Now: func() time.Time { return cmp.Or(at, time.Now()) }, Deny: c.Deny}
		if *jwks != "" {
			if o.JWKS, err = readInput(nil, *jwks); err != nil {
				return err
			}
			if !json.Valid(o.JWKS) {
				return fmt.Errorf("%s: isn't a JSON Web Key Set", *jwks)
			}
		} else if *offline {
			o.Transport = nobody{}
		}
		verifier, err := identity.NewVerifier(c.Issuers, o)
		if err != nil {
			return startFailure(err, "")
		}
		x := verifier.Explain(cmd.Context(), token)
		err = show(streams.Out, *asJSON, x, func(w io.Writer) { printExplanation(w, x) })
		if err != nil || x.Issued {
			return err
		}
		return &failure{code: exitRefused, err: fmt.Errorf("refused: %s: %s", x.Reason, x.Message)}
	})
}

// nobody is a network that nothing is sent to.
type nobody struct{}

// RoundTrip implements http.RoundTripper.
func (nobody) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("--offline: nothing is fetched; give the keys with --jwks")
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
	if !x.Issued {
		line("No certificate would be issued: %s", x.Reason)
		if x.Rule != "" {
			line("The rule %s decided.", x.Rule)
		}
		return
	}
	line("A certificate would be issued; the rule %s of %s decided.", x.Rule, x.Entry)
	line("  %-34s %s", "name ("+x.SANType+")", x.SAN)
	if _, err := x.Set.Extensions(); err != nil {
		line("  extensions: %v", err)
		return
	}
	for _, e := range x.Set.Named() {
		line("  %-34s %s", e.Name, e.Value)
	}
}
