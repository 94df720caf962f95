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
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/config/fulcio"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newImportFulcioCommand(streams streams) *cobra.Command {
	return &cobra.Command{
		Use: "import-fulcio FILE|-", Short: "Turn a Fulcio identity configuration into the issuers of a Mayfly one",
		Long: `Reads a Fulcio identity configuration, in YAML or in its older JSON form, and
prints the section issuers of a Mayfly configuration that names the same
identities in the same way. What had to be decided is listed on standard error:
look at each line, and narrow every allow.`,
		Example: "  mayfly config import-fulcio fulcio-config.yaml > issuers.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			got, err := readAs(streams.In, args[0], "", fulcio.Convert)
			if err != nil {
				return err
			}
			for _, d := range got.Decisions {
				fmt.Fprintf(streams.Err, "decided: %s\n", terminal.Line(d))
			}
			e := yaml.NewEncoder(streams.Out)
			e.SetIndent(2)
			if err := errors.Join(e.Encode(map[string][]identity.IssuerConfig{"issuers": got.Issuers}), e.Close()); err != nil {
				return err
			}
			var f setting.Faults
			if identity.CheckIssuers("issuers", got.Issuers, &f); f.Len() > 0 {
				return &failure{code: exitFailed, fix: "fix these lines in the result", err: f.Err()}
			}
			return nil
		},
	}
}

// inlineStates remarks on what a configuration says itself that commands could keep.
func inlineStates(file string, c *config.Config) []string {
	var all []string
	if len(c.CA.Authorities) > 0 && c.CA.StateFile == "" {
		all = append(all, "ca.authorities has its states itself, which no command changes there; to move them, "+exportStates(file))
	}
	if logs := c.CTLog; logs.StateFile == "" && (len(logs.Shards)+len(logs.Frozen) > 0 && logs.Mode == ctlog.ModeEmbedded || !logs.Embedded.End.IsZero()) {
		all = append(all, "ctlog has shards, ends or frozen logs itself, which no command changes there; to move them, "+exportStates(file))
	}
	return all
}

func newExportStatesCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "export-states", Short: "Move the states of authorities and logs into state files",
		Long: `Makes the state files in which the commands authority and log keep what they decide,
of what the configuration says itself: the states of ca.authorities, and ctlog.shards,
ctlog.frozen and the first log's end. It prints which lines of the configuration to
put and which to delete, and writes nothing into it. A state file that is there
already is never touched. Restart the service once the lines are changed.`,
		Example: `  mayfly config export-states --config /etc/mayfly/mayfly.yaml
  mayfly config export-states --config /etc/mayfly/mayfly.yaml --authorities /var/lib/mayfly/authorities.json --logs /var/lib/mayfly/logs.json`,
	}
	authorities := cmd.Flags().String("authorities", "", "the new state file of authorities; else "+authoritiesName+" beside the configuration")
	logs := cmd.Flags().String("logs", "", "the new state file of logs; else "+logsName+" beside the configuration")
	load := func(file string) (*config.Config, error) { return loadWith(config.LoadDefinitions, file) }
	return withConfig(cmd, load, func(_ *cobra.Command, file string, c *config.Config, _ []string) error {
		var all []exported
		if len(c.CA.Authorities) > 0 {
			if c.Lost() {
				return fail("restore the file from a copy, or write the state and its times beside each of ca.authorities first",
					"%s states no authority that ever signed, and this CA has issued: the states were kept in a file that is gone", file)
			}
			all = append(all, exported{"ca", c.CA.StateFile, cmp.Or(*authorities, filepath.Join(filepath.Dir(file), authoritiesName)), statesIn(c),
				func(path string) error { return authority.ExportStates(c.CA.Section, path) }})
		}
		if name, folder := c.LostLogs(); name != "" && !exists(string(c.CTLog.StateFile)) {
			return fail(config.RestoreLogs,
				"%s doesn't name the log %s, which is in %s: logs were rotated, and the file that kept it is gone", file, name, folder)
		}
		if c.CTLog.Mode == ctlog.ModeEmbedded {
			all = append(all, exported{"ctlog", c.CTLog.StateFile, cmp.Or(*logs, filepath.Join(filepath.Dir(file), logsName)), logsIn(c.CTLog),
				func(path string) error { return rotation.Export(c.CTLog, path) }})
		}
		return writeExported(streams.Out, file, all)
	})
}

// exported is a state file to be made, and what it changes in the configuration.
type exported struct {
	section string
	named   setting.Path // what the section names already
	made    string       // where it is made if it names none
	deletes []string
	write   func(path string) error
}

