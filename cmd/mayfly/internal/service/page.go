package service

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/server"
	"github.com/mayfly-ca/mayfly/server/login"
	"github.com/mayfly-ca/mayfly/server/page"
)

// What asking the provider, at which people sign in to the page, may take: each who comes makes us ask.
const (
	providerTime        = 10 * time.Second // of a request
	providerConnections = 8
	providerHead        = 64 << 10 // bytes of an answer's header
)

// newPage makes the page for people, where the configuration has one.
func (s *Service) newPage(first *state) (server.Page, error) {
	c := first.config.Page
	if !c.Enabled() {
		return nil, nil //nolint:nilnil // then there is none
	}
	ca := shown{s}
	o := page.Options{Config: c, PublicURL: s.PublicURL(), CA: ca, Timeout: first.config.Server.RequestTimeout, Now: s.Now, Logger: s.Logger}
	if s.index != nil {
		o.Index, o.Entries = s.index, s.follower
	}
	if c.Access == page.Login {
		client, err := providerClient(first)
		if err != nil {
			return nil, err
		}
		o.Login, err = login.New(login.Options{
			Config: c.Login, PublicURL: o.PublicURL, Rights: s.loaded.access, Rules: ca.rules, Client: client, Now: s.Now, Logger: s.Logger,
		})
		if err != nil {
			return nil, err
		}
	}
	return page.New(o), nil
}

// providerClient reaches the provider as the issuer of the same URL is reached.
func providerClient(first *state) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone() // net/http's own
	transport.MaxConnsPerHost, transport.MaxResponseHeaderBytes = providerConnections, providerHead
	for _, i := range first.config.Issuers {
		if i.URL != first.config.Page.Login.Issuer || i.CAFile == "" {
			continue
		}
		pool, err := pemfile.PoolFile(i.CAFile)
		if err != nil {
			return nil, fmt.Errorf("page: the provider's ca_file: %w", err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport, Timeout: providerTime}, nil
}

// shown is the service as the page sees it.
type shown struct{ *Service }

// Trust is what clients are told.
func (s shown) Trust() (h trustroot.History, root []byte, err error) {
	st := s.state()
	if st.signed != nil {
		root = st.signed.FirstRoot()
	}
	h, err = s.history(st)
	return h, root, err
}

// Health is how the service is now.
func (s shown) Health(ctx context.Context) page.Health {
	h := page.Health{Dependencies: s.server.Standings(ctx)}
	if s.follower != nil {
		h.Logs = s.follower.Status()
	}
	expires := func(what string, at time.Time) {
		if !at.IsZero() {
			h.Expiries = append(h.Expiries, page.Expiry{What: what, At: at})
		}
	}
	st := s.state()
	for _, a := range st.authorities.Trusted {
		if !a.Renewed && (a.End.IsZero() || a.End.After(s.Now())) {
			expires("authority "+a.Name, a.NotAfter)
		}
	}
	if t := st.timestamps; t != nil {
		expires("timestamp authority", t.Chain[0].NotAfter)
	}
	for _, l := range s.logDescriptions(st.logs) {
		if l.End.After(s.Now()) {
			expires("log "+l.URL, l.End)
		}
	}
	if st.signed != nil {
		for _, r := range st.signed.Roles() { // those that people sign: the others are signed each day
			expires("TUF "+r.Name, r.Expires)
		}
	}
	slices.SortFunc(h.Expiries, func(a, b page.Expiry) int { return a.At.Compare(b.At) })
	return h
}

// refusalBytes is how much of the record of refusals the page reads, from its end.
const refusalBytes = 256 << 10

// Refusals are the last ones on record.
func (s shown) Refusals(context.Context) ([]audit.Event, error) {
	return audit.LastRefusals(string(s.started.Audit.Path), refusalBytes)
}

// rules are those of who may read.
func (s shown) rules() string {
	c := s.state().config
	text, err := json.Marshal([]any{c.Access, c.Deny})
	if err != nil { // of texts it doesn't fail; were it to, nobody's session would last
		return s.Now().String()
	}
	return string(text)
}
