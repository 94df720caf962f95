// Command mayfly-verify verifies what was signed with Sigstore certificates, and
// refuses what was signed with one that was revoked. It is a program of its own because
// the libraries that it verifies with weigh more than the server should carry.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/spf13/cobra"
	"github.com/theupdateframework/go-tuf/v2/metadata/fetcher"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/ca/revocation/guard"
	"github.com/mayfly-ca/mayfly/internal/commandline"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// version is set by the build.
var version = "devel"

func main() {
	cmd, err := newCommand().ExecuteC()
	if err != nil {
		fix, said := commandline.Explain(cmd, err)
		fmt.Fprintln(os.Stderr, "mayfly-verify:", oneline.Clean(said.Error(), 2000))
		if fix != "" {
			fmt.Fprintln(os.Stderr, "  fix:", fix)
		}
	}
	os.Exit(exitCode(err))
}

// exitCode is how a program hears what came out, as `mayfly help exit-codes` has it.
func exitCode(err error) int {
	refusal := (*revocation.Refusal)(nil)
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &refusal):
		return 1
	case refusal.Kind == revocation.Revoked:
		return 3
	default:
		return 4
	}
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "mayfly-verify {--bundle BUNDLE FILE | IMAGE}",
		Short:   "Verify a signature, and that its certificate isn't revoked",
		Version: version,
		Long: `Verifies the signature of a file, or of a container image in its registry: chain, SCT,
timestamp, identity, and that the certificate isn't revoked. One that is revoked counts for
nothing, whenever it signed. What is trusted comes from a file or, signed, by TUF.

Exit codes: 0 good; 1 not good, or it couldn't be verified; 3 revoked; 4 good but for the list
of what is revoked, which is stale, or can't be had or used.`,
		Example: `  mayfly-verify --bundle app.json --tuf-url https://ca.example.com/tuf --tuf-root 1.root.json \
    --certificate-identity ci@example.com --certificate-oidc-issuer https://idp.example.com app.tar`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ExactArgs(1),
		RunE:          func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.bundle, "bundle", "", "file with the Sigstore bundle of a file; without it an image is verified")
	f.StringVar(&o.identity, "certificate-identity", "", "who signed: the certificate's SAN")
	f.StringVar(&o.identityRegexp, "certificate-identity-regexp", "", "the same as a regular expression, anchored with ^ and $")
	f.StringVar(&o.issuer, "certificate-oidc-issuer", "", "who vouched for that identity: the URL")
	f.StringVar(&o.issuerRegexp, "certificate-oidc-issuer-regexp", "", "the same as a regular expression")
	f.StringVar(&o.trustedRoot, "trusted-root", "", "file of the trusted root")
	f.StringVar(&o.tufURL, "tuf-url", "", "URL of the TUF repository with the trusted root, in place of a file")
	f.StringVar(&o.tufRoot, "tuf-root", "", "file of the root that TUF begins with, 1.root.json")
	f.StringVar(&o.crl, "crl", "", "list of what is revoked: a file, a URL (with a / at the end: of the folder), tuf, or none; tuf where TUF is used")
	f.BoolVar(&o.allowStale, "allow-stale-crl", false, "warn of a list that is stale, and go by it")
	f.BoolVar(&o.offline, "offline", false, "go by files, and by what TUF has had; only an image's registry is asked")
	f.BoolVar(&o.certificates, "certificates", false, "verify nothing, and print the certificates whose keys signed the image, in PEM")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "for everything that is fetched")
	cmd.MarkFlagsMutuallyExclusive("trusted-root", "tuf-url")
	cmd.MarkFlagsOneRequired("trusted-root", "tuf-url", "certificates")
	cmd.MarkFlagsMutuallyExclusive("certificates", "bundle")
	cmd.MarkFlagsMutuallyExclusive("certificates", "json")
	cmd.MarkFlagsRequiredTogether("tuf-url", "tuf-root")
	return cmd
}

// options are the command line.
type options struct {
	bundle, trustedRoot, tufURL, tufRoot, crl      string
	identity, identityRegexp, issuer, issuerRegexp string
	offline, allowStale, certificates, json        bool
	timeout                                        time.Duration
	warn                                           io.Writer
}

// signature is what one signature came to, as it is printed.
type signature struct {
	Result      string      `json:"result"` // good, bad, or a kind of refusal
	Words       string      `json:"words,omitempty"`
	SAN         string      `json:"san"`
	Issuer      string      `json:"issuer"`
	Serial      string      `json:"serial"`
	Authority   string      `json:"authority"` // its key id
	Fingerprint string      `json:"certificate_fingerprint"`
	Times       []time.Time `json:"timestamps,omitempty"`
}

