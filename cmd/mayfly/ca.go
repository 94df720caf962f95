package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// caKey is one key of a ceremony, as flags name it.
type caKey struct {
	kmsAccess
	ref      string
	generate string // the algorithm of a key to be made
	of       string // whose key it is, in words
	// public is the key's half in a certificate, where one is at hand: a token may keep none.
	public crypto.PublicKey
}

// flags adds --PREFIXkey and how it is reached, which are checked before the command runs;
// a key that is to be certified can be made at once.
func (k *caKey) flags(cmd *cobra.Command, prefix, of string, generates bool) {
	k.of = of
	cmd.Flags().StringVar(&k.ref, prefix+"key", "", of+": file:PATH, or a key in a KMS or an HSM as the vendor's console shows it")
	if generates {
		cmd.Flags().StringVar(&k.generate, prefix+"generate", "", "make that key first, of this kind: "+kmsAlgorithms())
	}
	k.kmsAccess.flags(cmd, prefix, of)
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if before != nil {
			if err := before(cmd, args); err != nil {
				return err
			}
		}
		return k.check()
	}
}

// check finds what is wrong with the flags of a key that is named.
func (k *caKey) check() error {
	switch named := k.cmd.Flags().Changed(k.prefix + "key"); {
	case named && k.ref == "": // as of a variable that isn't set
		return usage("name "+k.of, "--%skey is missing", k.prefix)
	case !named:
		return nil
	}
	if k.generate != "" && kms.Algorithm(k.generate).Hash() == 0 {
		return usage("one of "+kmsAlgorithms(), "--%sgenerate %q is unknown", k.prefix, k.generate)
	}
	_, err := k.options(k.ref)
	return err
}

// use makes the key where that is wished, and opens it for as long as do lasts. Its words for
// the record are the canonical reference, and what a KMS pinned it to.
func (k *caKey) use(ctx context.Context, out io.Writer, do func(key cacert.Key, signer kms.Signer) error) error {
	o, err := k.options(k.ref)
	if err != nil {
		return err
	}
	ref := k.ref
	if k.generate != "" {
		if ref, err = keystore.Generate(ctx, k.ref, kms.Algorithm(k.generate), o); err != nil {
			return kmsFailure("", err)
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
		return kmsFailure(failed, fmt.Errorf("%s: %w", k.of, err))
	}
	defer kms.Close(signer)
	if k.sealedKey != "" {
		words = "in " + k.sealedKey + ", sealed by " + words
	}
	return do(cacert.Key{Signer: cacert.Using(ctx, signer), Ref: words}, signer)
}

// caProfile is what flags say about a certificate.
type caProfile struct {
	organization, name, pathLength string
	purpose                        string
	days                           int
	out                            string
}

// flags adds the flags of a certificate.
func (p *caProfile) flags(cmd *cobra.Command, pathLength string, days time.Duration) {
	f := cmd.Flags()
	f.StringVar(&p.name, "name", "", "common name of the certificate; the organization and its kind if empty")
	f.IntVar(&p.days, "days", 0, fmt.Sprintf("days that it is valid, never beyond its issuer; %d if not stated, or to the issuer's end", days/cacert.Day))
	f.StringVar(&p.pathLength, "path-length", pathLength, "how many CA certificates may come below it")
}

// The values of --purpose.
const (
	purposeIssuing   = "issuing"
	purposeTimestamp = "timestamp"
)

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
	return readAs(in, path, "give the certificate of the CA in PEM, each followed by its issuer's, the root last", cachain.Parse)
}

// makes is the file of a key that is to be made in one, or "".
func (k *caKey) makes() string {
	if path, isFile := strings.CutPrefix(k.ref, "file:"); isFile && k.generate != "" {
		return path
	}
	return ""
}