// statesIn are what c says itself of the states of authorities.
func statesIn(c *config.Config) (all []string) {
	for i, a := range c.CA.Authorities {
		for name, field := range strict.Fields(reflect.ValueOf(a.Record)) {
			if !field.IsZero() {
				all = append(all, fmt.Sprintf("%s.%s (of %s)", setting.Index("ca.authorities", i), name, a.Name))
			}
		}
	}
	return all
}

// logsIn are what c says itself of logs that follow each other.
func logsIn(c ctlog.Config) (all []string) {
	if !c.Embedded.End.IsZero() {
		all = append(all, "ctlog.embedded.end")
	}
	if len(c.Shards) > 0 {
		all = append(all, "ctlog.shards")
	}
	if len(c.Frozen) > 0 {
		all = append(all, "ctlog.frozen")
	}
	return all
}

// writeExported makes the state files that aren't there, and says what to change.
func writeExported(w io.Writer, file string, all []exported) error {
	for _, e := range all {
		if e.named == "" && exists(e.made) {
			return fail("move it away, or name another with --authorities or --logs", "%s is there already", e.made)
		}
	}
	var put, deletes []string
	made := 0
	for _, e := range all {
		path := cmp.Or(string(e.named), e.made)
		if exists(path) {
			continue
		}
		if err := e.write(path); err != nil {
			return err
		}
		made++
		fmt.Fprintf(w, "made %s\n", terminal.Line(path))
		deletes = append(deletes, e.deletes...)
		if e.named != "" {
			continue
		}
		if filepath.Dir(path) == filepath.Dir(file) {
			path = filepath.Base(path)
		} else if err := absolute(&path); err != nil {
			return err
		}
		put = append(put, fmt.Sprintf("%s:\n    state_file: %s", e.section, terminal.Line(path)))
	}
	if made == 0 {
		return fail("", "%s has no states to move: it names state files that are there, or one authority, which is always active, and no embedded log", file)
	}
	if len(put)+len(deletes) > 0 {
		fmt.Fprintf(w, "\nChange these lines of %s, run mayfly check, and restart the service.\n", terminal.Line(file))
	}
	if len(put) > 0 {
		fmt.Fprintf(w, "\nPut:\n  %s\n", strings.Join(put, "\n  "))
	}
	if len(deletes) > 0 {
		fmt.Fprintf(w, "\nDelete:\n  %s\n", strings.Join(deletes, "\n  "))
	}
	return nil
}

func newCheckCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Report every fault of a configuration",
		Long: `Reads a configuration and all that it names, as serve would: keys, certificates,
issuers, presets, TLS, and what a start would lock and write: the logs with their
keys, names and marks, frozen logs, the audit trail, and who may write them. A sample
certificate is verified through each chain, as a client would. It changes nothing and
sends nothing, so it may run beside a service. The exit status is 1 when there is any
fault. A remark is no fault: somebody holds a log or the trail, clients put up with a
chain, plain text goes beyond loopback, a condition reads a claim that the issuer isn't
known to send, or a Rekor is listed that clients can't use well.

--online also asks the others: each issuer that has a URL for its discovery
document and its keys, the store of used tokens for a write, and each external
log for the roots that it accepts and a tree head under the configured key. Nothing
is submitted. The embedded log's checkpoint is verified in its directory. What is in
force at server.public_url is compared: whatever clients are told to trust there
has to be in the configuration still, or what was signed can't be verified any more.`,
	}
	online := cmd.Flags().Bool("online", false, "also try to reach the issuers, the store of used tokens, the logs and what clients are told")
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		loaded, err := service.Check(cmd.Context(), c, quiet())
		if err != nil {
			return startFailure(err, "")
		}
		_, end := loaded.Authorities.Active.Validity()
		fmt.Fprintf(streams.Out, "%s: no faults\n  authority  %s, until %s\n  issuers    %d\n  log        %s\n",
			file, loaded.Authorities.Active.Subject, end.Format(time.DateOnly), len(c.Issuers), c.CTLog.Mode)
		for _, remark := range slices.Concat(inlineStates(file, c), loaded.Remarks, identity.Remarks("issuers", c.Issuers),
			identity.ConditionRemarks("issuers", c.Issuers, "deny", c.Deny)) {
			fmt.Fprintf(streams.Out, "  remark     %s\n", terminal.Line(remark))
		}
		if err := asOwner(c, os.Geteuid()); err != nil {
			fmt.Fprintf(streams.Out, "  remark     serve would be refused: %s; and root may read more than that user, so run check as that user too\n", terminal.Line(err.Error()))
		}
		if *online {
			return checkOnline(cmd.Context(), c, loaded, streams.Out)
		}
		return nil
	})
}

