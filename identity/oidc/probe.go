package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ProbeResult is how one request on the way to an issuer's keys went.
type ProbeResult struct {
	Issuer string        // its URL
	Name   string        // discovery or keys
	Detail string        // what was found; empty after a failure
	Took   time.Duration // by the clock of [Options]
	Err    error         // for the operator; it may quote what the issuer answered
}

// Probe asks the configured issuer for its discovery document and its keys, as
// a fetch would, and keeps nothing of the answers. After a result that failed
// there is no further one; for a pattern, whose issuers aren't known, there is none.
func (k *Keys) Probe(ctx context.Context) []ProbeResult {
	if k.exact == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	var results []ProbeResult
	ask := func(name string, do func() (string, error)) bool {
		began := k.options.Now()
		detail, err := do()
		results = append(results, ProbeResult{Issuer: k.config.URL, Name: name, Detail: detail, Took: k.options.Now().Sub(began), Err: truncated(err)})
		return err == nil
	}
	from := k.exact.source
	if k.fetcher != nil {
		if k.config.JWKSURL == "" && !ask("discovery", func() (string, error) { return k.fetcher.discover(ctx, k.config.URL) }) {
			return results
		}
		from = k.server(k.config.URL).fetch
	}
	ask("keys", func() (string, error) {
		got, err := from(ctx)
		if err != nil {
			return "", err
		}
		detail := strconv.Itoa(len(got.keys)) + " usable"
		if len(got.passedOver) > 0 {
			detail += "; passed over: " + DescribePassedOver(got.passedOver)
		}
		return detail, nil
	})
	return results
}

// maxNamed is how many keys that are passed over are named.
const maxNamed = 5

// DescribePassedOver is [Status.PassedOver] on one line, a few of them.
func DescribePassedOver(keys []string) string {
	named := strings.Join(keys[:min(len(keys), maxNamed)], "; ")
	if more := len(keys) - maxNamed; more > 0 {
		named += fmt.Sprintf("; and %d more", more)
	}
	return named
}

// Category is the kind of failure of the last fetch in one or two words out of
// a closed list, fit for anybody to read; empty when it did not fail.
func (s Status) Category() string {
	err := s.Err
	address, _ := errors.AsType[*url.Error](err)
	switch {
	case err == nil:
		return ""
	case is[*unusableError](err):
		return "no usable key"
	case errors.Is(err, errAddress):
		return "address refused"
	case errors.Is(err, context.DeadlineExceeded), address != nil && address.Timeout():
		return "timeout"
	case is[*net.DNSError](err):
		return "name not found"
	case is[*tls.CertificateVerificationError](err), is[tls.RecordHeaderError](err), is[x509.UnknownAuthorityError](err):
		return "TLS"
	case is[*net.OpError](err):
		return "no connection"
	default:
		return "bad answer"
	}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
