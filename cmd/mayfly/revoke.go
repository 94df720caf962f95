package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/terminal"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// revokeOptions is the command line of `mayfly revoke`.
type revokeOptions struct {
	requestOptions
	certificates, bundles []string
	match                 map[string]string
	from, until           string
	self, deny            bool
	key                   string
	q                     mayflyv1.RevokeRequest
}

const revokeLong = `Makes certificates invalid, for good, whenever something was signed with them.

Administrators (access.admins of the CA's configuration) name certificates, Sigstore
bundles or serial numbers; or search the CA's index with --match, of which a first run
with --dry-run shows a list and a count, and a second one repeats it as --count. With
--self, a token for which the same certificate would be issued now is enough for one
certificate; with --key, its own private key.

The token comes from --token-file, --token-env, --token-stdin or --browser; a CA on this
machine is asked without one where none is named. --deny prints the rule that refuses the
same identity from now on, to be put into the CA's configuration.

Everything that is sent, and who asked, is public: see docs/revocation.md.`

func newRevokeCommand(streams streams) *cobra.Command {
	o := &revokeOptions{}
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "Make single certificates invalid",
		Long:  revokeLong,
		Example: `  mayfly revoke --certificate mayfly.crt.pem --reason keyCompromise --self --token-file token.jwt
  mayfly revoke --bundle v2.sigstore.json --reference INC-7 --token-file admin.jwt
  mayfly revoke --match source_repository_uri=https://github.com/acme/app --from 2027-01-01T00:00:00Z --dry-run --token-file admin.jwt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			o.nameCA(cmd.Flags().Changed, os.Getenv)
			return classify(o.run(ctx, newRequest(o.requestOptions, streams)))
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
	f.StringToStringVar(&o.match, "match", nil, "what the index has, name=value, such as san=…, issuer=… or an extension; may be repeated")
	f.StringVar(&o.from, "from", "", "of --match: certificates from this time on, as in 2027-01-01T00:00:00Z")
	f.StringVar(&o.until, "until", "", "of --match: certificates before this time")
	f.StringVar(&o.q.Approve, "approve", "", "what another administrator asked for, by the name that was printed")
	f.BoolVar(&o.q.DryRun, "dry-run", false, "only say which certificates are meant, and how many")
	f.Uint32Var(&o.q.Count, "count", 0, "with --match and --approve: how many certificates are meant")
	f.StringVar(&o.q.Reason, "reason", "", "one of "+strings.ReplaceAll(strings.Trim(fmt.Sprint(revoke.Reasons()), "[]"), " ", ", "))
	f.StringVar(&o.q.Comment, "comment", "", "one line for people")
	f.StringVar(&o.q.Reference, "reference", "", "such as the URL of an incident")
	f.BoolVar(&o.self, "self", false, "by a token for which the same certificate would be issued now")
	f.StringVar(&o.key, "key", "", "by the certificate's own private key: a PEM file")
	f.BoolVar(&o.deny, "deny", false, "print the rule that refuses the same identities from now on")
	f.StringVar(&o.tokenFile, "token-file", "", "read the identity token from a file")
	f.StringVar(&o.tokenEnv, "token-env", "", "read the identity token from the environment variable of this name")
	f.BoolVar(&o.tokenStdin, "token-stdin", false, "read the identity token from standard input")
	f.BoolVar(&o.browser, "browser", false, "log in with a browser")
	f.StringVar(&o.issuer, "issuer", "", "OpenID Connect issuer to log in at")
	f.BoolVar(&o.json, "json", false, "print the CA's answer as JSON")
	cmd.MarkFlagsMutuallyExclusive("token-file", "token-env", "token-stdin", "browser", "key")
	cmd.MarkFlagsMutuallyExclusive("certificate", "bundle", "serial", "match", "approve")
	cmd.MarkFlagsOneRequired("certificate", "bundle", "serial", "match", "approve")
	cmd.MarkFlagsMutuallyExclusive("self", "key")
	return cmd
}

func (o *revokeOptions) run(ctx context.Context, r *request) error {
	ca, err := client.CheckURL("the CA", o.ca, o.allowHTTP)
	if err != nil {
		return err
	}
	certs, err := o.read(r.streams)
	if err != nil {
		return err
	}
	if err := o.find(); err != nil {
		return err
	}
	token, err := o.authorize(ctx, r, ca, certs)
	if err != nil {
		return err
	}
	body, err := protojson.Marshal(&o.q)
	if err != nil {
		return err
	}
	text, err := client.Ask(ctx, r.http, r.retry, strings.TrimRight(o.ca, "/")+"/api/v1/mayfly/revocations", token, body)
	if err != nil {
		return err
	}
	var a mayflyv1.RevokeResponse
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &a); err != nil {
		return fail("check that --ca names a Mayfly of this version", "the CA's answer can't be read")
	}
	if o.json {
		_, err = fmt.Fprintf(r.Out, "%s\n", text)
	} else {
		err = o.print(r.streams, &a)
	}
	if o.deny {
		o.printRules(r.streams, &a, certs)
	}
	return err
}

// read reads the certificates that the command line names.
func (o *revokeOptions) read(io streams) (certs []*x509.Certificate, err error) {
	for i, file := range append(o.certificates, o.bundles...) {
		data, err := readInput(io.In, file)
		if err != nil {
			return nil, err
		}
		if i >= len(o.certificates) {
			if data, err = certificateOf(data); err != nil {
				return nil, fail("name a bundle with a certificate, as cosign and mayfly request write it", "%s: %w", file, err)
			}
		} else if block, _ := pem.Decode(data); block != nil {
			data = block.Bytes
		}
		cert, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, fail("name a file with the certificate in PEM", "%s isn't a certificate", inputName(file))
		}
		certs, o.q.Certificates = append(certs, cert), append(o.q.Certificates, cert.Raw)
	}
	return certs, nil
}

// certificateOf is that of a Sigstore bundle, or of the older kind that cosign wrote.
func certificateOf(bundle []byte) ([]byte, error) {
	type certificate struct {
		Raw []byte `json:"rawBytes"`
	}
	var b struct {
		Material struct {
			Certificate certificate `json:"certificate"`
			Chain       struct {
				Certificates []certificate `json:"certificates"`
			} `json:"x509CertificateChain"`
		} `json:"verificationMaterial"`
		Cert []byte `json:"cert"` // PEM
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return nil, errors.New("not JSON")
	}
	chain := append([]certificate{b.Material.Certificate}, b.Material.Chain.Certificates...)
	for _, c := range chain {
		if len(c.Raw) > 0 {
			return c.Raw, nil
		}
	}
	if block, _ := pem.Decode(b.Cert); block != nil {
		return block.Bytes, nil
	}
	return nil, errors.New("no certificate is in it")
}

// find says what --match means.
func (o *revokeOptions) find() error {
	if len(o.match) == 0 {
		return nil
	}
	o.q.Find = &mayflyv1.Find{Match: o.match}
	for _, at := range []struct {
		flag, text string
		to         **timestamppb.Timestamp
	}{{"--from", o.from, &o.q.Find.From}, {"--until", o.until, &o.q.Find.Until}} {
		if at.text == "" {
			continue
		}
		when, err := time.Parse(time.RFC3339, at.text)
		if err != nil {
			return usage("write it like 2027-01-01T00:00:00Z", "%s %q isn't a time", at.flag, at.text)
		}
		*at.to = timestamppb.New(when)
	}
	return nil
}

// authorize gets the token, or signs.
func (o *revokeOptions) authorize(ctx context.Context, r *request, ca *url.URL, certs []*x509.Certificate) (*client.Token, error) {
	if o.key != "" {
		if len(certs) != 1 {
			return nil, usage("name the one certificate that it is of", "--key is for one certificate")
		}
		o.q.Right = mayflyv1.Right_RIGHT_KEY
		key, err := keystore.Open(ctx, "file:"+o.key, kms.Options{})
		if err != nil {
			return nil, err
		}
		defer kms.Close(key)
		o.q.Signature, err = signChallenge(ctx, key, certs[0])
		return nil, err
	}
	if o.self {
		o.q.Right = mayflyv1.Right_RIGHT_SELF_SERVICE
	} else if o.tokenFile == "" && o.tokenEnv == "" && !o.tokenStdin && !o.browser && loopback.Host(ca.Hostname()) {
		return nil, nil //nolint:nilnil // `mayfly dev` asks for none
	}
	token, _, err := r.token(ctx)
	return token, err
}

// printRules prints deny rules for the configuration: the identities of what was found,
// or of the certificates that were named.
func (o *revokeOptions) printRules(io streams, a *mayflyv1.RevokeResponse, certs []*x509.Certificate) {
	identities := map[[2]string]bool{}
	for _, c := range a.GetFound() {
		identities[[2]string{c.GetIssuer(), c.GetSan()}] = true
	}
	for _, c := range certs {
		d := identityOf(c)
		identities[d] = true
	}
	if san := o.match["san"]; san != "" && len(identities) == 0 {
		identities[[2]string{o.match["issuer"], san}] = true
	}
	fmt.Fprintln(io.Out, "deny:")
	n := 0
	for id := range identities {
		when := fmt.Sprintf("principal.san == %q", id[1])
		if id[0] != "" {
			when = fmt.Sprintf("principal.issuer == %q && ", id[0]) + when
		}
		n++
		fmt.Fprintf(io.Out, "  - name: revoked-%s-%d\n    when: '%s'\n", time.Now().UTC().Format("20060102-150405"), n, strings.ReplaceAll(when, "'", "''"))
	}
}

// print says what was done, or is meant.
func (o *revokeOptions) print(io streams, a *mayflyv1.RevokeResponse) error {
	table := tabwriter.NewWriter(io.Out, 0, 0, 2, ' ', 0)
	if len(a.GetFound()) > 0 {
		fmt.Fprintln(table, "SERIAL\tNOT BEFORE\tIDENTITY\tISSUER")
		for _, c := range a.GetFound() {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", c.GetSerial(), cachain.Stamp(c.GetNotBefore().AsTime()), terminal.Line(c.GetSan()), terminal.Line(c.GetIssuer()))
		}
	}
	for _, s := range a.GetStatements() {
		if parsed, err := revoke.ParseStatement([]byte(s.GetStatement())); err == nil {
			fmt.Fprintf(table, "revoked\t%s\t%s\tstatement %d of %s\n", parsed.Serial, parsed.Reason, parsed.Index, cachain.Stamp(parsed.Time))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	switch {
	case a.GetPending() != "":
		fmt.Fprintf(io.Out, "%d certificates wait for another administrator, for a day:\n  mayfly revoke --ca %s --approve %s --count %d\n", a.GetCount(), o.ca, a.GetPending(), a.GetCount())
	case o.q.GetDryRun():
		fmt.Fprintf(io.Out, "%d certificates are meant; to revoke them, for good, repeat the command with --count %d in the place of --dry-run\n", a.GetCount(), a.GetCount())
	default:
		fmt.Fprintf(io.Out, "%d revoked, for good. The lists have them within a minute.\n", a.GetCount())
	}
	return nil
}

// identityOf is the issuer and the name in a certificate.
func identityOf(cert *x509.Certificate) [2]string {
	names := append([]string(nil), cert.EmailAddresses...)
	for _, u := range cert.URIs {
		names = append(names, u.String())
	}
	says, err := extension.Parse(cert.Extensions)
	if err != nil || len(names) == 0 {
		return [2]string{says.Issuer, ""}
	}
	return [2]string{says.Issuer, names[0]}
}

// signChallenge signs with the hash that proofs of possession have.
func signChallenge(ctx context.Context, key kms.Signer, cert *x509.Certificate) ([]byte, error) {
	algorithm, err := kms.AlgorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	h := algorithm.Hash().New()
	_, _ = h.Write(revoke.Challenge(cert)) // a hash never fails
	return key.Sign(ctx, h.Sum(nil), algorithm.Hash())
}
