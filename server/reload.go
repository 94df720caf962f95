package server

import (
	"net/http"
	"net/netip"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// terms are the part of the configuration that can change while the Server runs.
// They are replaced whole.
type terms struct {
	tokenBytes int
	limiters   *limiters
	proxies    proxies
}

// newTerms makes what c, which was checked, says; before is what it follows, or nil.
func newTerms(c Config, before *terms) *terms {
	l := &terms{tokenBytes: c.Limits.TokenBytes, proxies: make([]netip.Prefix, 0, len(c.TrustedProxies))}
	var used *limiters
	if before != nil {
		used = before.limiters
	}
	l.limiters = newLimiters(c.RateLimits, used)
	for _, text := range c.TrustedProxies {
		if p, err := parseNetwork(text); err == nil {
			l.proxies = append(l.proxies, p)
		}
	}
	return l
}

// Change is what a running Server can take in place of what it has. Of the
// configuration that is: tls (other files, not whether), rate_limits,
// trusted_proxies, limits.issuances and limits.token_bytes. The rest is bound
// when the Server starts, and has no effect here.
type Change struct {
	Config    Config
	Documents Documents
	// Mounts and Posts take the place of those in Options; where both are nil, those stay.
	Mounts, Posts map[string]http.Handler
}

// Publish puts other documents in the place of those that are served, and leaves
// everything else as it is.
func (s *Server) Publish(d Documents) { s.routes.publish(d) }

// Prepare checks c and reads its certificate. The function that it returns puts
// c in force, all at once, and can't fail; until it is called nothing has
// changed. The error is a *setting.FaultError.
func (s *Server) Prepare(c Change) (apply func(), err error) {
	var f setting.Faults
	c.Config.Check("server", &f)
	var fresh *certificates
	if current := s.listeners.certificates; current != nil && f.Len() == 0 {
		if fresh, err = loadCertificates(c.Config.TLS, s.logger); err != nil {
			f.Add("server.tls", "%v", err)
		}
	}
	var fresher *mounts
	if c.Mounts != nil || c.Posts != nil {
		if fresher, err = s.newMounts(s.routes, c.Mounts, c.Posts); err != nil {
			f.Add("server", "%v", err)
		}
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	return func() {
		s.terms.Store(newTerms(c.Config, s.terms.Load()))
		s.gate.limit(c.Config.Limits.Issuances)
		s.routes.publish(c.Documents)
		if fresher != nil {
			s.routes.mount(fresher)
		}
		if current := s.listeners.certificates; current != nil && fresh != nil {
			current.become(fresh)
		}
	}, nil
}
