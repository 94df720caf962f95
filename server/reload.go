package server

import (
	"net/http"
	"net/netip"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// liveSettings are the part of the configuration that can change while the Server
// runs. They are replaced whole.
type liveSettings struct {
	tokenBytes int
	limiters   *limiters
	proxies    proxies
}

// newLiveSettings makes what c, which was checked, says. used are the limiters
// that callers keep what they have used of, or nil.
func newLiveSettings(c Config, used *limiters) *liveSettings {
	l := &liveSettings{
		tokenBytes: c.Limits.TokenBytes, limiters: newLimiters(c.RateLimits, used), proxies: make([]netip.Prefix, 0, len(c.TrustedProxies)),
	}
	for _, text := range c.TrustedProxies {
		if p, err := parseNetwork(text); err == nil {
			l.proxies = append(l.proxies, p)
		}
	}
	return l
}

// Reload is what a running Server can take in place of what it has. Of the
// configuration that is: tls (other files, not whether), rate_limits,
// trusted_proxies, limits.issuances, limits.timestamps and limits.token_bytes. The rest is bound
// when the Server starts, and has no effect here.
type Reload struct {
	Config    Config
	Documents Documents
	// Mounts, Posts and Timestamps take the place of those in Options; where both maps
	// are nil, those stay.
	Mounts, Posts map[string]http.Handler
	Timestamps    Timestamps
}

// Publish puts other documents in the place of those that are served, and leaves
// everything else as it is.
func (s *Server) Publish(d Documents) {
	next := s.routes.Load().served
	next.Documents = orElse(d, next.Documents)
	if t, err := s.newRoutes(next); err == nil { // the rest was taken before
		s.routes.Store(t)
	}
}

// Prepare checks next and reads its certificate, and changes nothing. On an error,
// which is a *setting.FaultError, there is nothing to undo. Otherwise the caller
// calls one of the two functions, once, and publishes nothing before: commit puts next in force and can't fail,
// rollback gives next up. Requests in flight go on.
func (s *Server) Prepare(next Reload) (commit, rollback func(), err error) {
	var f setting.Faults
	next.Config.Check("server", &f)
	var pair *certificates
	current := s.listeners.certificates
	if current != nil && f.Len() == 0 {
		if pair, err = loadCertificates(next.Config.TLS, s.with.Logger); err != nil {
			f.Add("server.tls", "%v", err)
		}
	}
	before := s.routes.Load().served
	next.Documents = orElse(next.Documents, before.Documents)
	if next.Mounts == nil && next.Posts == nil {
		next.Mounts, next.Posts, next.Timestamps = before.Mounts, before.Posts, before.Timestamps
	}
	t, err := s.newRoutes(next)
	f.When(err != nil, "server", "%v", err)
	if err := f.Err(); err != nil {
		return nil, nil, err
	}
	commit = func() {
		s.live.Store(newLiveSettings(next.Config, s.live.Load().limiters))
		s.inFlight.set(next.Config.Limits.Issuances)
		s.stamping.set(next.Config.Limits.Timestamps)
		s.places.set(next.Config.Limits.Issuances + waitingPlaces)
		s.routes.Store(t)
		if pair != nil {
			current.become(pair)
		}
	}
	return commit, func() {}, nil // nothing was opened that would have to be closed
}
