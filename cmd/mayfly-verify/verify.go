package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/ca/revocation/guard"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// options are the command line.
type options struct {
	bundle, digest, predicate    string
	identity, identityRegexp     string
	issuer, issuerRegexp         string
	trustedRoot, tufURL, tufRoot string
	crl                          []string
	cache                        string
	offline, allowStale, json    bool
	ignoreTlog, ignoreSCT        bool
	out, warn                    io.Writer
}

// signature is what one signature came to, as it is printed.
type signature struct {
	Result      string      `json:"result"` // good, bad, or a kind of refusal
	Words       string      `json:"words,omitempty"`
	SAN         string      `json:"san,omitempty"`
	Issuer      string      `json:"issuer,omitempty"`
	Serial      string      `json:"serial,omitempty"`
	Authority   string      `json:"authority,omitempty"` // its key id
	Fingerprint string      `json:"certificate_fingerprint,omitempty"`
	Times       []time.Time `json:"timestamps,omitempty"`

	err error
}

// run verifies, prints what came out, and fails unless a signature is good.
func (o *options) run(ctx context.Context, args []string) error {
	identity, err := verify.NewShortCertificateIdentity(o.issuer, o.issuerRegexp, o.identity, o.identityRegexp)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	t, err := o.trust(ctx)
	if err != nil {
		return err
	}
	artifact, bundles, name, err := o.artifact(ctx, args)
	if err != nil {
		return err
	}
	v := verification{options: o, trust: t, artifact: artifact, identity: identity}
	var all []signature
	for _, b := range bundles {
		all = append(all, v.signature(b))
	}
	err = o.outcome(all)
	if e := o.print(name, all, err); e != nil {
		return e
	}
	return err
}

// outcome is nil when one signature is good; else the error that says most.
func (o *options) outcome(all []signature) error {
	var outcome error = errors.New("there is no signature")
	for _, s := range all {
		switch {
		case s.err == nil:
			return nil
		case exitCode(outcome) == exitNotGood, exitCode(s.err) == exitRevoked:
			outcome = s.err
		}
	}
	return outcome
}

func (o *options) print(name string, all []signature, outcome error) error {
	if o.json {
		result := map[string]any{"artifact": name, "good": outcome == nil, "signatures": all}
		e := json.NewEncoder(o.out)
		e.SetIndent("", "  ")
		return e.Encode(result)
	}
	for _, s := range all {
		fmt.Fprintf(o.out, "%-8s %s by %s (%s)", s.Result, terminal.Escape(name), terminal.Escape(s.SAN), terminal.Escape(s.Issuer))
		for _, t := range s.Times {
			fmt.Fprintf(o.out, " at %s", t.UTC().Format(time.RFC3339))
		}
		fmt.Fprintf(o.out, ", certificate %s\n", s.Serial)
	}
	return nil
}

// artifact is what was signed, its signatures, and its name.
func (o *options) artifact(ctx context.Context, args []string) (verify.ArtifactPolicyOption, []*bundle.Bundle, string, error) {
	if o.bundle == "" {
		if len(args) != 1 || o.digest != "" {
			return nil, nil, "", fmt.Errorf("%w: name an image, or a file and its --bundle", errUsage)
		}
		return imageSignatures(ctx, args[0])
	}
	if (len(args) == 1) == (o.digest != "") {
		return nil, nil, "", fmt.Errorf("%w: with --bundle name a file, or its --digest", errUsage)
	}
	b, err := bundle.LoadJSONFromPath(o.bundle)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s isn't a Sigstore bundle: %w", o.bundle, err)
	}
	if o.digest != "" {
		sum, err := hex.DecodeString(strings.TrimPrefix(o.digest, "sha256:"))
		if err != nil || len(sum) != sha256.Size {
			return nil, nil, "", fmt.Errorf("%w: --digest is sha256: and 64 hexadecimal digits", errUsage)
		}
		return verify.WithArtifactDigest("sha256", sum), []*bundle.Bundle{b}, o.digest, nil
	}
	if _, err := os.Stat(args[0]); err != nil {
		return nil, nil, "", err
	}
	return func(p *verify.PolicyConfig) error { // each verification reads it anew
		file, err := os.Open(args[0])
		if err != nil {
			return err
		}
		return verify.WithArtifact(file)(p)
	}, []*bundle.Bundle{b}, args[0], nil
}

