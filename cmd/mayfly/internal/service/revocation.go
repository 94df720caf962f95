package service

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// loadRevocation opens the key of the statements' log, and refuses authorities whose
// keys can't sign lists.
func (l *Components) loadRevocation(ctx context.Context, c revoke.Config, d Dependencies, f *setting.Faults) {
	if !c.Enabled() {
		return
	}
	var err error
	if l.revocationKey, err = d.openKey(ctx, c.Key, c.Passphrase, c.Access); err != nil {
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
	o := revoke.Options{
		Config: first.config.Revocation, Signer: s.loaded.revocationKey, URL: s.PublicURL(), Metrics: s.Registry,
		Issuers:     func() []*x509.Certificate { return issuingCertificates(s.issuer.Authorities()) },
		ListOptions: revoke.ListOptions{Now: s.Now, Logger: s.Logger, Open: s.openForList, Changed: s.publishLists},
	}
	if s.index != nil {
		o.Index = issued{s.index}
	}
	s.revoker, err = revoke.Open(ctx, o)
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
	if a := st.authorities.Active; s.revoker != nil && !a.IsEphemeral() && a.Hold() {
		s.revoker.Lists.Use(revoke.Signing{Certificate: a.Certificate, Key: a, Last: st.configured.Active.IsEphemeral()}, a.Release)
	}
}

// openForList opens the key of an authority that signs no certificates any more.
func (s *Service) openForList(ctx context.Context, id string) (revoke.Signing, func(), error) {
	c := s.state().config.CA
	var unread []error
	for _, named := range c.All() {
		cert, key, err := authority.OpenKey(ctx, named.Config, s.kmsOptions())
		switch {
		case cert == nil || revoke.ID(cert) != id:
			kms.Close(key)
			if cert == nil {
				unread = append(unread, err)
			}
		case err != nil:
			return revoke.Signing{}, nil, err
		default:
			return revoke.Signing{Certificate: cert, Key: key}, func() { kms.Close(key) }, nil
		}
	}
	return revoke.Signing{}, nil, errors.Join(append(unread, errors.New("its key isn't in the configuration, or was never stored (mode ephemeral)"))...)
}

// publishLists has TUF's clients get the lists too, where there is a repository.
func (s *Service) publishLists(ctx context.Context, number uint64, lists map[string][]byte) {
	if s.tuf == nil {
		return
	}
	if err := s.tuf.PublishLists(ctx, tuf.Lists{Number: int64(number), Files: lists}); err != nil { // #nosec G115 -- a count
		s.Logger.LogAttrs(ctx, slog.LevelError, "the lists of revoked certificates aren't in the TUF repository yet", slog.Any("error", err))
	}
}

// issued finds what is to be revoked in the index.
type issued struct{ *index.Index }

// Issued reads the index page by page.
func (i issued) Issued(ctx context.Context, q revoke.Query, most int) (all []revoke.Certificate, err error) {
	search := index.Query{From: q.From, To: q.Until}
	for _, text := range q.Where {
		f, err := index.ParseFilter(text)
		if err != nil {
			return nil, err
		}
		search.Filters = append(search.Filters, f)
	}
	for {
		page, err := i.Search(ctx, search)
		if err != nil {
			return nil, err
		}
		for _, c := range page.Certificates {
			if len(all) == most {
				return all, nil
			}
			all = append(all, revoke.Certificate{
				Authority: c.Fields["authority"], Serial: c.Fields["serial"], NotBefore: c.NotBefore,
				Issuer: c.Fields["issuer"], SAN: c.Fields["san"], SANType: c.Fields["san_type"],
			})
		}
		if search.Cursor = page.Next; page.Next == "" {
			return all, nil
		}
	}
}

// indexRevocations has the index know what is revoked, from the first statement on,
// until ctx ends. Statements are final, and noting one again changes nothing.
func (s *Service) indexRevocations(ctx context.Context) error {
	const batch = 1000
	failing := false
	for next := uint64(0); ctx.Err() == nil; {
		size, grown := s.revoker.Log.Grown()
		var some []index.Revocation
		for next+uint64(len(some)) < size && len(some) < batch {
			line, err := s.revoker.Log.Line(next + uint64(len(some)))
			var of *revoke.Statement
			if err == nil {
				of, err = revoke.ParseStatement(line)
			}
			if err != nil {
				s.Logger.LogAttrs(ctx, slog.LevelError, "a statement of revocation can't be read for the index", slog.Any("error", err))
				return nil
			}
			some = append(some, index.Revocation{Serial: of.Serial, Authority: of.Authority, Reason: string(of.Reason), At: of.Time})
		}
		if err := s.index.SetRevoked(ctx, some); err != nil {
			if !failing {
				s.Logger.LogAttrs(ctx, slog.LevelWarn, "the index doesn't know of the newest revocations; it is told again", slog.Any("error", err))
			}
			failing = true
			_ = wait.For(ctx, storeInterval)
			continue
		}
		failing = false
		if next += uint64(len(some)); next == size {
			select {
			case <-ctx.Done():
			case <-grown:
			}
		}
	}
	return nil
}
