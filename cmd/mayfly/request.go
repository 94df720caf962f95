package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/terminal"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// request is the command line of `mayfly request`, and what other commands have of it that
// ask a CA. No flag takes a secret: a command line is seen by every process of the machine.
type request struct {
	streams
	http        *http.Client
	retry       client.Retry
	interactive bool // a person is there to log in

	ca, grpc  string
	caNamed   bool // by a flag or the environment
	allowHTTP bool
	timeout   time.Duration

	keyType string
	csr     bool

	tokenFile, tokenEnv         string
	tokenStdin, browser, device bool

	issuer, clientID, redirectURL string
	clientSecret                  string // a file
	noBrowser                     bool

	trustedRoot, trustedRootURL string
	acceptUnlogged              bool

	sign  string // a file
	files client.Files
	json  bool
}

// caEnv is the environment variable that names the CA where --ca doesn't.
const caEnv = "MAYFLY_CA"

func newRequestCommand(streams streams) *cobra.Command {
	o := request{streams: streams}
	cmd := &cobra.Command{
		Use: "request", Short: "Obtain a certificate for a fresh key and verify it",
		Long: `Makes an ephemeral key, gets an identity token, proves possession of the key,
asks the CA for a certificate, verifies the answer against a trusted root, and
writes the key (mode 0600) and the certificate chain (leaf first).

With --sign FILE it signs the file, throws the key away, and writes a Sigstore bundle: the
signature, the certificate, and a timestamp of the authority that the trusted root names, by
which cosign and other clients verify it when the certificate has expired.

The token comes from the one place that is named: --token-file, --token-env,
--token-stdin, --browser or --device. Without any of them these are tried in
order: GitLab CI (id_tokens: SIGSTORE_ID_TOKEN), the environment variable
SIGSTORE_ID_TOKEN, GitHub Actions (permissions: id-token: write), and, at a
terminal, a login in the browser. Tokens of the environment go only to a CA that
--ca, --grpc or the variable MAYFLY_CA names. A login needs --issuer, unless the CA is on
this machine and accepts a single issuer.

A token is for an audience: --client-id, or the CA's own URL where it says that it takes
such tokens, or sigstore. A CA that names another audience is told of, and not followed:
it could use the token there.

The trusted root comes from --trusted-root FILE. --trusted-root-url fetches it,
and a CA on this machine is asked for its own where neither is given: that shows
that the answer is consistent, not who made it.

SSL_CERT_FILE names other trusted TLS roots; HTTPS_PROXY is honoured.
Exit codes: mayfly help exit-codes.`,
		Example: `  mayfly request --browser
  mayfly request --ca https://ca.example.com --trusted-root trusted_root.json --token-file token.jwt
  mayfly request --ca https://ca.example.com --trusted-root trusted_root.json --sign app.tar.gz
  mayfly request --grpc 127.0.0.1:5554 --token-env MY_TOKEN --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			if o.sign != "" {
				o.files.Bundle = cmp.Or(o.files.Bundle, o.sign+".sigstore.json")
			} else if o.files.Bundle != "" {
				return usage("name the file to sign with --sign", "--bundle is for what is signed")
			}
			defer o.begin(cmd)()
			return classify(o.run(ctx))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.ca, "ca", "http://127.0.0.1:5555", "base URL of the CA; MAYFLY_CA names it too")
	f.StringVar(&o.grpc, "grpc", "", "ask over gRPC at this host:port instead of REST (TLS, or plaintext on loopback)")
	f.BoolVar(&o.allowHTTP, "allow-http", false, "send the token over unencrypted http beyond this machine")
	f.DurationVar(&o.timeout, "timeout", 3*time.Minute, "for everything, a person's login included")
	f.StringVar(&o.keyType, "key-type", client.DefaultKeyType, strings.Join(client.KeyTypes(), ", "))
	f.BoolVar(&o.csr, "csr", false, "prove possession with a certificate signing request instead of a signature")
	f.StringVar(&o.tokenFile, "token-file", "", "read the identity token from a file")
	f.StringVar(&o.tokenEnv, "token-env", "", "read the identity token from the environment variable of this name")
	f.BoolVar(&o.tokenStdin, "token-stdin", false, "read the identity token from standard input")
	f.BoolVar(&o.browser, "browser", false, "log in with a browser")
	f.BoolVar(&o.device, "device", false, "log in with a code on another device")
	f.StringVar(&o.issuer, "issuer", "", "OpenID Connect issuer to log in at")
	f.StringVar(&o.clientID, "client-id", "", "OAuth client to log in as, and audience of the token; else the CA where it names itself, or sigstore")
	f.StringVar(&o.clientSecret, "client-secret-file", "", "file with the OAuth client's secret, where it has one")
	f.StringVar(&o.redirectURL, "redirect-url", client.DefaultRedirectURL, "where the browser comes back to; port 0 is any")
	f.BoolVar(&o.noBrowser, "no-browser", false, "print the address to log in at instead of opening it")
	f.StringVar(&o.trustedRoot, "trusted-root", "", "verify against this trusted_root.json")
	f.StringVar(&o.trustedRootURL, "trusted-root-url", "", "fetch the trusted root from here, trusting the host")
	f.BoolVar(&o.acceptUnlogged, "accept-unlogged", false, "accept a certificate without SCT, of a CA that has no log")
	f.StringVar(&o.sign, "sign", "", "sign this file, and write a Sigstore bundle instead of key and certificate")
	f.StringVar(&o.files.Bundle, "bundle", "", "file for the bundle; the signed file's name with .sigstore.json if empty")
	f.StringVar(&o.files.Key, "output-key", "mayfly.key.pem", "file for the private key (PKCS#8 PEM, mode 0600)")
	f.StringVar(&o.files.Certificate, "output-certificate", "mayfly.crt.pem", "file for the certificate chain (PEM)")
	f.BoolVar(&o.files.Force, "force", false, "replace the files if they are there")
	f.BoolVar(&o.json, "json", false, "print everything as JSON")
	cmd.MarkFlagsMutuallyExclusive("token-file", "token-env", "token-stdin", "browser", "device")
	cmd.MarkFlagsMutuallyExclusive("trusted-root", "trusted-root-url")
	cmd.MarkFlagsMutuallyExclusive("sign", "output-key")
	cmd.MarkFlagsMutuallyExclusive("sign", "output-certificate")
	return cmd
}

// begin takes the CA from the environment where no flag names it, and makes the client for
// it, which the result ends.
func (r *request) begin(cmd *cobra.Command) (end func()) {
	given := cmd.Flags().Changed
	r.caNamed = given("ca") || given("grpc")
	if named := os.Getenv(caEnv); named != "" && !given("ca") {
		r.ca, r.caNamed = named, true
	}
	r.http, r.retry, r.interactive = client.NewHTTPClient(), client.Retry{Say: r.say}, atTerminal(r.Err)
	return r.http.CloseIdleConnections
}

// say tells the person something on the way.
func (r *request) say(line string) { fmt.Fprintln(r.Err, terminal.Line(line)) }

// run reads top to bottom what the command does.
func (r *request) run(ctx context.Context) error {
	if err := r.check(); err != nil {
		return err
	}
	trust, origin, err := r.trust(ctx)
	if err != nil {
		return err
	}
	key, err := client.GenerateKey(r.keyType)
	if err != nil {
		return err
	}
	var signature *commonpb.MessageSignature
	if r.sign != "" { // before there is a token or a certificate to run out meanwhile
		if signature, err = key.SignFile(r.sign); err != nil {
			return err
		}
	}
	token, source, err := r.token(ctx)
	if err != nil {
		return err
	}
	submission, err := client.Submit(token, key, r.csr)
	if err != nil {
		return err
	}
	answer, err := r.certificate(ctx, submission)
	if err != nil {
		return err
	}
	verified, err := trust.Verify(answer[0], key, token, r.acceptUnlogged, time.Now())
	if err != nil {
		return err
	}
	o := newOutcome(r, token, source, origin, key, verified)
	if signature != nil {
		err = r.bundle(ctx, trust, signature, &o, verified.Chain[0])
	} else {
		o.KeyFile, o.CertFile = r.files.Key, r.files.Certificate
		err = r.files.Write(key, verified.Chain)
	}
	if err != nil {
		return err
	}
	return show(r.Out, r.json, o, o.print)
}

// bundle has a signature stamped, and writes it.
func (r *request) bundle(ctx context.Context, trust *client.Trust, s *commonpb.MessageSignature, o *outcome, leaf *x509.Certificate) error {
	stamp, at, err := trust.Stamp(ctx, r.http, r.retry, s.GetSignature(), leaf)
	if err != nil {
		return err
	}
	if o.Bundle = r.files.Bundle; stamp != nil {
		o.Timestamp = at.Format(time.RFC3339)
	}
	bundle, err := client.Bundle(s, leaf, stamp)
	if err != nil {
		return err
	}
	return r.files.WriteBundle(bundle)
}

// check refuses what can't work before anything is asked of anybody.
func (r *request) check() error {
	_, err := client.CheckURL("the CA", r.ca, r.allowHTTP)
	if r.issuer != "" && err == nil {
		_, err = client.CheckURL("the issuer", r.issuer, r.allowHTTP)
	}
	return errors.Join(err, client.CheckKeyType(r.keyType), r.files.Check())
}

// certificate asks over REST, or gRPC where an address is given.
func (r *request) certificate(ctx context.Context, s client.Submission) (chain []*x509.Certificate, err error) {
	var ca client.CA = &client.REST{URL: r.ca, HTTP: r.http, Retry: r.retry}
	at := r.ca
	if r.grpc != "" {
		dialed, problem := client.DialGRPC(r.grpc, r.allowHTTP, r.retry)
		if problem != nil {
			return nil, problem
		}
		defer func() { err = errors.Join(err, dialed.Close()) }()
		ca, at = dialed, "gRPC "+r.grpc
	}
	r.say("asking the CA at " + at)
	return ca.Certificate(ctx, s)
}

// trust finds the trusted root and says where it is from.
func (r *request) trust(ctx context.Context) (*client.Trust, string, error) {
	if r.trustedRoot != "" {
		trust, err := readTrust(r.trustedRoot)
		return trust, r.trustedRoot, err
	}
	at, warning := r.trustedRootURL, "it is as trustworthy as its host; keep it in a file and give --trusted-root from now on"
	if at == "" {
		u, err := url.Parse(r.ca)
		grpc := url.URL{Host: strings.TrimPrefix(strings.TrimPrefix(r.grpc, "http://"), "https://")} // which may be on another machine than the documents
		if err != nil || !loopback.Host(u.Hostname()) || r.grpc != "" && !loopback.Host(grpc.Hostname()) {
			return nil, "", usage("give --trusted-root FILE with the trusted_root.json that the CA's operator published",
				"no trusted root was named to verify the certificate with")
		}
		at, warning = strings.TrimRight(r.ca, "/")+"/trusted_root.json", "fetched from the CA itself: proves consistency, not authenticity"
	} else if _, err := client.CheckURL("the trusted root", at, r.allowHTTP); err != nil {
		return nil, "", err
	}
	trust, digest, err := client.FetchTrust(ctx, r.http, r.retry, at)
	if err != nil {
		return nil, "", err
	}
	r.say(fmt.Sprintf("trusted root %s (SHA-256 %s)", at, digest))
	r.say("  " + warning)
	return trust, at, nil
}

// api asks the CA's own API, and reads the answer, which it gives too.
func (r *request) api(ctx context.Context, path string, query url.Values, body, answer proto.Message, token *client.Token) (text []byte, err error) {
	var sent []byte
	if body != nil {
		if sent, err = protojson.Marshal(body); err != nil {
			return nil, err
		}
	}
	if text, err = client.API(ctx, r.http, r.retry, strings.TrimRight(r.ca, "/"), path, query, sent, token); err != nil {
		return nil, err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, answer); err != nil {
		return nil, fail("check that --ca names a Mayfly of this version", "the CA's answer can't be read")
	}
	return text, nil
}

// classify gives an error of package client its exit code.
func classify(err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Kind() == fault.Malformed { // as the CA would have refused it
		return &failure{code: exitRefused, err: errors.New(f.Public)}
	}
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return err
	}
	return &failure{code: clientCodes[e.Kind], fix: e.Fix, err: err}
}

var clientCodes = map[client.Kind]int{
	client.Failed: exitFailed, client.Misused: exitUsage, client.Refused: exitRefused, client.Unavailable: exitUnavailable, client.Unverified: exitUnverified,
}

// outcome is the answer of `mayfly request --json`.
type outcome struct {
	CA          string          `json:"ca"`
	TokenSource string          `json:"tokenSource"`
	Identity    []extension.SAN `json:"identity"`
	Issuer      string          `json:"issuer"`
	Subject     string          `json:"subject"` // of the token
	Serial      string          `json:"serial"`
	NotBefore   time.Time       `json:"notBefore"`
	NotAfter    time.Time       `json:"notAfter"`
	KeyType     string          `json:"keyType"`
	TrustedRoot string          `json:"trustedRoot"` // the file or URL that it was verified with
	SCTs        []inspect.SCT   `json:"scts"`
	KeyFile     string          `json:"keyFile,omitempty"`
	CertFile    string          `json:"certificateFile,omitempty"`
	Bundle      string          `json:"bundle,omitempty"`    // instead of both
	Timestamp   string          `json:"timestamp,omitempty"` // in the bundle
	Chain       string          `json:"certificateChain"`    // PEM, leaf first, root last
}

func newOutcome(r *request, token *client.Token, source, origin string, key *client.Key, v *client.Verified) outcome {
	o := outcome{
		CA: r.ca, TokenSource: source, Subject: token.Subject, Issuer: token.Issuer,
		KeyType: key.Type(), TrustedRoot: origin, Chain: string(cachain.PEM(v.Chain)),
	}
	if r.grpc != "" {
		o.CA = r.grpc
	}
	d := inspect.Describe(v.Chain, nil)
	o.Identity, o.Serial, o.NotBefore, o.NotAfter = d.Identity, d.Serial, d.NotBefore, d.NotAfter
	if d.RecordedIssuer != "" {
		o.Issuer = d.RecordedIssuer
	}
	o.SCTs = inspect.SCTs(v.SCTs)
	return o
}

func (o outcome) print(w io.Writer) {
	field := func(label, value string) { fmt.Fprintf(w, "%-12s %s\n", label, value) }
	for _, n := range o.Identity {
		field("identity", fmt.Sprintf("%s (%s)", terminal.Escape(n.Value), n.Type))
	}
	field("vouched by", terminal.Escape(o.Issuer))
	field("serial", o.Serial)
	field("validity", inspect.Validity(o.NotBefore, o.NotAfter, time.Now()))
	field("verified", "chain and key, with "+terminal.Escape(o.TrustedRoot))
	for _, s := range o.SCTs {
		field("SCT", s.String())
	}
	if len(o.SCTs) == 0 {
		field("SCT", "none: accepted because of --accept-unlogged")
	}
	if o.Bundle == "" {
		field("key", terminal.Escape(o.KeyFile)+" (mode 0600)")
		field("certificate", terminal.Escape(o.CertFile)+" (leaf first)")
	} else {
		field("timestamp", cmp.Or(o.Timestamp, "none: the bundle verifies until the certificate has expired"))
		field("bundle", terminal.Escape(o.Bundle))
	}
}

// token finds the identity token, prints what came of each source, and returns
// the name of the one that gave it.
func (r *request) token(ctx context.Context) (*client.Token, string, error) {
	token, attempts, err := client.FindToken(ctx, r.sources())
	failed := len(attempts) > 0 && attempts[len(attempts)-1].Outcome == client.OutcomeFailed
	if err == nil || (failed && len(attempts) > 1) { // otherwise the error tells the same
		r.say("identity token:")
		for _, a := range attempts {
			r.say(fmt.Sprintf("  %-18s %s", a.Source, a.Outcome))
		}
	}
	if err != nil {
		return nil, "", err
	}
	r.say(fmt.Sprintf("  says %q, by %q", token.Challenge(), token.Issuer))
	return token, attempts[len(attempts)-1].Source, nil
}

// sources is the one source that the command line names, or all that may be
// there without being named.
func (r *request) sources() []client.Source {
	browser := client.Source{Name: "browser login", Fetch: r.login((*client.Login).Browser)}
	switch {
	case r.tokenFile != "":
		return []client.Source{client.TokenFile(r.tokenFile)}
	case r.tokenEnv != "":
		return []client.Source{client.TokenEnv(r.tokenEnv, os.Getenv)}
	case r.tokenStdin:
		return []client.Source{client.TokenReader("standard input", r.In)}
	case r.device:
		return []client.Source{{Name: "device login", Fetch: r.login((*client.Login).Device)}}
	case r.browser:
		return []client.Source{browser}
	}
	if !r.interactive {
		browser.Fetch = func(context.Context) (string, error) {
			return "", &client.Absent{Reason: "not at a terminal (give --browser or --device to log in all the same)"}
		}
	}
	ambient := client.Ambient(os.Getenv, r.http, r.retry, r)
	if !r.caNamed { // whoever listens on the default port would get it
		for i := range ambient {
			ambient[i].Fetch = func(context.Context) (string, error) {
				return "", &client.Absent{Reason: "not looked for: no CA was named to send it to (--ca or " + caEnv + ")"}
			}
		}
	}
	return append(ambient, browser)
}

// login makes a source of a flow at the issuer.
func (r *request) login(flow func(*client.Login, context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		issuer, err := r.loginIssuer(ctx)
		if err != nil {
			return "", err
		}
		l := &client.Login{
			Issuer: issuer, ClientID: r.Ask(ctx, issuer), RedirectURL: r.redirectURL,
			HTTP: r.http, Plaintext: r.allowHTTP, Say: r.say,
		}
		if !r.noBrowser {
			l.Open = openBrowser
		}
		if r.clientSecret != "" {
			secret, err := readInput(nil, r.clientSecret)
			if err != nil {
				return "", err
			}
			l.ClientSecret = strings.TrimRight(string(secret), "\r\n")
		}
		return flow(l, ctx)
	}
}

// loginIssuer is --issuer, or the single one that a CA on this machine accepts:
// a CA elsewhere doesn't choose where a person types a password.
func (r *request) loginIssuer(ctx context.Context) (string, error) {
	if r.issuer != "" {
		return r.issuer, nil
	}
	issuers, err := client.Issuers(ctx, r.http, r.retry, r.ca)
	if err != nil {
		return "", fmt.Errorf("asking the CA for its issuers, since no --issuer was given: %w", err)
	}
	u, err := url.Parse(r.ca)
	if err == nil && loopback.Host(u.Hostname()) && len(issuers) == 1 {
		only := issuers[0].URL
		if _, err := client.CheckURL("the issuer", only, r.allowHTTP); err != nil {
			return "", err
		}
		r.say("issuer " + only + ", the one that the CA accepts")
		return only, nil
	}
	var urls []string
	for _, i := range issuers {
		urls = append(urls, i.URL)
	}
	return "", usage("give --issuer URL with one of the CA's issuers that you trust to log you in",
		"no issuer to log in at was given; the CA accepts:\n%s", strings.Join(urls, "\n"))
}

// Named implements [client.Audience]: --client-id, or the audience by which the CA takes
// tokens of the issuer. It asks REST; the audience is that of every Sigstore service
// where nobody says.
func (r *request) Named(ctx context.Context, issuer string) string {
	if r.clientID != "" || r.grpc != "" {
		return cmp.Or(r.clientID, identity.SharedAudience)
	}
	issuers, _ := client.Issuers(ctx, r.http, r.retry, r.ca) // what is wrong with the CA the request for a certificate says
	for _, i := range issuers {
		if i.URL == issuer {
			return cmp.Or(i.Audience, identity.SharedAudience)
		}
	}
	return identity.SharedAudience
}

// Ask implements [client.Audience]. Of its own accord this program asks for a token for
// every Sigstore service or for the CA itself, and never for one that a CA could use at
// a third service of its choice.
func (r *request) Ask(ctx context.Context, issuer string) string {
	named := r.Named(ctx, issuer)
	if named == r.clientID || named == identity.SharedAudience {
		return named
	}
	own := strings.TrimSuffix(r.ca, "/") + "/" // others may be beside it on its host
	if u, err := url.Parse(named); err == nil && strings.HasPrefix(strings.TrimSuffix(named, "/")+"/", own) && !strings.Contains(u.Path+"/", "/../") {
		r.say("audience " + named + ", which the CA names as its own")
		return named
	}
	r.say(fmt.Sprintf("audience %s; the CA names %q for this issuer: where that is right, give --client-id %s", identity.SharedAudience, named, named))
	return identity.SharedAudience
}

// openBrowser shows the URL, which is http or https, in the person's browser.
func openBrowser(url string) error {
	name, args := "xdg-open", []string{url}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", url}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return errors.New(name + " is not installed")
	}
	cmd := exec.Command(path, args...) //nolint:gosec,noctx // no shell, and the client has checked the scheme; the browser outlives us
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release() // the browser outlives this command
}

// revokeOptions is the command line of `mayfly revoke`.
type revokeOptions struct {
	request
	certificates, bundles []string
	where                 []string
	from, until           time.Time
	self, deny            bool
	key                   string
	q                     mayflyv1.RevokeRequest
}

func newRevokeCommand(streams streams) *cobra.Command {
	o := &revokeOptions{request: request{streams: streams}}
	cmd := &cobra.Command{
		Use: "revoke", Short: "Make single certificates invalid",
		Long: `Makes certificates invalid, for good, whenever something was signed with them.

Administrators (access.admins of the CA's configuration) name certificates, Sigstore
bundles or serial numbers; or search the CA's index with --where, of which a first run
with --dry-run shows a list and a count, and a second one repeats it as --count. With
--self, a token for which the same certificate would be issued now is enough for one
certificate; with --key, its own private key.

The token comes from --token-file, --token-env or --token-stdin, or as with mayfly request; a CA
on this machine is asked without one where none is named. --deny prints the rule that refuses the
same identity from now on, to be put into the CA's configuration.

Everything that is sent, and who asked, is public: see docs/revocation.md.`,
		Example: `  mayfly revoke --certificate mayfly.crt.pem --reason keyCompromise --self --token-file token.jwt
  mayfly revoke --bundle v2.sigstore.json --reference INC-7 --token-file admin.jwt
  mayfly revoke --where source_repository_uri=https://github.com/acme/app --from 2027-01-01T00:00:00Z --dry-run --token-file admin.jwt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			defer o.begin(cmd)()
			return classify(o.run(ctx))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.ca, "ca", "http://127.0.0.1:5555", "base URL of the CA; MAYFLY_CA names it too")
	f.BoolVar(&o.allowHTTP, "allow-http", false, "send the token over unencrypted http beyond this machine")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "for everything")
	f.StringArrayVar(&o.certificates, "certificate", nil, "a certificate in PEM, the first of its file; - is standard input; may be repeated")
	f.StringArrayVar(&o.bundles, "bundle", nil, "the certificate of a Sigstore bundle; may be repeated")
	f.StringVar(&o.q.Serial, "serial", "", "a serial number in hexadecimal")
	f.StringVar(&o.q.Authority, "authority", "", "key identifier of the serial number's authority, where there are several")
	f.StringArrayVar(&o.where, "where", nil, "what the index has: FIELD=VALUE or FIELD^=BEGINNING, as mayfly search takes it; may be repeated")
	timeFlag(cmd, &o.from, "from", "of --where: certificates from this time on, as in 2027-01-01T00:00:00Z")
	timeFlag(cmd, &o.until, "until", "of --where: certificates before this time")
	f.StringVar(&o.q.Approve, "approve", "", "what another administrator asked for, by the name that was printed")
	f.BoolVar(&o.q.DryRun, "dry-run", false, "only say which certificates are meant, and how many")
	f.Uint32Var(&o.q.Count, "count", 0, "with --where and --approve: how many certificates are meant")
	f.StringVar(&o.q.Reason, "reason", "", "one of "+strings.ReplaceAll(strings.Trim(fmt.Sprint(revoke.Reasons()), "[]"), " ", ", "))
	f.StringVar(&o.q.Comment, "comment", "", "one line for people")
	f.StringVar(&o.q.Reference, "reference", "", "such as the URL of an incident")
	f.BoolVar(&o.self, "self", false, "by a token for which the same certificate would be issued now")
	f.StringVar(&o.key, "key", "", "by the certificate's own private key: a PEM file")
	f.BoolVar(&o.deny, "deny", false, "print the rule that refuses the same identities from now on")
	f.StringVar(&o.tokenFile, "token-file", "", "read the identity token from a file")
	f.StringVar(&o.tokenEnv, "token-env", "", "read the identity token from the environment variable of this name")
	f.BoolVar(&o.tokenStdin, "token-stdin", false, "read the identity token from standard input")
	f.BoolVar(&o.json, "json", false, "print the CA's answer as JSON")
	cmd.MarkFlagsMutuallyExclusive("token-file", "token-env", "token-stdin", "key")
	cmd.MarkFlagsMutuallyExclusive("certificate", "bundle", "serial", "where", "approve")
	cmd.MarkFlagsOneRequired("certificate", "bundle", "serial", "where", "approve")
	cmd.MarkFlagsMutuallyExclusive("self", "key")
	cmd.MarkFlagsMutuallyExclusive("json", "deny") // each is a document of its own
	return cmd
}