// checkOnline prints what a service would be told by others, step by step; the
// error says how many steps failed.
func checkOnline(ctx context.Context, c *config.Config, loaded *service.Components, w io.Writer) error {
	all, failed, whose := 0, 0, ""
	tell := func(p service.Probed) {
		if p.Whose != whose {
			fmt.Fprintf(w, "  %s\n", terminal.Escape(p.Whose))
			whose = p.Whose
		}
		all++
		result := strings.TrimSuffix("ok, "+p.Detail, ", ")
		if p.Err != nil {
			failed++
			result = "failed: " + p.Err.Error()
		}
		fmt.Fprintf(w, "    %-10s %s\n", p.Name, terminal.Line(result))
	}
	loaded.Probe(ctx, c, tell)
	if c.Server.PublicURL != "" {
		tell(probePublished(ctx, c.Server.PublicURL, loaded.History))
	}
	if failed == 0 {
		return nil
	}
	return fail("each step above says what failed; the service starts without an issuer that is down or the store of used tokens, but not without its logs",
		"%d of %d steps failed", failed, all)
}

// probePublished compares what clients would be told with what they are told now.
// Where they aren't told anything yet, nothing is lost.
func probePublished(ctx context.Context, url string, next trustroot.History) service.Probed {
	p := service.Probed{Whose: url, Name: "trust"}
	published, err := fetchTrustedRoot(ctx, url)
	if err != nil {
		p.Detail = "not compared: " + err.Error()
		return p
	}
	if lost := published.Lost(next, time.Now()); len(lost) > 0 {
		p.Err = errors.New(strings.Join(lost, "; "))
	}
	return p
}

func newPolicyTestCommand(streams streams) *cobra.Command {
	return withConfig(&cobra.Command{
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
	switch {
	case x.Refusal == nil:
		return "allowed: " + x.SAN.Value
	case x.Rule != "":
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
	reason, outcome := "", "true"
	if x.Refusal != nil {
		reason, outcome = string(x.Refusal.Reason), "false: "+x.Refusal.Public
	}
	if *c.Expect.Allow != (x.Refusal == nil) {
		all = append(all, fmt.Sprintf("allow: expected %t, got %s", *c.Expect.Allow, outcome))
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
	asJSON := flags.Bool("json", false, "print JSON")
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		data, err := readInput(streams.In, *file)
		if err != nil {
			return err
		}
		token := strings.TrimSpace(string(data))
		o := identity.Options{Now: func() time.Time { return cmp.Or(at, time.Now()) }, Deny: c.Deny}
		if *jwks != "" {
			o.Transport, err = keysFrom(*jwks, token, c.Issuers)
		} else if *offline {
			o.Transport = canned{}
		}
		if err != nil {
			return err
		}
		verifier, err := identity.NewVerifier(c.Issuers, o)
		if err != nil {
			return startFailure(err, "")
		}
		x := verifier.Explain(cmd.Context(), token)
		err = show(streams.Out, *asJSON, explained(x), func(w io.Writer) { printExplanation(w, x) })
		if err != nil || x.Refusal == nil {
			return err
		}
		return &failure{code: exitRefused, err: fmt.Errorf("refused: %s: %s", x.Refusal.Reason, x.Refusal.Public)}
	})
}

// keysFrom has the keys of the token's issuer come from a file.
func keysFrom(file, token string, issuers []identity.IssuerConfig) (http.RoundTripper, error) {
	keys, err := readInput(nil, file)
	if err != nil {
		return nil, err
	}
	if !json.Valid(keys) {
		return nil, fmt.Errorf("%s: isn't a JSON Web Key Set", file)
	}
	for i := range issuers {
		if entry := &issuers[i]; entry.JWKSFile != "" || entry.JWKSURL != "" { // whose url may be no URL to discover at
			entry.JWKSFile, entry.JWKSURL = "", "https://keys.invalid/keys" // which canned answers
		}
	}
	return canned{issuer: claimedIssuer(token), keys: keys}, nil
}

// claimedIssuer is what the token says its issuer is, or "": only for
// answering the verifier, which checks it.
func claimedIssuer(token string) string {
	var claims struct {
		Issuer string `json:"iss"`
	}
	if parts := strings.Split(token, "."); len(parts) == 3 {
		if payload, err := base64.RawURLEncoding.DecodeString(parts[1]); err != nil || json.Unmarshal(payload, &claims) != nil {
			return ""
		}
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
