package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	if err := p.prepare(ctx, dir, true); err != nil {
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