// verification is how each signature is verified.
type verification struct {
	*options
	trust    *trust
	artifact verify.ArtifactPolicyOption
	identity verify.CertificateIdentity
}

// signature verifies one.
func (v *verification) signature(b *bundle.Bundle) (s signature) {
	content, err := b.VerificationContent()
	if err != nil || content.Certificate() == nil {
		return signature{Result: "bad", Words: "signed with a key, and not with a certificate", err: errors.New("signed with a key, and not with a certificate")}
	}
	s.of(content.Certificate())
	guarded := guard.New(v.trust.root, v.trust.lists, revocation.Terms{Now: time.Now(), Stale: v.stale()})
	var material root.TrustedMaterial = guarded
	if v.trust.lists == nil {
		material = v.trust.root
	}
	if s.err = v.verify(b, material, &s); s.err != nil && guarded.Refusal() != nil {
		// It is revoked only if nothing else speaks against it: who asks goes by that.
		if err := v.verify(b, v.trust.root, &s); err == nil {
			s.err = guarded.Refusal()
		}
	}
	s.Result = "good"
	if s.err != nil {
		s.Result, s.Words = "bad", s.err.Error()
		if r := (*revocation.Refusal)(nil); errors.As(s.err, &r) {
			s.Result = string(r.Kind)
		}
	}
	if s.Result == "good" || s.Result == string(revocation.Revoked) {
		v.trust.remember(s.Authority)
	}
	return s
}

func (v *verification) stale() func(*revocation.Refusal) {
	if !v.allowStale {
		return nil
	}
	return func(r *revocation.Refusal) { fmt.Fprintln(v.warn, "mayfly-verify: warning:", r.Words) }
}

// verify has sigstore-go verify a bundle by what the trusted root has.
func (v *verification) verify(b *bundle.Bundle, material root.TrustedMaterial, s *signature) error {
	by := verify.WithObserverTimestamps(1)
	if len(material.TimestampingAuthorities()) == 0 && len(material.RekorLogs()) == 0 {
		by = verify.WithCurrentTime()
	}
	wanted := []verify.VerifierOption{by, verify.WithoutStatementPredicate()}
	if len(material.RekorLogs()) > 0 && !v.ignoreTlog {
		wanted = append(wanted, verify.WithTransparencyLog(1))
	}
	if len(material.CTLogs()) > 0 && !v.ignoreSCT {
		wanted = append(wanted, verify.WithSignedCertificateTimestamps(1))
	}
	verifier, err := verify.NewVerifier(material, wanted...)
	if err != nil {
		return err
	}
	result, err := verifier.Verify(b, verify.NewPolicy(v.artifact, verify.WithCertificateIdentity(v.identity)))
	if err != nil {
		return err
	}
	if v.bundle == "" && result.Statement.GetPredicateType() != v.predicate {
		return fmt.Errorf("it is a statement of the type %q, not %q (--type)", result.Statement.GetPredicateType(), v.predicate)
	}
	s.Times = nil
	for _, t := range result.VerifiedTimestamps {
		s.Times = append(s.Times, t.Timestamp)
	}
	return nil
}

// of has s say whose certificate it is.
func (s *signature) of(c *x509.Certificate) {
	if is, err := certificate.SummarizeCertificate(c); err == nil {
		s.SAN, s.Issuer = is.SubjectAlternativeName, is.Issuer
	}
	sum := sha256.Sum256(c.Raw)
	s.Serial, s.Authority, s.Fingerprint = c.SerialNumber.Text(16), hex.EncodeToString(c.AuthorityKeyId), hex.EncodeToString(sum[:])
}
