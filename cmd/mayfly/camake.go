package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

// caInit is the command line of `mayfly ca init`.
type caInit struct {
	key, intermediateKey caKey
	root, intermediate   caProfile
	witnesses            []string
}

func newCAInitCommand(streams streams) *cobra.Command {
	var c caInit
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a root certificate, and an intermediate below it if asked",
		Long: `Signs a root certificate with the key that --key names, in a file, a KMS or an
HSM. With --intermediate-key it also signs an issuing certificate for that key,
and writes the chain that ca.authority.chain of a configuration names. Where the
root is offline, leave that out, and carry a request to it: mayfly ca csr,
mayfly ca sign-csr.

Each certificate is written beside the record of the ceremony, FILE.record.txt.
Nothing is overwritten, and no key is used before all outputs are known to be free.`,
		Example: `  mayfly ca init --organization "Example, Inc." --key file:root.key.pem --generate ECDSA-P384 \
    --passphrase-file passphrase --out root.pem --witness "A. Turing" --witness "G. Hopper"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context(), streams) },
	}
	f := cmd.Flags()
	f.StringVar(&c.root.organization, "organization", "", "the organization of every certificate of this CA (required)")
	f.StringVar(&c.root.out, "out", "", "file for the root certificate, in PEM (required)")
	c.key.flags(cmd, "", "the root's key", true)
	c.root.flags(cmd, "", "none", cacert.RootLifetime)
	f.StringVar(&c.intermediate.out, "intermediate-out", "", "file for the chain, intermediate first")
	c.intermediateKey.flags(cmd, "intermediate-", "the intermediate's key", true)
	c.intermediate.flags(cmd, "intermediate-", "0", cacert.IntermediateLifetime)
	witnessFlag(cmd, &c.witnesses)
	cobra.CheckErr(errors.Join(cmd.MarkFlagRequired("organization"), cmd.MarkFlagRequired("out"), cmd.MarkFlagRequired("key")))
	cmd.MarkFlagsRequiredTogether("intermediate-key", "intermediate-out")
	return cmd
}

func (c *caInit) run(ctx context.Context, io streams) error {
	to, below := ceremony.Beside(c.root.out), ceremony.Beside(c.intermediate.out)
	outputs := []string{to.Certificate, to.Record}
	if err := c.key.check(); err != nil {
		return err
	}
	if c.intermediate.out != "" {
		outputs = append(outputs, below.Certificate, below.Record)
		if err := c.intermediateKey.check(); err != nil {
			return err
		}
	}
	if err := free(outputs, &c.key, &c.intermediateKey); err != nil {
		return err
	}
	p, err := c.root.profile()
	if err != nil {
		return err
	}
	root, err := newCeremony(nil, p, c.witnesses)
	if err != nil {
		return err
	}
	if err := c.foresee(p); err != nil {
		return err
	}
	key, signer, err := c.key.open(ctx, io.Out)
	if err != nil {
		return err
	}
	defer kms.Close(signer)
	if c.intermediate.out == "" {
		_, err := hold(root, key, key, to, io)
		return err
	}
	issuing, issuingSigner, err := c.intermediateKey.open(ctx, io.Out)
	if err != nil {
		return err
	}
	defer kms.Close(issuingSigner)
	return c.both(root, key, issuing, to, below, io)
}

// foresee finds faults of the intermediate before the root's key is used.
func (c *caInit) foresee(root cacert.Profile) error {
	if c.intermediate.out == "" {
		return nil
	}
	p, err := c.intermediate.profile()
	if err != nil {
		return err
	}
	if root.PathLength != cacert.Unlimited && p.PathLength >= root.PathLength {
		return usage("state a longer path length for the root, or a shorter one for the intermediate",
			"a root of path length %d can't certify an intermediate of path length %d", root.PathLength, p.PathLength)
	}
	p.Organization, p.PathLength = root.Organization, cacert.Unlimited
	if _, err := newCeremony(nil, p, nil); err != nil {
		return fmt.Errorf("the intermediate: %w", err)
	}
	return nil
}

// both makes the root and the intermediate. Where the second fails, the first is
// there, and the error says so.
func (c *caInit) both(root *ceremony.Ceremony, key, issuing cacert.Key, to, below ceremony.Output, io streams) error {
	made, err := hold(root, key, key, to, io)
	if err != nil {
		return err
	}
	p, err := c.intermediate.profile()
	if err == nil {
		var intermediate *ceremony.Ceremony
		if intermediate, err = newCeremony(made.Chain, p, c.witnesses); err == nil {
			_, err = hold(intermediate, issuing, key, below, io)
		}
	}
	if err != nil {
		return fail("make the intermediate below the root that is there: mayfly ca intermediate --issuer "+to.Certificate,
			"the root is made and written to %s; the intermediate isn't: %w", to.Certificate, err)
	}
	return nil
}

// hold certifies a key, signs, and writes certificate and record.
func hold(c *ceremony.Ceremony, key, issuer cacert.Key, to ceremony.Output, io streams) (*ceremony.Certificate, error) {
	if err := c.For(key.Public(), key.Ref); err != nil {
		return nil, err
	}
	c.Print(io.Out)
	return sign(c, issuer, to, io)
}

// sign signs what c says, and writes certificate and record.
func sign(c *ceremony.Ceremony, issuer cacert.Key, to ceremony.Output, io streams) (*ceremony.Certificate, error) {
	made, err := c.Sign(issuer)
	if err != nil {
		return nil, err
	}
	if err := made.Write(to); err != nil {
		return nil, err
	}
	fmt.Fprintf(io.Out, "\nwritten: %s, and the record %s\nSHA-256 of the certificate: %s\n", to.Certificate, to.Record, cachain.Fingerprint(made.Chain[0].Raw))
	return made, nil
}

// caIssuer is the CA that signs, as flags name it.
type caIssuer struct {
	key   caKey
	chain string
}

func (i *caIssuer) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.chain, "issuer", "", "file with the certificate of the CA that signs, followed by its issuers', the root last (required)")
	i.key.flags(cmd, "issuer-", "the key of the CA that signs", false)
	cobra.CheckErr(errors.Join(cmd.MarkFlagRequired("issuer"), cmd.MarkFlagRequired("issuer-key")))
}

// caBelow is what the commands have in common that certify a key below another.
type caBelow struct {
	issuer    caIssuer
	profile   caProfile
	witnesses []string
}

func (c *caBelow) flags(cmd *cobra.Command) {
	c.issuer.flags(cmd)
	c.profile.flags(cmd, "", "0", cacert.IntermediateLifetime)
	c.profile.purposeFlag(cmd)
	cmd.Flags().StringVar(&c.profile.out, "out", "", "file for the chain, in PEM (required)")
	witnessFlag(cmd, &c.witnesses)
	cobra.CheckErr(cmd.MarkFlagRequired("out"))
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
	parent, err := readChain(in, c.issuer.chain)
	if err != nil {
		return nil, to, err
	}
	c.issuer.key.public = parent[0].PublicKey
	below, err = newCeremony(parent, p, c.witnesses)
	return below, to, err
}

// caIntermediate is the command line of `mayfly ca intermediate`.
type caIntermediate struct {
	caBelow
	key caKey
}

func newCAIntermediateCommand(streams streams) *cobra.Command {
	var c caIntermediate
	cmd := &cobra.Command{
		Use:   "intermediate",
		Short: "Make an intermediate certificate where the root's key can be reached",
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
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context(), streams) },
	}
	c.flags(cmd)
	c.key.flags(cmd, "", "the intermediate's key", true)
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	return cmd
}

func (c *caIntermediate) run(ctx context.Context, io streams) error {
	if err := errors.Join(c.key.check(), c.issuer.key.check()); err != nil {
		return err
	}
	intermediate, to, err := c.begin(io.In, &c.key)
	if err != nil {
		return err
	}
	issuer, issuerSigner, err := c.issuer.key.open(ctx, io.Out)
	if err != nil {
		return err
	}
	defer kms.Close(issuerSigner)
	if err := intermediate.CheckIssuer(issuer); err != nil {
		return err
	}
	key, signer, err := c.key.open(ctx, io.Out)
	if err != nil {
		return err
	}
	defer kms.Close(signer)
	_, err = hold(intermediate, key, issuer, to, io)
	return err
}
