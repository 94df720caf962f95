package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newCACommand(streams streams) *cobra.Command {
	return group("ca", "Make and check the certificates of a CA, with keys in files, KMSs and HSMs", "",
		newCAInitCommand(streams), newCAIntermediateCommand(streams), newCACSRCommand(streams),
		newCASignCSRCommand(streams), newCAShowCommand(streams), newCAVerifyCommand(streams))
}

// caKey is one key of a ceremony, as flags name it.
type caKey struct {
	kmsAccess
	ref      string
	generate string // the algorithm of a key to be made
	of       string // whose key it is, in words
	// public is the key's half in a certificate, where one is at hand: a token may keep none.
	public crypto.PublicKey
}

// flags adds --PREFIXkey and how it is reached; a key that is to be certified
// can be made at once.
func (k *caKey) flags(cmd *cobra.Command, prefix, of string, generates bool) {
	k.of = of
	cmd.Flags().StringVar(&k.ref, prefix+"key", "", of+": file:PATH, or a key in a KMS or an HSM as the vendor's console shows it")
	if generates {
		cmd.Flags().StringVar(&k.generate, prefix+"generate", "", "make that key first, of this kind: "+kmsAlgorithms())
	}
	k.kmsAccess.flags(cmd, prefix, of)
}

// check finds what is wrong with the flags, before anything is done.
func (k *caKey) check() error {
	if k.ref == "" {
		return usage("name "+k.of, "--%skey is missing", k.prefix)
	}
	if k.generate != "" && kms.Algorithm(k.generate).Hash() == 0 {
		return usage("one of "+kmsAlgorithms(), "--%sgenerate %q is unknown", k.prefix, k.generate)
	}
	_, err := k.options(k.ref)
	return err
}

// open makes the key where that is wished, and opens it. Its words for the
// record are the canonical reference, and what a KMS pinned it to.
func (k *caKey) open(ctx context.Context, out io.Writer) (cacert.Key, kms.Signer, error) {
	o, err := k.options(k.ref)
	if err != nil {
		return cacert.Key{}, nil, err
	}
	ref := k.ref
	if k.generate != "" {
		if ref, err = keystore.Generate(ctx, k.ref, kms.Algorithm(k.generate), o); err != nil {
			return cacert.Key{}, nil, kmsFailure("", err)
		}
		fmt.Fprintf(out, "made the key %s\n", terminal.Line(ref))
	}
	o.Public = k.public
	words, failed := "", ""
	o.Watch = func(s kms.Step) {
		switch {
		case s.Err != nil:
			failed = s.Name
		case s.Name == "reference":
			words = s.Detail
		case s.Name == "key" && s.Detail != words:
			words += ", which is " + s.Detail
		}
	}
	signer, err := keystore.Open(ctx, ref, o)
	if err != nil {
		return cacert.Key{}, nil, kmsFailure(failed, fmt.Errorf("%s: %w", k.of, err))
	}
	if k.sealedKey != "" {
		words = "in " + k.sealedKey + ", sealed by " + words
	}
	return cacert.Key{Signer: cacert.Using(ctx, signer), Ref: words}, signer, nil
}

// caProfile is what flags say about a certificate.
type caProfile struct {
	organization, name, pathLength string
	purpose                        string
	days                           int
	out                            string
}

// flags adds the flags of a certificate; a prefix tells two of them apart.
func (p *caProfile) flags(cmd *cobra.Command, prefix, pathLength string, days time.Duration) {
	f := cmd.Flags()
	f.StringVar(&p.name, prefix+"name", "", "common name of the certificate; the organization and its kind if empty")
	f.IntVar(&p.days, prefix+"days", 0, fmt.Sprintf("days that it is valid, never beyond its issuer; %d if not stated, or to the issuer's end", days/cacert.Day))
	f.StringVar(&p.pathLength, prefix+"path-length", pathLength, "how many CA certificates may come below it")
}

// The values of --purpose.
const (
	purposeIssuing   = "issuing"
	purposeTimestamp = "timestamp"
)

// purposeFlag adds what the certificate is for, where that isn't a root.
func (p *caProfile) purposeFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.purpose, "purpose", purposeIssuing,
		"what the certificate is for: issuing, or timestamp for a timestamp authority, which certifies nothing, below the root")
}

func (p *caProfile) profile() (cacert.Profile, error) {
	out := cacert.Profile{Organization: p.organization, CommonName: p.name, PathLength: cacert.Unlimited, Timestamping: p.purpose == purposeTimestamp}
	if p.purpose != "" && p.purpose != purposeIssuing && !out.Timestamping {
		return out, usage(purposeIssuing+" or "+purposeTimestamp, "--purpose %q", p.purpose)
	}
	if p.pathLength != "none" && !out.Timestamping {
		n, err := strconv.Atoi(p.pathLength)
		if err != nil || n < 0 {
			return out, usage("state a number, or none", "path length %q", p.pathLength)
		}
		out.PathLength = n
	}
	if p.days < 0 || p.days > 1<<20 {
		return out, usage("state how many days the certificate is valid", "--days %d", p.days)
	}
	out.Lifetime = time.Duration(p.days) * cacert.Day
	return out, nil
}

// circumstances are those of this machine, this program and this moment.
func circumstances(now time.Time) ceremony.Circumstances {
	host, _ := os.Hostname() // #nosec G104 -- a machine without a name still makes certificates
	build := thisBuild()
	tool := "mayfly " + build.Version
	if build.Commit != "" {
		tool += ", commit " + build.Commit
	}
	if build.Dirty {
		tool += " with changes"
	}
	return ceremony.Circumstances{Now: now, Host: host, Tool: tool}
}

// newCeremony is ceremony.New before the witnesses.
func newCeremony(parent []*x509.Certificate, p cacert.Profile, witnesses []string) (*ceremony.Ceremony, error) {
	at := circumstances(time.Now())
	at.Witnesses = witnesses
	return ceremony.New(parent, p, at)
}

func witnessFlag(cmd *cobra.Command, names *[]string) {
	cmd.Flags().StringArrayVar(names, "witness", nil, "name of somebody who is there, for the record; repeat it for each")
}

// readChain reads the chain of an issuer, or of an authority.
func readChain(in io.Reader, path string) ([]*x509.Certificate, error) {
	b, err := readInput(in, path)
	if err != nil {
		return nil, err
	}
	certs, err := cachain.Parse(b)
	if err != nil {
		return nil, fail("give the certificate of the CA in PEM, each followed by its issuer's, the root last", "%s: %w", inputName(path), err)
	}
	return certs, nil
}

// makes is the file of a key that is to be made in one, or "".
func (k *caKey) makes() string {
	if path, isFile := strings.CutPrefix(k.ref, "file:"); isFile && k.generate != "" {
		return path
	}
	return ""
}

// free is nil when all outputs of a command could be written, each to a file of
// its own that isn't to be a key's.
func free(paths []string, keys ...*caKey) error {
	for i, path := range paths {
		if path == "" {
			return usage("name the file to write with --out", "no output is named")
		}
		for _, k := range keys {
			if made := k.makes(); made != "" && filepath.Clean(made) == filepath.Clean(path) {
				return usage("name a file for each", "%s would hold a key and a certificate", path)
			}
		}
		if slices.ContainsFunc(paths[:i], func(p string) bool { return filepath.Clean(p) == filepath.Clean(path) }) {
			return usage("name a file for each", "%s would be written twice", path)
		}
		if err := ceremony.Free(path); err != nil {
			return err
		}
	}
	return nil
}
