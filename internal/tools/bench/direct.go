package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// What `direct` is measured with: a KMS as far away as one in the next region, and
// a quota like that of an Azure Premium vault.
const (
	kmsLatency = 20 * time.Millisecond
	kmsQuota   = 200                    // signatures a second
	quotaWait  = 100 * time.Millisecond // the most that ca waits at that quota
)

// directFigures is a run of a CA whose key is in a KMS, at its quota.
type directFigures struct {
	callers    int
	form       string        // precertificate_signer
	perSecond  float64       // certificates
	refused    float64       // requests a second that were told to come back
	p50, p99   time.Duration // of those that got a certificate
	waited     time.Duration // for their turn, on average
	signatures float64       // of the KMS, a certificate, as the KMS counts them
}

// overKMS is what a latency has over the KMS's own part in it.
func (f directFigures) overKMS(d time.Duration) time.Duration {
	if f.signatures == 0 {
		return 0 // nobody got one
	}
	return d - time.Duration(f.signatures+0.5)*kmsLatency
}

// measureDirect runs a CA over a stand-in for Vault with a latency and a quota,
// with each number of callers for window, and once with two signatures.
func measureDirect(ctx context.Context, r *report, dir string, window time.Duration) error {
	for _, run := range []struct {
		callers int
		form    string
	}{{1, "auto"}, {64, "auto"}, {512, "auto"}, {64, "off"}} {
		r.step("direct, a KMS of %v, %d signatures a second, precertificate_signer %s, %d callers", kmsLatency, kmsQuota, run.form, run.callers)
		f, err := directRun(ctx, r.plan, filepath.Join(dir, fmt.Sprintf("direct-%s-%d", run.form, run.callers)), run.callers, run.form, window)
		if err != nil {
			return err
		}
		r.direct = append(r.direct, f)
	}
	return nil
}

func directRun(ctx context.Context, p plan, dir string, callers int, form string, window time.Duration) (directFigures, error) {
	f := directFigures{callers: callers, form: form}
	if err := p.prepare(ctx, dir, logged); err != nil {
		return f, err
	}
	key, err := readKey(filepath.Join(dir, "authority", "issuing.key.pem"))
	if err != nil {
		return f, err
	}
	t := &outside{dir: dir}
	defer t.close()
	vault := kmstest.NewVault(t, key)
	vault.Always(kmstest.Fault{Slow: kmsLatency}, vault.Sign)
	if err := os.Setenv("VAULT_TOKEN", kmstest.VaultToken); err != nil { // for the server
		return f, err
	}
	err = changeAuthority(dir, document{
		"key": vault.Ref, "credential": "env", "endpoint": vault.URL, "signing_quota": kmsQuota, "precertificate_signer": form,
	})
	if err != nil {
		return f, err
	}
	err = edit(dir, func(doc document) error {
		server, err := section(doc, "server")
		if err == nil {
			server["limits"] = document{"issuances": 4 * callers} // it is the quota that refuses
		}
		return err
	})
	if err != nil {
		return f, err
	}
	s, err := p.launch(ctx, dir)
	if err != nil {
		return f, err
	}
	defer s.stop()
	l, err := p.newLoad(ctx, s.endpoints, callers, usual)
	if err != nil {
		return f, err
	}
	defer l.close()
	before, err := admissions(ctx, s)
	if err != nil {
		return f, err
	}
	own := vault.Count(vault.Sign)
	g, err := l.insist(ctx, callers, window)
	if err != nil {
		return f, err
	}
	after, err := admissions(ctx, s)
	if err != nil {
		return f, err
	}
	f.perSecond, f.refused = float64(len(g.times))/window.Seconds(), float64(g.refused)/window.Seconds()
	f.p50, f.p99 = quantile(g.times, 0.5), quantile(g.times, 0.99)
	if all := g.all; all > 0 {
		f.signatures = float64(vault.Count(vault.Sign)-own) / float64(all)
		f.waited = (after - before) / time.Duration(all)
	}
	return f, nil
}

// readKey reads a PKCS #8 key in PEM.
func readKey(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key.(crypto.Signer), nil
}

// granted is what a run under a quota gave. times and refused are those of the
// window, all is every certificate, those of the warm-up before it too.
type granted struct {
	times        []time.Duration
	refused, all int
}

// insist has so many callers ask for certificates without end, each coming back
// when it is told to.
func (l *load) insist(ctx context.Context, callers int, window time.Duration) (g granted, err error) {
	const warmUp = 2 * time.Second // a first rush, connections and caches
	begin := time.Now().Add(warmUp)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var wait sync.WaitGroup
	for i := range callers {
		wait.Go(func() {
			for time.Since(begin) < window && ctx.Err() == nil {
				asked := time.Now()
				retry, err := l.ask(ctx, i)
				if err != nil {
					cancel(err)
					return
				}
				took, within := time.Since(asked), time.Since(begin) >= 0 && time.Since(begin) < window
				mu.Lock()
				switch {
				case retry == 0:
					g.all++
					if within {
						g.times = append(g.times, took)
					}
				case within:
					g.refused++
				}
				mu.Unlock()
				if retry > 0 {
					select {
					case <-time.After(retry):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	wait.Wait()
	return g, context.Cause(ctx)
}

// ask asks for one certificate as caller i; retry is when it is told to come back.
func (l *load) ask(ctx context.Context, i int) (retry time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+signingCert, bytes.NewReader(l.bodies[i]))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	switch {
	case resp.StatusCode/100 == 2:
		return 0, nil
	case resp.StatusCode == http.StatusServiceUnavailable && seconds > 0 && bytes.Contains(body, []byte("SIGNING_QUOTA_EXCEEDED")):
		return time.Duration(seconds) * time.Second, nil
	default:
		return 0, fmt.Errorf("%s: %s", resp.Status, body)
	}
}

// admissions is the time that requests have waited for their turn so far.
func admissions(ctx context.Context, s *server) (time.Duration, error) {
	text, err := fetch(ctx, http.DefaultClient, s.Metrics+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, `mayfly_ca_issuance_seconds_sum{stage="admission"} `); ok {
			seconds, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return time.Duration(seconds * float64(time.Second)), err
		}
	}
	return 0, fmt.Errorf("no metric of the stage admission")
}