func (o *revokeOptions) run(ctx context.Context) error {
	ca, err := client.CheckURL("the CA", o.ca, o.allowHTTP)
	if err != nil {
		return err
	}
	if err := o.read(); err != nil {
		return err
	}
	if len(o.where) > 0 {
		o.q.Find = &mayflyv1.Find{Where: o.where, From: stampOf(o.from), Until: stampOf(o.until)}
	}
	token, err := o.authorize(ctx, ca)
	if err != nil {
		return err
	}
	var a mayflyv1.RevokeResponse
	text, err := o.api(ctx, "revocations", nil, &o.q, &a, token)
	if err != nil {
		return err
	}
	if o.json {
		fmt.Fprintf(o.Out, "%s\n", text)
	} else {
		o.print(&a)
	}
	if o.deny {
		printRules(o.Out, &a)
	}
	return nil
}

func stampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// read reads the certificates that the command line names.
func (o *revokeOptions) read() error {
	for i, file := range append(o.certificates, o.bundles...) {
		data, err := readInput(o.In, file)
		if err != nil {
			return err
		}
		if i >= len(o.certificates) {
			signed, err := index.ParseBundle(data)
			if err != nil {
				return fail("name a Sigstore bundle, or its certificate with --certificate", "%s: %s", inputName(file), fault.From(err).Public)
			}
			o.q.Certificates = append(o.q.Certificates, signed.Certificate.Raw)
			continue
		}
		certs, err := inspect.Parse(data)
		if err != nil {
			return fail("name a file with a certificate: PEM with --certificate, a bundle with --bundle", "%s has no certificate", inputName(file))
		}
		o.q.Certificates = append(o.q.Certificates, certs[0].Raw)
	}
	return nil
}

