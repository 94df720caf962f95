package service

import (
	"context"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/server"
)

// render writes what clients need to trust and to find this CA: st's issuers, all
// authorities that are listed, and all logs.
func (s *Service) render(st *state) (trustroot.Documents, error) {
	start := st.authorities.Trusted[0].Start
	in := trustroot.Input{CA: []trustroot.Service{{URL: s.PublicURL(), Operator: s.operator(), Start: start}}}
	for _, l := range st.authorities.Trusted {
		in.Authorities = append(in.Authorities, trustroot.Authority{Chain: l.Chain, URL: s.PublicURL(), Start: l.Start, End: l.End})
	}
	in.Logs = s.logDescriptions(st.logs)
	for _, i := range st.config.Issuers {
		if i.URL != "" && i.Type == identity.TypeEmail { // where a person can log in
			in.OIDC = append(in.OIDC, trustroot.Service{URL: i.URL, Operator: i.URL, Start: start})
		}
	}
	return trustroot.Render(in)
}

// prepareDocuments renders the documents of the next state.
func (s *Service) prepareDocuments(_ context.Context, next *state) (_ func(context.Context), _ func(), err error) {
	next.documents, err = s.render(next)
	return nil, nil, err
}

// prepareServer has the server serve what next has, with its settings.
func (s *Service) prepareServer(_ context.Context, next *state) (func(context.Context), func(), error) {
	commit, rollback, err := s.server.Prepare(server.Reload{
		Config: next.config.Server, Documents: server.Documents(next.documents), Mounts: next.logs.mounts, Posts: next.logs.posts,
	})
	if err != nil {
		return nil, nil, err
	}
	return func(context.Context) { commit() }, rollback, nil
}

// relist puts changed issuing certificates of the mode ephemeral in force: what
// clients read first, then who signs.
func (s *Service) relist(context.Context) (err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	next := *s.state()
	next.authorities = s.withEphemeral(next.configured)
	if next.documents, err = s.render(&next); err != nil {
		return err
	}
	s.server.Publish(server.Documents(next.documents))
	s.issuer.Use(next.authorities)
	s.current.Store(&next)
	return nil
}
