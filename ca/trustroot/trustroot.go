// Package trustroot writes the documents that tell Sigstore clients whom to
// trust and where to ask, and reads the first of them back. How clients differ
// in what they accept decides most of what is written here; each such rule has
// a test.
package trustroot

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// Media types of the documents. The trusted root's is the one form that all
// clients take: sigstore-go refuses version 0.2, sigstore-python knows only 0.1.
const (
	TrustedRootMediaType   = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
	SigningConfigMediaType = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
	TrustConfigMediaType   = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
)

// Authority is a certificate authority, past or present, and the time in which
// it issued.
type Authority struct {
	// Chain is in DER, from the issuing certificate to the self-signed root.
	Chain [][]byte
	// URL is where the authority answers.
	URL string
	// Start is not after the first leaf's notBefore. End is zero while the
	// authority issues.
	Start, End time.Time
}

// Service is something that a signing client calls.
type Service struct {
	URL      string
	Operator string
	Start    time.Time
	// APIVersion is the major version; zero is 1.
	APIVersion uint32
}

// Input is what the documents say.
type Input struct {
	// Authorities and Logs include past ones: what they signed is verified for ever.
	Authorities []Authority
	Logs        []ctlog.Description
	// CA, OIDC, Rekor and TSA are the services of the signing config.
	CA, OIDC, Rekor, TSA []Service
}

// Documents are the rendered documents: each one line of JSON with a final new
// line (gh reads JSON lines and drops an unterminated one), and the same bytes
// for the same input.
type Documents struct {
	TrustedRoot, SigningConfig, TrustConfig []byte
}

// check refuses what some client would choke on.
func (in *Input) check() error {
	if len(in.Authorities) == 0 {
		return errors.New("trustroot: no authority: clients could verify nothing")
	}
	for i, a := range in.Authorities {
		if _, err := a.parse(true); err != nil {
			return fmt.Errorf("trustroot: authority %d: %w", i, err)
		}
		if !a.End.IsZero() && a.End.Before(a.Start) {
			return fmt.Errorf("trustroot: authority %d ends before it starts", i)
		}
		if a.Start.IsZero() {
			return fmt.Errorf("trustroot: authority %d has no start", i)
		}
	}
	seen := make(map[[32]byte]bool)
	for _, l := range in.Logs {
		if err := checkLog(l); err != nil {
			return err
		}
		if seen[l.ID] {
			return fmt.Errorf("trustroot: log %x is listed twice: clients want one entry for each key", l.ID)
		}
		seen[l.ID] = true
	}
	for _, s := range slices.Concat(in.CA, in.OIDC, in.Rekor, in.TSA) {
		if s.URL == "" || s.Start.IsZero() {
			return fmt.Errorf("trustroot: service %q needs a URL and a start", s.URL)
		}
	}
	return nil
}

// parse reads an authority's chain and wants it to end in a self-signed root,
// each certificate signed by the next, and where oneOrganization is set (gh
// picks the verifier by it), one Organization throughout.
func (a *Authority) parse(oneOrganization bool) ([]*x509.Certificate, error) {
	if len(a.Chain) == 0 {
		return nil, errors.New("has no certificates")
	}
	certs := make([]*x509.Certificate, len(a.Chain))
	for i, der := range a.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		certs[i] = c
	}
	for i, c := range certs {
		var err error
		if i < len(certs)-1 {
			err = c.CheckSignatureFrom(certs[i+1])
		} else if !chain.SelfSigned(c) {
			err = errors.New("it isn't a root")
		}
		if err != nil {
			return nil, fmt.Errorf("certificate %d isn't signed by the next, or the last by itself: %w", i, err)
		}
		if oneOrganization && !slices.Equal(c.Subject.Organization, certs[0].Subject.Organization) {
			return nil, fmt.Errorf("certificate %d names another Organization than the first", i)
		}
	}
	return certs, nil
}
