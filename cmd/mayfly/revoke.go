package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// revokeOptions is the command line of `mayfly revoke`.
type revokeOptions struct {
	request
	certificates, bundles []string
	image                 string
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
bundles, container images or serial numbers; or search the CA's index with --where, of which a first run
with --dry-run shows a list and a count, and a second one repeats it as --count. With
--self, a token for which the same certificate would be issued now is enough for one
certificate; with --key, its own private key.

The token comes from --token-file, --token-env or --token-stdin, or as with mayfly request; a CA
on this machine is asked without one where none is named. --deny prints the rule that refuses the
same identity from now on, to be put into the CA's configuration.

Everything that is sent, and who asked, is public: see docs/revocation.md.`,
		Example: `  mayfly revoke --certificate mayfly.crt.pem --reason keyCompromise --self --token-file token.jwt
  mayfly revoke --bundle v2.sigstore.json --reference INC-7 --token-file admin.jwt
  mayfly revoke --image registry.example.com/app@sha256:5891b5… --dry-run --token-file admin.jwt
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
	f.StringVar(&o.image, "image", "", "the certificates of this CA that signed a container image, as its registry has them: NAME@sha256:DIGEST")
	f.StringVar(&o.q.Serial, "serial", "", "a serial number in hexadecimal")
	f.StringVar(&o.q.Authority, "authority", "", "key identifier of the serial number's authority, where there are several")
	f.StringArrayVar(&o.where, "where", nil, "what the index has: FIELD=VALUE or FIELD^=BEGINNING, as mayfly search takes it; may be repeated")
	timeFlag(cmd, &o.from, "from", "of --where: certificates from this time on, as in 2027-01-01T00:00:00Z")
	timeFlag(cmd, &o.until, "until", "of --where: certificates before this time")
	f.StringVar(&o.q.Approve, "approve", "", "what another administrator asked for, by the name that was printed")
	f.BoolVar(&o.q.DryRun, "dry-run", false, "only say which certificates are meant, and how many")
	f.Uint32Var(&o.q.Count, "count", 0, "with --where, --approve and --image: how many certificates are meant")
	f.StringVar(&o.q.Reason, "reason", "", "one of "+setting.List(revoke.Reasons()))
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
	cmd.MarkFlagsMutuallyExclusive("certificate", "bundle", "image", "serial", "where", "approve")
	cmd.MarkFlagsOneRequired("certificate", "bundle", "image", "serial", "where", "approve")
	cmd.MarkFlagsMutuallyExclusive("self", "key")
	cmd.MarkFlagsMutuallyExclusive("json", "deny") // each is a document of its own
	return cmd
}

func (o *revokeOptions) run(ctx context.Context) error {
	ca, err := client.CheckURL("the CA", o.ca, o.allowHTTP)
	if err != nil {
		return err
	}
	if err := cmp.Or(o.read(), o.readImage(ctx)); err != nil {
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
	if err = o.api(ctx, "revocations", nil, &o.q, &a, token); err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(&a)
	if err != nil {
		return err
	}
	return show(o.Out, o.json, json.RawMessage(text), func(w io.Writer) {
		if o.print(w, &a); o.deny {
			printRules(w, &a)
		}
	})
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

// readImage takes the certificates that signed an image, if the CA issued them. Anybody who may
// write to the registry can add others, and the CA would refuse all with them.
func (o *revokeOptions) readImage(ctx context.Context) error {
	if o.image == "" {
		return nil
	}
	if !strings.Contains(o.image, "@") && !o.q.GetDryRun() {
		return usage("--dry-run says the digest that it has now: look at it, and repeat the command with NAME@sha256:DIGEST", "%s is a tag, which may be of another image in a moment, and what is revoked stays revoked", o.image)
	}
	certs, err := o.signers(ctx, o.image)
	if err != nil {
		return err
	}
	text, err := client.Fetch(ctx, o.http, o.retry, "the CA", strings.TrimRight(o.ca, "/")+"/trusted_root.json")
	if err != nil {
		return err
	}
	trusted, err := trustroot.Parse(text)
	if err != nil {
		return err
	}
	for _, c := range certs {
		if slices.ContainsFunc(trusted.Authorities, func(a trustroot.Authority) bool {
			return bytes.Equal(c.AuthorityKeyId, a.Chain[0].SubjectKeyId) && c.CheckSignatureFrom(a.Chain[0]) == nil
		}) {
			o.q.Certificates = append(o.q.Certificates, c.Raw)
			continue
		}
		o.say(fmt.Sprintf("left out, as this CA hasn't issued it: %s  %s  %v", c.SerialNumber.Text(16), cachain.Stamp(c.NotBefore), extension.SANs(c)))
	}
	if n := len(o.q.Certificates); n == 0 || o.q.GetCount() > 0 && int(o.q.GetCount()) != n {
		return fail("look at them with --dry-run, repeat its --count, and name their CA with --ca", "%d certificates of the CA at %s signed %s", n, o.ca, o.image)
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
func (o *revokeOptions) print(w io.Writer, a *mayflyv1.RevokeResponse) {
	for _, c := range a.GetFound() {
		fmt.Fprintf(w, "%s  %s  %s  %s\n", terminal.Line(c.GetSerial()), cachain.Stamp(c.GetNotBefore().AsTime()), terminal.Line(c.GetSan()), terminal.Line(c.GetIssuer()))
	}
	for _, s := range a.GetStatements() {
		fmt.Fprintln(w, terminal.Line(s.GetStatement()))
	}
	switch {
	case a.GetPending() != "":
		fmt.Fprintf(w, "%d certificates wait for another administrator, for a day:\n  mayfly revoke --ca %s --approve %s --count %d\n", a.GetCount(), o.ca, terminal.Line(a.GetPending()), a.GetCount())
	case o.q.GetDryRun():
		fmt.Fprintf(w, "%d certificates are meant; to revoke them, for good, repeat the command with --count %d in the place of --dry-run\n", a.GetCount(), a.GetCount())
	default:
		fmt.Fprintf(w, "%d revoked, for good. The lists have them within a minute.\n", a.GetCount())
	}
}