// free is nil when all outputs of a command could be written, none to a file that
// is to be a key's.
func free(paths []string, keys ...*caKey) error {
	for _, path := range paths {
		if path == "" {
			return usage("name the file to write with --out", "no output is named")
		}
		for _, k := range keys {
			if made := k.makes(); made != "" && filepath.Clean(made) == filepath.Clean(path) {
				return usage("name a file for each", "%s would hold a key and a certificate", path)
			}
		}
		if err := ceremony.Free(path); err != nil {
			return err
		}
	}
	return nil
}

func newCAShowCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show FILE|-", Short: "Put a CA's certificates, or a certificate request, into words",
		Long: `Says what a CA's certificate, its chain, or a certificate request holds, with the
fingerprints to compare it by, and what is wrong with it as an issuer or, where it is
one's, as a timestamp authority. A chain begins with the certificate that issues and
ends with the root. mayfly ca verify also fails where something is wrong.`,
		Example: `  mayfly ca show chain.pem`,
	}
	below, asJSON := belowFlag(cmd), jsonFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		text, err := readInput(streams.In, args[0])
		if err != nil {
			return err
		}
		if pemfile.IsRequest(text) {
			r, err := ceremony.ParseRequest(text)
			if err != nil {
				return fail(remakeRequest, "%s: %w", inputName(args[0]), err)
			}
			asked := map[string]any{"subject": r.Subject, "asks": slices.Concat([]string{}, r.Asks), "sha256": fmt.Sprintf("%x", r.SHA256)}
			return show(streams.Out, *asJSON, map[string]any{"request": asked}, func(w io.Writer) {
				fmt.Fprintln(w, "certificate request")
				r.Print(w)
			})
		}
		certs, err := readChain(bytes.NewReader(text), "-")
		if err != nil {
			return err
		}
		said, all := telling(streams.Out, *asJSON), []inspect.Description{}
		for i, c := range certs {
			all = append(all, inspect.Describe([]*x509.Certificate{c}, nil))
			fmt.Fprintf(said, "certificate %d of %d\n", i+1, len(certs))
			ceremony.Print(said, c)
			fmt.Fprintln(said)
		}
		found, as := judge(certs, time.Now(), *below)
		for _, f := range found.Faults() {
			fmt.Fprintf(said, "fault: %s\n", terminal.Line(f))
		}
		printRemarks(said, found)
		if len(found.Faults()) == 0 {
			fmt.Fprintf(said, "no faults as %s\n", as)
		}
		judged := map[string]any{
			"certificates": all, "as": as, "faults": slices.Concat([]string{}, found.Faults()), "remarks": slices.Concat([]string{}, found.Remarks()),
		}
		return show(streams.Out, *asJSON, judged, nil)
	}
	return cmd
}

// printRemarks prints what clients put up with.
func printRemarks(out io.Writer, found cachain.Findings) {
	for _, r := range found.Remarks() {
		fmt.Fprintf(out, "remark: %s\n", terminal.Line(r))
	}
}

func belowFlag(cmd *cobra.Command) *int {
	return cmd.Flags().Int("below", 0, "how many CA certificates are to come below the first: 0 where it issues, 1 where it certifies issuing CAs")
}

// judge finds what is wrong with a chain as that of what it is for.
func judge(certs []*x509.Certificate, now time.Time, below int) (found cachain.Findings, as string) {
	if cacert.IsTimestamping(certs[0]) {
		return cacert.CheckTimestamping(certs, now), "a timestamp authority"
	}
	return cacert.Check(certs, cachain.Need{Now: now, Lifetime: ca.MaxLifetime, Below: max(below, 0)}), "an issuer"
}

const remakeRequest = "make the request anew where its key is: mayfly ca csr"

