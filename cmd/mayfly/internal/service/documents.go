package service

import (
	"context"
	"log/slog"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
)

// history is all that clients are to trust in st: every document is rendered from it.
func (s *Service) history(st *state) (trustroot.History, error) {
	h := trustroot.History{
		CTLogs:               s.logDescriptions(st.logs),
		TimestampAuthorities: s.timestampAuthorities(st),
		TransparencyLogs:     st.beside.TransparencyLogs,
	}
	for _, l := range st.authorities.Trusted {
		certs, err := trustroot.ParseChain(l.Chain)
		if err != nil {
			return h, err
		}
		h.Authorities = append(h.Authorities, trustroot.Authority{Chain: certs, URL: s.PublicURL(), Operator: s.operator(st.config), Start: l.Start, End: l.End})
	}
	for _, i := range st.config.Issuers {
		if i.URL != "" && i.Type == identity.TypeEmail { // where a person can log in
			h.Issuers = append(h.Issuers, trustroot.Service{URL: i.URL, Operator: st.config.Trust.Operator("", i.URL), Start: st.authorities.Trusted[0].Start})
		}
	}
	return h.Excise(st.config.Trust.Excised), nil
}

// render writes what clients need to trust and to find this CA.
func (s *Service) render(st *state) (h trustroot.History, d trustroot.Documents, err error) {
	if h, err = s.history(st); err == nil {
		d, err = trustroot.Render(h)
	}
	return h, d, err
}

// prepareDocuments renders the documents of the next state, and warns of what
// clients lose with it.
func (s *Service) prepareDocuments(_ context.Context, next *state) (func(context.Context), func(), error) {
	var f setting.Faults
	if next.beside = next.config.Trust.Read("trust", &f); f.Len() > 0 {
		return nil, nil, f.Err()
	}
	before, err := s.history(s.state())
	if err != nil {
		return nil, nil, err
	}
	h, d, err := s.render(next)
	if err != nil {
		return nil, nil, err
	}
	next.documents = d
	return func(ctx context.Context) {
		for _, lost := range before.Lost(h, s.Now()) {
			s.Logger.LogAttrs(ctx, slog.LevelWarn, "signatures that were good can't be verified any more; list what is missing again, with an end", slog.String("lost", lost))
		}
	}, nil, nil
}

// served is what the server serves of st.
func (s *Service) served(st *state) server.Served {
	all := server.Served{Documents: st.documents, Mounts: s.mounts(st.logs), Posts: st.logs.posts}
	if st.timestamps != nil {
		all.Timestamps = s.timestamps
	}
	return all
}

// prepareServer has the server serve what next has, with its settings.
func (s *Service) prepareServer(_ context.Context, next *state) (func(context.Context), func(), error) {
	commit, err := s.server.Prepare(next.config.Server, s.served(next))
	if err != nil {
		return nil, nil, err
	}
	return func(context.Context) { commit() }, nil, nil
}

// relist puts changed issuing certificates of the mode ephemeral in force: what
// clients read first, then who signs.
func (s *Service) relist(context.Context) (err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	next := *s.state()
	next.authorities = s.withEphemeral(next.configured)
	if _, next.documents, err = s.render(&next); err != nil {
		return err
	}
	s.server.Publish(next.documents)
	s.useForLists(&next)
	s.issuer.Use(next.authorities)
	s.current.Store(&next)
	return nil
}
