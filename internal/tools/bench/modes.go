package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// modeFigures is a run of a CA in one mode, over a KMS that takes its time.
type modeFigures struct {
	mode  string
	calls float64 // to the KMS, a certificate, once the service is ready
	figure
}

// measureModes runs a CA whose key is in a file, one with a sealed key and one
// with ephemeral issuing certificates, each with the embedded log.
func measureModes(ctx context.Context, r *report, dir string) error {
	for _, mode := range []string{"file", "sealed", "ephemeral"} {
		r.step("mode %s, REST, %d callers", mode, r.plan.callers)
		f, err := modeRun(ctx, r.plan, mode, filepath.Join(dir, "mode-"+mode))
		if err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
		r.modes = append(r.modes, f)
	}
	return nil
}

func modeRun(ctx context.Context, p plan, mode, dir string) (modeFigures, error) {
	f := modeFigures{mode: mode}
	if err := p.prepare(ctx, dir, logged); err != nil {
		return f, err
	}
	t := &outside{dir: dir}
	defer t.close()
	calls := func() int { return 0 }
	var err error
	switch mode {
	case "sealed":
		calls, err = sealed(ctx, t, dir)
	case "ephemeral":
		calls, err = ephemeral(t, dir)
	}
	if err != nil {
		return f, err
	}
	s, err := p.launch(ctx, dir)
	if err != nil {
		return f, err
	}
	defer s.stop()
	l, err := p.newLoad(ctx, s.endpoints, p.callers, usual)
	if err != nil {
		return f, err
	}
	defer l.close()
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, p.each/10); err != nil { // warm-up
		return f, err
	}
	before := calls()
	if f.figure, err = l.measure(ctx, s.process(), l.rest, p.callers, p.each); err != nil {
		return f, err
	}
	f.calls = float64(calls()-before) / float64(p.each)
	return f, nil
}

// sealed gives the CA in dir a sealed issuing key, and counts the calls to the
// KMS that seals it.
func sealed(ctx context.Context, t *outside, dir string) (calls func() int, err error) {
	vault := kmstest.Sealings["vault"](t)
	o := vault.Options
	o.SealedKey = setting.Path(filepath.Join(dir, "issuing.json"))
	if _, err := keystore.Generate(ctx, vault.Ref, kms.ECDSAP256, o); err != nil {
		return nil, err
	}
	issuing, err := keystore.Open(ctx, vault.Ref, o)
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, "authority", "root.key.pem"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "authority", "root.pem"))
	if err != nil {
		return nil, err
	}
	root, err := chain.Parse(text)
	if err != nil {
		return nil, err
	}
	c, err := cacert.New(root, cacert.Profile{CommonName: "Sealed"}, time.Now())
	if err != nil {
		return nil, err
	}
	if err := c.For(issuing.Public()); err != nil {
		return nil, err
	}
	made, err := c.Sign(cacert.Key{Signer: key, Ref: "the root's"})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "sealed.chain.pem")
	if err := os.WriteFile(path, chain.PEM(made.Chain), 0o600); err != nil {
		return nil, err
	}
	if err := os.Setenv("VAULT_TOKEN", o.Getenv("VAULT_TOKEN")); err != nil { // for the server
		return nil, err
	}
	return func() int { return vault.Count("") }, changeAuthority(dir, document{
		"mode": "sealed", "chain": path, "sealed_key": string(o.SealedKey),
		"key": vault.Ref, "credential": "env", "endpoint": o.Access.Endpoint,
	})
}

// ephemeral has the root of the CA in dir, its key in a KMS, certify issuing CAs,
// and counts that KMS's signatures.
func ephemeral(t *outside, dir string) (calls func() int, err error) {
	key, err := readKey(filepath.Join(dir, "authority", "root.key.pem"))
	if err != nil {
		return nil, err
	}
	vault := kmstest.NewVault(t, key)
	if err := os.Setenv("VAULT_TOKEN", kmstest.VaultToken); err != nil { // for the server
		return nil, err
	}
	return func() int { return vault.Count(vault.Sign) }, changeAuthority(dir, document{
		"mode": "ephemeral", "chain": filepath.Join(dir, "authority", "root.pem"),
		"key": vault.Ref, "credential": "env", "endpoint": vault.URL,
		"ephemeral": document{"history": filepath.Join(dir, "history"), "accept_unlisted": true},
	})
}

// modesTable is the table of modes, against a key in a file.
func (r *report) modesTable() string {
	var b strings.Builder
	b.WriteString(`
Modes that keep the issuing key in memory, with the embedded log: what they cost over
a key in a file, and what the KMS is asked for once the service is ready.

| Mode | Certificates a second | CPU a certificate | over a file's | Latency, median / p99 | Calls to the KMS a certificate |
|---|---|---|---|---|---|
`)
	for _, f := range r.modes {
		fmt.Fprintf(&b, "| %s | %.0f | %s | %s | %s / %s | %.2f |\n", f.mode, f.perSecond(), micros(f.cpu), ratio(f.cpu, r.modes[0].cpu),
			micros(f.p50), micros(f.p99), f.calls)
	}
	return b.String()
}

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
	if err := p.prepare(ctx, dir, logged); err != nil {
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
