package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Step is one step of reaching an exact issuer, as [Verifier.Probe] tried it.
type Step struct {
	Issuer string        // its URL
	Name   string        // discovery or keys
	Detail string        // what was found; empty after a failure
	Took   time.Duration // by the verifier's clock
	Err    error         // for the operator; it may quote what the issuer answered
}

// maxProbes is how many issuers are asked at once.
const maxProbes = 8

// Probe asks every exact issuer for its discovery document and its keys, as a
// Verifier in use would, and keeps nothing of the answers. The steps are in the
// configuration's order; after one that failed there is no further of its issuer.
func (v *Verifier) Probe(ctx context.Context) []Step {
	found := make([][]Step, len(v.issuers))
	slots := make(chan struct{}, maxProbes)
	var wg sync.WaitGroup
	for n, i := range v.issuers {
		if i.ring == nil {
			continue // which issuers a pattern will match isn't known
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			found[n] = i.probe(ctx, v.now)
		})
	}
	wg.Wait()
	var all []Step
	for _, steps := range found {
		all = append(all, steps...)
	}
	return all
}

func (i *issuer) probe(ctx context.Context, now func() time.Time) []Step {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	var steps []Step
	try := func(name string, do func() (string, error)) bool {
		began := now()
		detail, err := do()
		if err != nil {
			err = brief(err)
		}
		steps = append(steps, Step{Issuer: i.config.URL, Name: name, Detail: detail, Took: now().Sub(began), Err: err})
		return err == nil
	}
	if i.fetcher != nil && i.config.JWKSURL == "" && !try("discovery", func() (string, error) {
		return i.fetcher.discover(ctx, i.config.URL)
	}) {
		return steps
	}
	try("keys", func() (string, error) {
		from := source(file{i.config.JWKSFile})
		if i.fetcher != nil {
			from = newRemote(i.fetcher, i.config.URL, i.config.JWKSURL, now)
		}
		got, err := from.fetch(ctx)
		if err != nil {
			return "", err
		}
		return strconv.Itoa(len(got.keys)) + " usable", nil
	})
	return steps
}

// Category is the kind of failure of the last fetch in one or two words out of
// a closed list, fit for anybody to read; empty when it did not fail.
func (s IssuerStatus) Category() string {
	var (
		name        *net.DNSError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		authority   x509.UnknownAuthorityError
		network     *net.OpError
		address     *url.Error
	)
	switch err := s.Err; {
	case err == nil:
		return ""
	case errors.Is(err, errAddress):
		return "address refused"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &address) && address.Timeout():
		return "timeout"
	case errors.As(err, &name):
		return "name not found"
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &authority):
		return "TLS"
	case errors.As(err, &network):
		return "no connection"
	default:
		return "bad answer"
	}
}