func newCAVerifyCommand(streams streams) *cobra.Command {
	var key caKey
	var at time.Time
	cmd := &cobra.Command{
		Use: "verify FILE|-", Short: "Check a CA's chain, and its key, as the service and verifiers would",
		Long: `Checks a chain from the issuing certificate to the root: order and signatures,
validities within one another, key usages, path lengths, extended key usages from
the root to the leaf, names, the strength of the keys, and that a verifier of code
signatures, or of timestamps where it is a timestamp authority's, takes it. --root
compares the chain's root with the one that you have from elsewhere: without it the
chain only agrees with itself. --key opens the issuing key, signs a trial with it, and
compares it with the first certificate.

Every fault is listed with its fix, as mayfly check lists it. A remark is what
clients take as it is, though certificates that are made anew should be otherwise:
a root that others keep can't be changed. The exit status is 1 when there is any fault.`,
		Example: `  mayfly ca verify chain.pem --root root.pem --key file:issuing.key.pem --passphrase-file passphrase`,
	}
	key.flags(cmd, "", "the key of the first certificate", false)
	root := cmd.Flags().String("root", "", "file with the root certificate that the chain must end with")
	timeFlag(cmd, &at, "at", "time to check at, in place of now")
	below, asJSON := belowFlag(cmd), jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		certs, err := readChain(streams.In, args[0])
		if err != nil {
			return err
		}
		found, _ := judge(certs, cmp.Or(at, time.Now()), *below)
		faults, said := found.Faults(), telling(streams.Out, *asJSON)
		printRemarks(said, found)
		if len(faults) == 0 {
			fmt.Fprintf(said, "ok  chain: %d certificates, from %s\n", len(certs), terminal.Line(cachain.Subject(certs[0])))
		}
		more, err := checkRoot(streams.In, said, certs[len(certs)-1], *root)
		if err != nil {
			return err
		}
		faults = append(faults, more...)
		keyFault := key.belongsTo(cmd.Context(), said, certs[0])
		if err := show(streams.Out, *asJSON, map[string]any{
			"subject": cachain.Subject(certs[0]), "certificates": len(certs), "faults": slices.Concat([]string{}, faults),
			"remarks": slices.Concat([]string{}, found.Remarks()), "root_compared": *root != "", "key_signs": key.ref != "" && keyFault == nil,
		}, nil); err != nil {
			return err
		}
		if len(faults) == 0 {
			return keyFault
		}
		return &failure{code: exitFailed, err: errors.Join(errors.New(inputName(args[0])+": "+strings.Join(faults, "\n")), keyFault)}
	}
	return cmd
}

// checkRoot compares a chain's root with the one from elsewhere.
func checkRoot(in io.Reader, out io.Writer, root *x509.Certificate, file string) (faults []string, err error) {
	if file == "" {
		fmt.Fprintf(out, "--  root: not compared with one from elsewhere (--root); its SHA-256 is %s\n", cachain.Fingerprint(root.Raw))
		return nil, nil
	}
	trusted, err := readChain(in, file)
	if err != nil {
		return nil, err
	}
	switch {
	case len(trusted) != 1:
		return []string{fmt.Sprintf("%s holds %d certificates: name a file with the root alone", file, len(trusted))}, nil
	case !trusted[0].Equal(root):
		return []string{fmt.Sprintf("the chain ends with another root (SHA-256 %s) than %s (SHA-256 %s): find out where the chain comes from",
			cachain.Fingerprint(root.Raw), file, cachain.Fingerprint(trusted[0].Raw))}, nil
	}
	fmt.Fprintf(out, "ok  root: it is that of %s\n", file)
	return nil, nil
}

// belongsTo opens the issuing key, where one is named, and compares it.
func (k *caKey) belongsTo(ctx context.Context, out io.Writer, issuing *x509.Certificate) error {
	if k.ref == "" {
		fmt.Fprintln(out, "--  key: not tried (--key)")
		return nil
	}
	k.public = issuing.PublicKey
	return k.use(ctx, out, func(key cacert.Key, _ kms.Signer) error {
		if !pubkey.Equal(issuing.PublicKey, key.Public()) {
			return fail("name the issuing certificate's key, or put its certificate first", "%s isn't the key of the first certificate", key.Ref)
		}
		fmt.Fprintf(out, "ok  key: %s is the first certificate's, and signs\n", terminal.Line(key.Ref))
		return nil
	})
}
