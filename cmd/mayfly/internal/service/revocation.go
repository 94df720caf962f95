package service

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net/http"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
)

// loadRevocation opens the key of the statements' log, and refuses authorities whose
// keys can't sign lists.
func (l *Components) loadRevocation(ctx context.Context, c revoke.Config, d Dependencies, f *setting.Faults) {
	if !c.Enabled() {
		return
	}
	o := d.kmsOptions()
	o.Passphrase, o.Access = c.Passphrase, c.Access
	var err error
	if l.revocationKey, err = keystore.Open(ctx, string(c.Key), o); err != nil {
		addFaults(f, "revocation.key", err)
	}
	if l.Authorities == nil {
		return
	}
	for _, issuer := range issuingCertificates(l.Authorities) {
		if err := revoke.CheckIssuer(issuer); err != nil {
			f.Add("revocation.directory", "%s: %v", issuer.Subject, err)
		}
	}
}

// issuingCertificates are those of all that clients trust.
func issuingCertificates(all *authority.Set) (certs []*x509.Certificate) {
	for _, t := range all.Trusted {
		if c, err := x509.ParseCertificate(t.Chain[0]); err == nil { // it was parsed before
			certs = append(certs, c)
		}
	}
	return certs
}

// startRevocation opens what was revoked, where the configuration has that.
func (s *Service) startRevocation(ctx context.Context, first *state) (err error) {
	if !first.config.Revocation.Enabled() {
		return nil
	}
	s.revoker, err = revoke.Open(ctx, revoke.Options{
		Config: first.config.Revocation, Signer: s.loaded.revocationKey, URL: s.PublicURL(), Metrics: s.Registry,
		Issuers:     func() []*x509.Certificate { return issuingCertificates(s.issuer.Authorities()) },
		ListOptions: revoke.ListOptions{Now: s.Now, Logger: s.Logger, Open: s.openForList},
	})
	if err != nil {
		return err
	}
	s.loaded.revocationKey = nil
	s.useForLists(first)
	return nil
}

// useForLists has the authority that signs in st sign lists. It comes before another
// takes its place, which closes its key.
func (s *Service) useForLists(st *state) {
	if a := st.authorities.Active; s.revoker != nil && a.Hold() {
		s.revoker.Lists.Use(revoke.Signing{Certificate: a.Certificate, Key: a, Last: st.configured.Active.IsEphemeral()}, a.Release)
	}
}

// openForList opens the key of an authority that signs no certificates any more.
func (s *Service) openForList(ctx context.Context, id string) (revoke.Signing, func(), error) {
	c := s.state().config.CA
	for _, named := range c.All() {
		cert, key, err := authority.OpenKey(ctx, named.Config, s.kmsOptions())
		switch {
		case cert == nil || revoke.ID(cert) != id:
			kms.Close(key)
		case err != nil:
			return revoke.Signing{}, nil, err
		default:
			return revoke.Signing{Certificate: cert, Key: key}, func() { kms.Close(key) }, nil
		}
	}
	return revoke.Signing{}, nil, errors.New("its key isn't in the configuration, or was never stored (mode ephemeral)")
}

// revocation is what the server revokes with: nothing where there is none.
func (s *Service) revocation() server.Revocation {
	if s.revoker == nil {
		return nil
	}
	return s.revoker
}

// withRevocations adds the paths of lists and feeds to others.
func (s *Service) withRevocations(mounts map[string]http.Handler) map[string]http.Handler {
	if s.revoker == nil {
		return mounts
	}
	all := s.revoker.Mounts()
	maps.Copy(all, mounts)
	return all
}