// authorize gets the token, or signs.
func (o *revokeOptions) authorize(ctx context.Context, ca *url.URL) (_ *client.Token, err error) {
	if o.key != "" {
		if len(o.q.Certificates) != 1 {
			return nil, usage("name the one certificate that it is of", "--key is for one certificate")
		}
		o.q.Right = mayflyv1.Right_RIGHT_KEY
		o.q.Signature, err = signWith(o.key, revoke.Challenge(o.q.Certificates[0]))
		return nil, err
	}
	if o.self {
		o.q.Right = mayflyv1.Right_RIGHT_SELF_SERVICE
	} else if o.tokenFile == "" && o.tokenEnv == "" && !o.tokenStdin && loopback.Host(ca.Hostname()) {
		return nil, nil //nolint:nilnil // `mayfly dev` asks for none
	}
	token, _, err := o.token(ctx)
	return token, err
}

// signWith signs with the private key in a file, as `mayfly request` wrote it.
func signWith(file string, text []byte) ([]byte, error) {
	signer, err := readAs(nil, file, "name the key that mayfly request wrote", func(b []byte) (crypto.Signer, error) { return pemfile.PrivateKey(b, nil) })
	if err != nil {
		return nil, err
	}
	hash := crypto.SHA256
	if _, pure := signer.(ed25519.PrivateKey); pure {
		hash = 0
	}
	return crypto.SignMessage(signer, rand.Reader, text, hash)
}

