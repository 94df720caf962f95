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

	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

func newCACSRCommand(streams streams) *cobra.Command {
	var key caKey
	var out, organization, name, issuer string
	cmd := &cobra.Command{
		Use:   "csr",
		Short: "Make a certificate request for a key, to be carried to the root",
		Long: `Writes a certificate request (PKCS #10) for the key that --key names, signed with
it: proof that whoever asks has the key. It goes to the machine with the root's
key, where mayfly ca sign-csr makes the certificate. Note the SHA-256 that is
printed: it is compared there, so that no other request is signed in its place.`,
		Example: `  mayfly ca csr --key awskms:alias/issuing --credential workload --out issuing.csr.pem`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := key.check(); err != nil {
				return err
			}
			if err := free([]string{out}, &key); err != nil {
				return err
			}
			var signedBy *x509.Certificate
			if issuer != "" {
				chain, err := readChain(streams.In, issuer)
				if err != nil {
					return err
				}
				signedBy = chain[0]
			}
			k, signer, err := key.open(cmd.Context(), streams.Out)
			if err != nil {
				return err
			}
			defer kms.Close(signer)
			request, err := ceremony.NewRequest(k, organization, name, signedBy)
			if err != nil {
				return err
			}
			if err := durable.WriteNew(out, request, 0o644); err != nil {
				return err
			}
			r, err := ceremony.ParseRequest(request)
			if err != nil {
				return err
			}
			r.Print(streams.Out)
			fmt.Fprintf(streams.Out, "\nwritten: %s\ncarry it to the root, and sign it there:\n  mayfly ca sign-csr %s --issuer root.pem --issuer-key KEY --out chain.pem --fingerprint %x\n", out, out, r.SHA256)
			return nil
		},
	}
	key.flags(cmd, "", "the key that asks for a certificate", true)
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file for the request, in PEM (required)")
	f.StringVar(&name, "name", "Mayfly issuing key", "common name in the request, for the person who reads it")
	f.StringVar(&organization, "organization", "", "organization in the request, for the person who reads it")
	f.StringVar(&issuer, "issuer", "", "certificate of the CA that is to sign: the request has its country, state and organization, byte for byte, as `openssl ca` with match policies wants them")
	cmd.MarkFlagsMutuallyExclusive("issuer", "organization")
	cobra.CheckErr(errors.Join(cmd.MarkFlagRequired("out"), cmd.MarkFlagRequired("key")))
	return cmd
}

// caSignCSR is the command line of `mayfly ca sign-csr`.
type caSignCSR struct {
	caBelow
	yes         bool
	fingerprint string
}

func newCASignCSRCommand(streams streams) *cobra.Command {
	var c caSignCSR
	cmd := &cobra.Command{
		Use:   "sign-csr FILE|-",
		Short: "Make an intermediate certificate for the key in a certificate request",
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
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd.Context(), streams, args[0]) },
	}
	c.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&c.yes, "yes", false, "sign without asking")
	f.StringVar(&c.fingerprint, "fingerprint", "", "sign without asking if the request's SHA-256 is this one, in hexadecimal")
	cmd.MarkFlagsMutuallyExclusive("yes", "fingerprint")
	return cmd
}

func (c *caSignCSR) run(ctx context.Context, io streams, path string) error {
	if err := c.issuer.key.check(); err != nil {
		return err
	}
	intermediate, to, err := c.begin(io.In)
	if err != nil {
		return err
	}
	text, err := readInput(io.In, path)
	if err != nil {
		return err
	}
	request, err := ceremony.ParseRequest(text)
	if err != nil {
		return fail("make the request anew where its key is: mayfly ca csr", "%s: %w", inputName(path), err)
	}
	if err := intermediate.ForRequest(request); err != nil {
		return err
	}
	intermediate.Print(io.Out)
	if err := c.confirm(ctx, io, request); err != nil {
		return err
	}
	issuer, signer, err := c.issuer.key.open(ctx, io.Out)
	if err != nil {
		return err
	}
	defer kms.Close(signer)
	_, err = sign(intermediate, issuer, to, io)
	return err
}

// confirm has a person, or the flags in their place, agree to the request.
func (c *caSignCSR) confirm(ctx context.Context, io streams, r *ceremony.Request) error {
	if c.yes {
		return nil
	}
	if c.fingerprint != "" {
		want, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(c.fingerprint))
		if err != nil || len(want) != sha256.Size {
			return usage("it has 64 hexadecimal digits, with or without colons", "--fingerprint isn't a SHA-256")
		}
		if [sha256.Size]byte(want) != r.SHA256 {
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
