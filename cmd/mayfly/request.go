package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/terminal"
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

// say tells the person something on the way; a machine is told by the answer alone.
func (r *request) say(line string) {
	if !r.json {
		r.ask(line)
	}
}

// ask tells the person what to do, such as where to log in.
func (r *request) ask(line string) { fmt.Fprintln(r.Err, terminal.Line(line)) }

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

// api asks the CA's own API, and reads the answer.
func (r *request) api(ctx context.Context, path string, query url.Values, body, answer proto.Message, token *client.Token) (err error) {
	var sent, text []byte
	if body != nil {
		if sent, err = protojson.Marshal(body); err != nil {
			return err
		}
	}
	if text, err = client.API(ctx, r.http, r.retry, strings.TrimRight(r.ca, "/"), path, query, sent, token); err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, answer); err != nil {
		return fail("check that --ca names a Mayfly of this version", "the CA's answer can't be read")
	}
	return nil
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
	TokenSource string          `json:"token_source"`
	Identity    []extension.SAN `json:"sans"`
	Issuer      string          `json:"issuer"`
	Subject     string          `json:"token_subject"` // of the token
	Serial      string          `json:"serial"`
	NotBefore   time.Time       `json:"not_before"`
	NotAfter    time.Time       `json:"not_after"`
	KeyType     string          `json:"key_type"`
	TrustedRoot string          `json:"trusted_root"` // the file or URL that it was verified with
	SCTs        []inspect.SCT   `json:"scts"`
	KeyFile     string          `json:"key_file,omitempty"`
	CertFile    string          `json:"certificate_file,omitempty"`
	Bundle      string          `json:"bundle,omitempty"`    // instead of both
	Timestamp   string          `json:"timestamp,omitempty"` // in the bundle
	Chain       string          `json:"certificate_chain"`   // PEM, leaf first, root last
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