// printRules prints deny rules for the configuration, for the identities that were meant.
func printRules(w io.Writer, a *mayflyv1.RevokeResponse) {
	fmt.Fprintln(w, "deny:")
	seen := map[string]bool{}
	for _, c := range a.GetFound() {
		when := fmt.Sprintf("principal.issuer == %q && principal.san == %q", c.GetIssuer(), c.GetSan())
		if c.GetSan() != "" && !seen[when] {
			seen[when] = true
			fmt.Fprintf(w, "  - name: revoked-%s\n    when: '%s'\n", terminal.Line(c.GetSerial()), strings.ReplaceAll(when, "'", "''"))
		}
	}
}

// print says what is meant, and what was done.
func (o *revokeOptions) print(a *mayflyv1.RevokeResponse) {
	for _, c := range a.GetFound() {
		fmt.Fprintf(o.Out, "%s  %s  %s  %s\n", terminal.Line(c.GetSerial()), cachain.Stamp(c.GetNotBefore().AsTime()), terminal.Line(c.GetSan()), terminal.Line(c.GetIssuer()))
	}
	for _, s := range a.GetStatements() {
		fmt.Fprintln(o.Out, terminal.Line(s.GetStatement()))
	}
	switch {
	case a.GetPending() != "":
		fmt.Fprintf(o.Out, "%d certificates wait for another administrator, for a day:\n  mayfly revoke --ca %s --approve %s --count %d\n", a.GetCount(), o.ca, terminal.Line(a.GetPending()), a.GetCount())
	case o.q.GetDryRun():
		fmt.Fprintf(o.Out, "%d certificates are meant; to revoke them, for good, repeat the command with --count %d in the place of --dry-run\n", a.GetCount(), a.GetCount())
	default:
		fmt.Fprintf(o.Out, "%d revoked, for good. The lists have them within a minute.\n", a.GetCount())
	}
}

func newCertShowCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show FILE|-", Short: "Put a certificate into words: identity, issuer, extensions, validity, SCTs",
		Long: `Puts the first certificate of a PEM or DER file (or of standard input, with -)
into words: identity, who vouched for it, every identity extension by name,
validity, key, and its signed certificate timestamps. With --trusted-root the
chain and each SCT are verified, at the time at which the certificate was made;
without it nothing is. Exit code 5 says that verification was asked for and failed.`,
		Example: `  mayfly cert show mayfly.crt.pem --trusted-root trusted_root.json
  curl -fsS http://127.0.0.1:5555/api/v1/rootCert | mayfly cert show -`,
	}
	trustedRoot := cmd.Flags().String("trusted-root", "", "verify against this trusted_root.json")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		certs, err := readCertificates(streams.In, args[0])
		if err != nil {
			return err
		}
		var trust *client.Trust
		if *trustedRoot != "" {
			if trust, err = readTrust(*trustedRoot); err != nil {
				return err
			}
		}
		d := inspect.Describe(certs, trust)
		if *asJSON {
			err = writeJSON(streams.Out, d)
		} else {
			err = d.Print(streams.Out, time.Now())
		}
		if err != nil || trust == nil {
			return err
		}
		return unverified(d)
	}
	return cmd
}

// readCertificates reads a file, or standard input for "-".
func readCertificates(in io.Reader, path string) ([]*x509.Certificate, error) {
	return readAs(in, path, "give a file with an X.509 certificate, in PEM or DER", inspect.Parse)
}

// unverified is the error for a certificate whose verification was asked for.
func unverified(d inspect.Description) error {
	if !d.Verified {
		return &failure{code: exitUnverified, err: fmt.Errorf("not verified: %s", d.Why)}
	}
	if d.CA || slices.ContainsFunc(d.SCTs, func(s inspect.SCT) bool { return s.Verified }) {
		return nil // a CA's own certificate is in no log
	}
	return &failure{code: exitUnverified, err: fmt.Errorf("not verified: the certificate has no SCT that verifies")}
}

// readTrust reads a trusted_root.json.
func readTrust(path string) (*client.Trust, error) {
	document, err := readInput(nil, path)
	if err != nil {
		return nil, err
	}
	trust, err := client.ParseTrust(document)
	return trust, classify(err)
}