// run verifies, prints what came out, and fails unless a signature is good.
func (o *options) run(cmd *cobra.Command, name string) error {
	o.warn = cmd.ErrOrStderr()
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	if o.certificates {
		return o.printCertificates(ctx, cmd.OutOrStdout(), name)
	}
	identity, err := verify.NewShortCertificateIdentity(o.issuer, o.issuerRegexp, o.identity, o.identityRegexp)
	if err != nil {
		return fmt.Errorf("say who signed with --certificate-identity and --certificate-oidc-issuer: %w", err)
	}
	v := verification{options: o, identity: identity}
	if v.trusted, v.lists, err = o.trust(ctx); err != nil {
		return err
	}
	found, err := v.read(ctx, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	result := errors.New("there is no signature")
	all := make([]signature, len(found))
	for i, one := range found {
		err := v.signature(one, &all[i])
		if was := exitCode(result); was != 0 && (err == nil || was == 1 || exitCode(err) == 3) {
			result = err // one that is good is enough; else that one is revoked says most, and that one is bad least
		}
	}
	if o.json {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"artifact": name, "good": result == nil, "signatures": all})
		return cmp.Or(result, err)
	}
	for _, s := range all {
		fmt.Fprintf(cmd.OutOrStdout(), "%-8s %s by %s (%s), certificate %s\n", s.Result, terminal.Escape(name), terminal.Escape(s.SAN), terminal.Escape(s.Issuer), s.Serial)
	}
	return result
}

// verification is how each signature is verified.
type verification struct {
	*options
	trusted  *root.TrustedRoot
	lists    revocation.Source           // nil where none is to be asked
	file     verify.ArtifactPolicyOption // nil for an image
	identity verify.CertificateIdentity
}

// read gives the signatures of an artifact.
func (v *verification) read(ctx context.Context, name string) ([]signed, error) {
	if v.bundle == "" {
		image, err := readImage(ctx, name)
		if err != nil {
			return nil, err
		}
		return image.found, nil
	}
	text, err := os.ReadFile(v.bundle)
	if err != nil {
		return nil, err
	}
	var s signed
	if s.parse(text); s.fault != nil {
		s.fault = fmt.Errorf("%s: %w", v.bundle, s.fault)
	}
	v.file = func(p *verify.PolicyConfig) error { // each verification reads it anew
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		return verify.WithArtifact(file)(p)
	}
	return []signed{s}, nil
}

