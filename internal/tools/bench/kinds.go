package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// kind is an answer whose cryptography is another than most figures'.
type kind struct {
	name      string
	authority kms.Algorithm // of the issuing key; empty: P-256, as everywhere
	request   request
	timestamp bool
	bare      func(bareFigures) time.Duration
}

// kinds are those of the report.
var kinds = []kind{
	{name: "Token with ES256", request: request{token: jose.ES256}, bare: func(b bareFigures) time.Duration { return b.issuance(p256Verify, p256Sign) }},
	{name: "Certificate request (CSR)", request: request{token: jose.RS256, csr: true}, bare: bareFigures.usual},
	{name: "Authority with P-384", authority: kms.ECDSAP384, request: usual, bare: func(b bareFigures) time.Duration { return b.issuance(rs256Verify, p384Sign) }},
	{name: "Authority with RSA-3072", authority: kms.RSA3072, request: usual, bare: func(b bareFigures) time.Duration { return b.issuance(rs256Verify, rsa3072Sign) }},
	{name: "Timestamp, P-256", request: usual, timestamp: true, bare: func(b bareFigures) time.Duration { return b[p256Sign] }},
}

// measureKinds measures each of them over REST.
func measureKinds(ctx context.Context, r *report, dir string) error {
	for i, k := range kinds {
		r.step("%s, REST, %d callers", k.name, r.plan.callers)
		f, err := kindRun(ctx, r.plan, k, filepath.Join(dir, fmt.Sprintf("kind-%d", i)))
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		r.kinds = append(r.kinds, f)
	}
	return nil
}

func kindRun(ctx context.Context, p plan, k kind, dir string) (figure, error) {
	if err := p.prepare(ctx, dir, true); err != nil {
		return figure{}, err
	}
	if k.authority != "" {
		if err := p.otherAuthority(ctx, dir, k.authority); err != nil {
			return figure{}, err
		}
	}
	s, err := p.launch(ctx, dir)
	if err != nil {
		return figure{}, err
	}
	defer s.stop()
	l, err := p.newLoad(ctx, s.endpoints, p.callers, k.request)
	if err != nil {
		return figure{}, err
	}
	defer l.close()
	ask := l.rest
	if k.timestamp {
		ask = l.timestamp
	}
	if _, err := l.measure(ctx, s.process(), ask, p.callers, p.each/10); err != nil { // warm-up
		return figure{}, err
	}
	return l.measure(ctx, s.process(), ask, p.callers, p.each/2)
}

// otherAuthority gives the CA in dir an issuing key of another kind.
func (p plan) otherAuthority(ctx context.Context, dir string, algorithm kms.Algorithm) error {
	other := filepath.Join(dir, "other")
	out, err := exec.CommandContext(ctx, p.binary, "init", "--dir", other, "--algorithm", string(algorithm)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mayfly init: %w: %s", err, out)
	}
	return changeAuthority(dir, document{
		"chain": filepath.Join(other, "authority", "chain.pem"), "key": "file:" + filepath.Join(other, "authority", "issuing.key.pem"),
	})
}

// kindsTable is the table of them.
func (r *report) kindsTable() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
## By algorithm

Over REST, with %d callers and the embedded log, each beside its own bare cryptography.

| | A second | Latency, median / p99 | CPU of each | Bare cryptography | CPU over bare |
|---|---|---|---|---|---|
`, r.plan.callers)
	line := func(name string, f figure, bare time.Duration) {
		fmt.Fprintf(&b, "| %s | %.0f | %s / %s | %s | %s | %s |\n", name, f.perSecond(), micros(f.p50), micros(f.p99), micros(f.cpu), micros(bare), ratio(f.cpu, bare))
	}
	line("Token with RS256, key and proof, authority with P-256", r.runs[runs[0]], r.bare.usual())
	for i, k := range kinds {
		line(k.name, r.kinds[i], k.bare(r.bare))
	}
	return b.String()
}
