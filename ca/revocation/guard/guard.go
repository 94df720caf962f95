// Package guard has sigstore-go's verifier refuse what is signed with a revoked
// certificate.
package guard

import (
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/mayfly-ca/mayfly/ca/revocation"
)

// Material is trusted material whose authorities answer for no certificate that is
// revoked, or of which a list doesn't say that it isn't. The verifier drops the text of
// an authority's error: ask Refusal for it. Use one Material for each verification.
// Intermediate certificates that a bundle brings along aren't used.
type Material struct {
	root.TrustedMaterial
	source  revocation.Source
	terms   revocation.Terms
	refusal error
}

// New guards trusted material with lists.
func New(trusted root.TrustedMaterial, source revocation.Source, terms revocation.Terms) *Material {
	return &Material{trusted, source, terms, nil}
}

// Refusal is why a certificate was refused that is good otherwise; nil where none was.
func (m *Material) Refusal() error { return m.refusal }

// FulcioCertificateAuthorities are the guarded authorities.
func (m *Material) FulcioCertificateAuthorities() []root.CertificateAuthority {
	var all []root.CertificateAuthority
	for _, ca := range m.TrustedMaterial.FulcioCertificateAuthorities() {
		all = append(all, guarded{ca, m})
	}
	return all
}

type guarded struct {
	root.CertificateAuthority
	material *Material
}

// Verify verifies the chain at the signature's time, and asks the list by our own.
func (g guarded) Verify(certificate *x509.Certificate, signed time.Time) ([][]*x509.Certificate, error) {
	chains, err := g.CertificateAuthority.Verify(certificate, signed)
	if err != nil {
		return nil, err
	}
	issuer := chains[0][min(1, len(chains[0])-1)]
	list, err := g.material.source(hex.EncodeToString(issuer.SubjectKeyId))
	if err == nil {
		err = list.Check(certificate, issuer, g.material.terms)
	}
	if err != nil {
		g.material.refusal = err
		return nil, err
	}
	return chains, nil
}