// printCertificates prints the certificates of an image's signatures, each once, trusted or not.
// But anybody who may write beside the image can put another's signature there, so its key has
// to have signed this one.
func (o *options) printCertificates(ctx context.Context, out io.Writer, name string) error {
	image, err := readImage(ctx, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(o.warn, "signatures of %s:\n", image.at)
	printed := map[string]bool{}
	for _, s := range image.found {
		if err := s.checkKey(); err != nil {
			fmt.Fprintln(o.warn, "left out:", oneline.Clean(err.Error(), 500))
			continue
		}
		raw := s.by.Certificate().Raw
		if !printed[string(raw)] {
			err = cmp.Or(err, pem.Encode(out, &pem.Block{Type: "CERTIFICATE", Bytes: raw}))
		}
		printed[string(raw)] = true
	}
	if len(printed) == 0 {
		return errors.New("no certificate has signed it")
	}
	return err
}

// signature verifies one. It is revoked only if all else is good: who asks goes by that.
func (v *verification) signature(one signed, s *signature) (err error) {
	defer func() {
		s.Result = "good"
		if refusal := (*revocation.Refusal)(nil); errors.As(err, &refusal) {
			s.Result, s.Words = string(refusal.Kind), refusal.Words
		} else if err != nil {
			s.Result, s.Words = "bad", oneline.Clean(err.Error(), 2000)
		}
	}()
	if one.by == nil {
		return one.fault
	}
	c := one.by.Certificate()
	if is, err := certificate.SummarizeCertificate(c); err == nil {
		s.SAN, s.Issuer = is.SubjectAlternativeName, is.Issuer
	}
	s.Serial, s.Authority, s.Fingerprint = c.SerialNumber.Text(16), fmt.Sprintf("%x", c.AuthorityKeyId), fmt.Sprintf("%x", sha256.Sum256(c.Raw))
	if s.Times, err = v.verify(one, v.trusted); err != nil || v.lists == nil {
		return err
	}
	terms := revocation.Terms{Now: time.Now()}
	if v.allowStale {
		terms.Stale = func(r *revocation.Refusal) { fmt.Fprintln(v.warn, "mayfly-verify: warning:", r) }
	}
	guarded := guard.New(v.trusted, v.lists, terms)
	_, err = v.verify(one, guarded)
	return cmp.Or(guarded.Refusal(), err)
}

// verify has sigstore-go verify a bundle by all that the trusted root has, and gives the
// times of its signature.
func (v *verification) verify(one signed, by root.TrustedMaterial) (times []time.Time, err error) {
	if one.fault != nil {
		return nil, one.fault
	}
	wanted := []verify.VerifierOption{verify.WithObserverTimestamps(1), verify.WithoutStatementPredicate()}
	if len(by.TimestampingAuthorities())+len(by.RekorLogs()) == 0 {
		wanted[0] = verify.WithCurrentTime()
	}
	if len(by.RekorLogs()) > 0 {
		wanted = append(wanted, verify.WithTransparencyLog(1))
	}
	if len(by.CTLogs()) > 0 {
		wanted = append(wanted, verify.WithSignedCertificateTimestamps(1))
	}
	verifier, err := verify.NewVerifier(by, wanted...)
	if err != nil {
		return nil, err
	}
	artifact := v.file
	if artifact == nil {
		artifact = verify.WithArtifactDigest(one.of.Algorithm, one.of.Digest)
	}
	result, err := verifier.Verify(one, verify.NewPolicy(artifact, verify.WithCertificateIdentity(v.identity)))
	if err != nil {
		return nil, err
	}
	for _, t := range result.VerifiedTimestamps {
		times = append(times, t.Timestamp)
	}
	return times, nil
}

// trust reads the trusted root, and says where lists come from: nil for nowhere.
func (o *options) trust(ctx context.Context) (*root.TrustedRoot, revocation.Source, error) {
	var client *tuf.Client
	var text []byte
	var trusted *root.TrustedRoot
	var err error
	for flag, address := range map[string]string{"--tuf-url": o.tufURL, "--crl": o.crl} {
		if u, err := url.Parse(address); err == nil && u.User != nil {
			return nil, nil, fmt.Errorf("%s has a user or a password, which errors would show: give it without, from a host that asks for none", flag)
		}
	}
	if o.crl == "tuf" && o.tufURL == "" {
		return nil, nil, errors.New("--crl tuf needs --tuf-url: without it give a file, a URL or none")
	}
	if o.tufURL == "" {
		text, err = os.ReadFile(o.trustedRoot)
	} else if client, err = o.follow(ctx); err == nil {
		text, err = client.GetTarget("trusted_root.json")
	}
	if err == nil {
		trusted, err = root.NewTrustedRootFromJSON(text)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the trusted root: %w", err)
	}
	if o.crl == "" && client == nil {
		fmt.Fprintln(o.warn, "mayfly-verify: warning: no --crl is given: a certificate that is revoked counts")
	}
	if o.crl == "none" || o.crl == "" && client == nil {
		return trusted, nil, nil
	}
	return trusted, func(authority string) (*revocation.List, error) {
		b, err := o.readList(ctx, authority, client)
		if err != nil {
			missing := revocation.NoList(authority)
			missing.Words += ": " + err.Error()
			return nil, missing
		}
		return revocation.Parse(b)
	}, nil
}

// follow is a TUF client, which remembers what it saw where cosign does.
func (o *options) follow(ctx context.Context) (*tuf.Client, error) {
	first, err := os.ReadFile(o.tufRoot)
	if err != nil {
		return nil, err
	}
	with := tuf.DefaultOptions().WithFetcher(fetching(ctx)).WithRoot(first).WithRepositoryBaseURL(strings.TrimSuffix(o.tufURL, "/"))
	if o.offline {
		with = with.WithForceCache().WithFetcher(offline{})
	}
	return tuf.New(with)
}

// offline fetches nothing.
type offline struct{}

func (offline) DownloadFile(string, int64, time.Duration) ([]byte, error) {
	return nil, errors.New("nothing is fetched --offline, and what was fetched before doesn't have it, or has expired")
}

// within asks the web for as long as it lasts, and a minute at most for one answer;
// go-tuf itself waits for ever.
type within struct{ context.Context }

func (w within) Do(r *http.Request) (*http.Response, error) {
	web := http.Client{Timeout: time.Minute}
	return web.Do(r.WithContext(w)) // #nosec G704 -- of the command line
}

func fetching(ctx context.Context) *fetcher.DefaultFetcher {
	web := fetcher.NewDefaultFetcher()
	web.SetHTTPClient(within{ctx})
	return web
}

// readList gets the list of an authority.
func (o *options) readList(ctx context.Context, authority string, client *tuf.Client) ([]byte, error) {
	url := o.crl
	if strings.HasSuffix(url, "/") {
		url += authority + ".crl"
	}
	switch {
	case (url == "" || url == "tuf") && client != nil:
		return client.GetTarget("crl/" + authority + ".crl")
	case !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://"):
		return os.ReadFile(url)
	case o.offline:
		return nil, errors.New("nothing is fetched --offline: give a file")
	}
	return fetching(ctx).DownloadFile(url, revocation.MaxBytes, 0)
}
