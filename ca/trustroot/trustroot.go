// Package trustroot has the trust history, and writes from it the documents that
// tell Sigstore clients whom to trust and where to ask. It reads a trusted root
// back too. How clients differ in what they accept decides most of what is written
// here; each such rule has a test.
package trustroot

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// Media types of the documents. The trusted root's is the one form that all
// clients take: sigstore-go refuses version 0.2, sigstore-python knows only 0.1.
const (
	TrustedRootMediaType   = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
	SigningConfigMediaType = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
	TrustConfigMediaType   = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
)

// History is all that clients are to trust, past, present and to come, each with
// its window: what was signed in a window is verified for ever, so an entry ends
// and doesn't go. Every document is rendered from it, and from nothing else.
type History struct {
	// Authorities are the certificate authorities.
	Authorities []Authority
	// CTLogs are the logs that SCTs come from.
	CTLogs []ctlog.Description
	// TimestampAuthorities are ours and others'.
	TimestampAuthorities []Authority
	// TransparencyLogs are Rekor logs, which record signatures.
	TransparencyLogs []TransparencyLog
	// Issuers are where a person can log in. Signing clients are sent there;
	// verifiers know nothing of them.
	Issuers []Service
}

// Authority is a certificate authority or a timestamp authority.
type Authority struct {
	// Chain goes from the certificate that issues or stamps to the self-signed root.
	Chain []*x509.Certificate
	// URL is where it answers. Without one, clients only verify.
	URL string
	// Operator is who runs it, for signing clients.
	Operator string
	// Start and End bound the certificates and timestamps that are trusted, both
	// included; a zero End is open. Start is not after the first of them.
	Start, End time.Time
}

// Holds reports whether what was issued at t falls into the authority's time.
func (a *Authority) Holds(t time.Time) bool {
	return !t.Before(a.Start) && (a.End.IsZero() || !t.After(a.End))
}

// Service is something that a signing client calls.
type Service struct {
	URL        string
	Operator   string
	Start, End time.Time
	// APIVersion is the major version; zero is 1.
	APIVersion uint32
}

// TransparencyLog is a Rekor log.
type TransparencyLog struct {
	ctlog.Description // its ID is by which entries name the log: see [TransparencyLog.SetID]
	// APIVersion is 1 or 2; zero is 1.
	APIVersion uint32
	// Origin is the host that names the log in its checkpoints, where it isn't the
	// URL's. Clients take it from the URL that the trusted root has.
	Origin string
}

// Documents are the rendered documents: each one line of JSON with a final new
// line (gh reads JSON lines and drops an unterminated one), and the same bytes
// for the same history.
type Documents struct {
	TrustedRoot, SigningConfig, TrustConfig []byte
}

// services are what signing clients call, each in ascending order of start. The CA
// itself doesn't end with its authorities: others follow them.
func (h *History) services() (ca, oidc, rekor, tsa []Service) {
	for _, a := range h.Authorities {
		ca = append(ca, Service{URL: a.URL, Operator: a.Operator, Start: a.Start})
	}
	for _, l := range h.TransparencyLogs {
		rekor = append(rekor, Service{URL: l.URL, Operator: l.Operator, Start: l.Start, End: l.End, APIVersion: l.APIVersion})
	}
	for _, a := range h.TimestampAuthorities {
		tsa = append(tsa, Service{URL: a.URL, Operator: a.Operator, Start: a.Start, End: a.End})
	}
	return merged(ca), merged(h.Issuers), merged(rekor), merged(tsa)
}

// merged is one service for each URL and version, from its first start to its last
// end: an authority's key changes and its URL stays. What has no URL isn't called.
func merged(all []Service) []Service {
	var distinct []Service
	for _, s := range all {
		i := slices.IndexFunc(distinct, func(d Service) bool { return d.URL == s.URL && d.APIVersion == s.APIVersion })
		switch {
		case s.URL == "":
		case i < 0:
			distinct = append(distinct, s)
		default:
			d := &distinct[i]
			if s.Start.Before(d.Start) {
				d.Start = s.Start
			}
			if s.End.IsZero() || !d.End.IsZero() && s.End.After(d.End) {
				d.End, d.Operator = s.End, s.Operator
			}
		}
	}
	return sorted(distinct, func(s Service) time.Time { return s.Start })
}

// ordered is h as documents list it: each list in ascending order of start, and a
// log that has none from the first authority's on, since clients want one and
// nothing was logged before.
func (h History) ordered() History {
	h.Authorities = sorted(h.Authorities, startOf)
	h.TimestampAuthorities = sorted(h.TimestampAuthorities, startOf)
	h.CTLogs, h.TransparencyLogs = slices.Clone(h.CTLogs), slices.Clone(h.TransparencyLogs)
	if len(h.Authorities) > 0 {
		for i := range h.CTLogs {
			begin(&h.CTLogs[i], h.Authorities[0].Start)
		}
		for i := range h.TransparencyLogs {
			begin(&h.TransparencyLogs[i].Description, h.Authorities[0].Start)
		}
	}
	h.CTLogs = sorted(h.CTLogs, func(l ctlog.Description) time.Time { return l.Start })
	h.TransparencyLogs = sorted(h.TransparencyLogs, func(l TransparencyLog) time.Time { return l.Start })
	return h
}

func startOf(a Authority) time.Time { return a.Start }

func begin(l *ctlog.Description, first time.Time) {
	if l.Start.IsZero() {
		l.Start = first
	}
}

// sorted is a copy in ascending order.
func sorted[E any](all []E, start func(E) time.Time) []E {
	return slices.SortedStableFunc(slices.Values(all), func(a, b E) int { return start(a).Compare(start(b)) })
}
