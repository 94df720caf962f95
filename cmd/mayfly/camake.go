package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

func newCAInitCommand(streams streams) *cobra.Command {
	var key caKey
	var root caProfile
	var witnesses []string
	cmd := &cobra.Command{
		Use: "init", Short: "Make a root certificate",
		Long: `Signs a root certificate with the key that --key names, in a file, a KMS or an
HSM. The intermediate below it is made by mayfly ca intermediate or, where the root
is offline, from a request that is carried to it: mayfly ca csr, mayfly ca sign-csr.

The certificate is written beside the record of the ceremony, FILE.record.txt.
Nothing is overwritten, and no key is used before both are known to be free.`,
		Example: `  mayfly ca init --organization "Example, Inc." --key file:root.key.pem --generate ECDSA-P384 \
    --passphrase-file passphrase --out root.pem --witness "A. Turing" --witness "G. Hopper"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to := ceremony.Beside(root.out)
			if err := free([]string{to.Certificate, to.Record}, &key); err != nil {
				return err
			}
			p, err := root.profile()
			if err != nil {
				return err
			}
			begun, err := newCeremony(nil, p, witnesses)
			if err != nil {
				return err
			}
			return key.use(cmd.Context(), streams.Out, func(k cacert.Key, _ kms.Signer) error {
				return hold(begun, k, k, to, streams)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&root.organization, "organization", "", "the organization of every certificate of this CA (required)")
	f.StringVar(&root.out, "out", "", "file for the root certificate, in PEM (required)")
	key.flags(cmd, "", "the root's key", true)
	root.flags(cmd, "none", cacert.RootLifetime)
	witnessFlag(cmd, &witnesses)
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	return cmd
}

// hold certifies a key, signs, and writes certificate and record.
func hold(c *ceremony.Ceremony, key, issuer cacert.Key, to ceremony.Output, io streams) error {
	if err := c.For(key.Public(), key.Ref); err != nil {
		return err
	}
	c.Print(io.Out)
	return sign(c, issuer, to, io)
}

// sign signs what c says, and writes certificate and record.
func sign(c *ceremony.Ceremony, issuer cacert.Key, to ceremony.Output, io streams) error {
	made, err := c.Sign(issuer)
	if err != nil {
		return err
	}
	if err := made.Write(to); err != nil {
		return err
	}
	fmt.Fprintf(io.Out, "\nwritten: %s, and the record %s\nSHA-256 of the certificate: %s\n", to.Certificate, to.Record, cachain.Fingerprint(made.Chain[0].Raw))
	return nil
}

// caBelow is what the commands have in common that certify a key below another.
type caBelow struct {
	issuerKey caKey
	issuer    string // the file of its chain
	profile   caProfile
	witnesses []string
}

func (c *caBelow) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.issuer, "issuer", "", "file with the certificate of the CA that signs, followed by its issuers', the root last (required)")
	c.issuerKey.flags(cmd, "issuer-", "the key of the CA that signs", false)
	c.profile.flags(cmd, "0", cacert.IntermediateLifetime)
	cmd.Flags().StringVar(&c.profile.purpose, "purpose", purposeIssuing,
		"what the certificate is for: issuing, or timestamp for a timestamp authority, which certifies nothing, below the root")
	cmd.Flags().StringVar(&c.profile.out, "out", "", "file for the chain, in PEM (required)")
	witnessFlag(cmd, &c.witnesses)
	cobra.CheckErr(cmd.MarkFlagRequired("issuer-key"))
}

// begin begins the ceremony, before any key is used.
func (c *caBelow) begin(in io.Reader, keys ...*caKey) (below *ceremony.Ceremony, to ceremony.Output, err error) {
	to = ceremony.Beside(c.profile.out)
	if err := free([]string{to.Certificate, to.Record}, keys...); err != nil {
		return nil, to, err
	}
	p, err := c.profile.profile()
	if err != nil {
		return nil, to, err
	}
	parent, err := readChain(in, c.issuer)
	if err != nil {
		return nil, to, err
	}
	c.issuerKey.public = parent[0].PublicKey
	below, err = newCeremony(parent, p, c.witnesses)
	return below, to, err
}

func newCAIntermediateCommand(streams streams) *cobra.Command {
	var c caBelow
	var key caKey
	cmd := &cobra.Command{
		Use: "intermediate", Short: "Make an intermediate certificate where the root's key can be reached",
		Long: `Signs a certificate for the key that --key names with the key of the CA that
--issuer and --issuer-key name, and writes the chain from it to the root: the file
that ca.authority.chain of a configuration names. Path length 0 is for a CA that
issues; 1 is for one that certifies issuing CAs (ca.authority.mode: ephemeral).
--purpose timestamp makes the certificate of a timestamp authority (timestamp.chain),
which certifies nothing.

The organization is the root's. The chain is written beside the record of the
ceremony, FILE.record.txt. Nothing is overwritten.`,
		Example: `  mayfly ca intermediate --issuer root.pem --issuer-key file:root.key.pem --issuer-passphrase-file passphrase \
    --key awskms:alias/issuing --credential workload --out chain.pem`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			intermediate, to, err := c.begin(streams.In, &key)
			if err != nil {
				return err
			}
			return c.issuerKey.use(cmd.Context(), streams.Out, func(issuer cacert.Key, _ kms.Signer) error {
				if err := intermediate.CheckIssuer(issuer); err != nil {
					return err
				}
				return key.use(cmd.Context(), streams.Out, func(k cacert.Key, _ kms.Signer) error {
					return hold(intermediate, k, issuer, to, streams)
				})
			})
		},
	}
	c.flags(cmd)
	key.flags(cmd, "", "the intermediate's key", true)
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	return cmd
}

func newCACSRCommand(streams streams) *cobra.Command {
	var key caKey
	cmd := &cobra.Command{
		Use: "csr", Short: "Make a certificate request for a key, to be carried to the root",
		Long: `Writes a certificate request (PKCS #10) for the key that --key names, signed with
it: proof that whoever asks has the key. It goes to the machine with the root's
key, where mayfly ca sign-csr makes the certificate. Note the SHA-256 that is
printed: it is compared there, so that no other request is signed in its place.`,
		Example: `  mayfly ca csr --key awskms:alias/issuing --credential workload --out issuing.csr.pem`,
	}
	key.flags(cmd, "", "the key that asks for a certificate", true)
	f := cmd.Flags()
	out := f.String("out", "", "file for the request, in PEM (required)")
	name := f.String("name", "Mayfly issuing key", "common name in the request, for the person who reads it")
	organization := f.String("organization", "", "organization in the request, for the person who reads it")
	issuer := f.String("issuer", "", "certificate of the CA that is to sign: the request has its country, state and organization, byte for byte, as `openssl ca` with match policies wants them")
	cmd.MarkFlagsMutuallyExclusive("issuer", "organization")
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := free([]string{*out}, &key); err != nil {
			return err
		}
		var signedBy *x509.Certificate
		if *issuer != "" {
			chain, err := readChain(streams.In, *issuer)
			if err != nil {
				return err
			}
			signedBy = chain[0]
		}
		return key.use(cmd.Context(), streams.Out, func(k cacert.Key, _ kms.Signer) error {
			request, err := ceremony.NewRequest(k, *organization, *name, signedBy)
			if err != nil {
				return err
			}
			if err := durable.WriteNew(*out, request, 0o644); err != nil {
				return err
			}
			r, err := ceremony.ParseRequest(request)
			if err != nil {
				return err
			}
			r.Print(streams.Out)
			fmt.Fprintf(streams.Out, "\nwritten: %s\ncarry it to the root, and sign it there:\n  mayfly ca sign-csr %s --issuer root.pem --issuer-key KEY --out chain.pem --fingerprint %x\n", *out, *out, r.SHA256)
			return nil
		})
	}
	return cmd
}

func newCASignCSRCommand(streams streams) *cobra.Command {
	var c caBelow
	cmd := &cobra.Command{
		Use: "sign-csr FILE|-", Short: "Make an intermediate certificate for the key in a certificate request",
		Long: `Signs a certificate for the key of a request (mayfly ca csr) with the CA that
--issuer and --issuer-key name, and writes the chain from it to the root, to be
carried back. Of the request only the key is used: the name, the path length and
the days are what the flags here say, and what else it asks for is shown and
ignored. Requests that aren't signed with their own key, that are signed with
SHA-1, MD5 or RSA-PSS, and weak keys are refused.

It shows what will be signed and asks. --fingerprint answers for scripts, with the
SHA-256 that mayfly ca csr printed; --yes signs whatever the file holds.`,
		Example: `  mayfly ca sign-csr issuing.csr.pem --issuer root.pem --issuer-key file:root.key.pem \
    --issuer-passphrase-file passphrase --out chain.pem --witness "A. Turing"`,
	}
	c.flags(cmd)
	f := cmd.Flags()
	yes := f.Bool("yes", false, "sign without asking")
	fingerprint := f.String("fingerprint", "", "sign without asking if the request's SHA-256 is this one, in hexadecimal")
	cmd.MarkFlagsMutuallyExclusive("yes", "fingerprint")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		intermediate, to, err := c.begin(streams.In)
		if err != nil {
			return err
		}
		request, err := readAs(streams.In, args[0], remakeRequest, ceremony.ParseRequest)
		if err != nil {
			return err
		}
		if err := intermediate.ForRequest(request); err != nil {
			return err
		}
		intermediate.Print(streams.Out)
		if !*yes {
			if err := confirm(cmd.Context(), streams, request, *fingerprint); err != nil {
				return err
			}
		}
		return c.issuerKey.use(cmd.Context(), streams.Out, func(issuer cacert.Key, _ kms.Signer) error {
			return sign(intermediate, issuer, to, streams)
		})
	}
	return cmd
}

// confirm has a person, or the fingerprint in their place, agree to the request.
func confirm(ctx context.Context, io streams, r *ceremony.Request, fingerprint string) error {
	if fingerprint != "" {
		want, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(fingerprint))
		switch {
		case err != nil || len(want) != sha256.Size:
			return usage("it has 64 hexadecimal digits, with or without colons", "--fingerprint isn't a SHA-256")
		case [sha256.Size]byte(want) != r.SHA256:
			return fail("find out where this request comes from before anything is signed", "the request isn't the one that --fingerprint names: nothing is signed")
		}
		return nil
	}
	return agree(ctx, io, "Is the request's SHA-256 the one that mayfly ca csr printed where the key is?",
		"compare the request's SHA-256 with what mayfly ca csr printed and give it as --fingerprint, or say --yes")
}

// agree has the person at the terminal type yes; fix is for where there is none.
func agree(ctx context.Context, io streams, question, fix string) error {
	if !atTerminal(io.In) {
		return usage(fix, "nobody is at a terminal to agree: nothing is signed")
	}
	fmt.Fprintf(io.Err, "\n%s\nType yes to sign: ", question)
	answer, err := ask(ctx, io.In)
	if err != nil {
		return err
	}
	if answer != "yes" {
		return errors.New("not confirmed: nothing is signed")
	}
	return nil
}

// atTerminal reports whether a person is at the other end.
func atTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) // #nosec G115 -- a descriptor is small
}

// ask reads one line, for as long as ctx lasts. The reading outlives ctx where
// the person never answers: the process ends then.
func ask(ctx context.Context, in io.Reader) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(io.LimitReader(in, 256)).ReadString('\n')
		read <- line{strings.TrimSpace(text), err}
	}()
	select {
	case l := <-read:
		if l.err != nil && !errors.Is(l.err, io.EOF) {
			return "", fmt.Errorf("reading the answer: %w", l.err)
		}
		return l.text, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
