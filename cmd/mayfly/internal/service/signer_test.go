package service

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestSigningQuota: over the quota, who asks reads 503 and when to come back, and
// nothing but a record is left of it; a moment later there is room again. Probes of
// readiness take nothing.
func TestSigningQuota(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *rig, c *config.Config) { c.CA.Authority.SigningQuota = 1 }) // a certificate costs two
	o := r.signingRequest(t, r.token(t, nil))
	for range 10 {
		r.readiness(t)
	}
	const callers = 8
	var all sync.WaitGroup
	var mu sync.Mutex
	said := make(map[fault.Reason]int)
	for n := range callers {
		all.Go(func() {
			a := r.ask(t, edges[n%len(edges)], o)
			if a.reason != "" {
				r.documented(t, "over the quota", a)
			}
			mu.Lock()
			defer mu.Unlock()
			said[a.reason]++
		})
	}
	all.Wait()
	if said[""] == 0 || said[fault.SigningQuota] < callers/2 || said[""]+said[fault.SigningQuota] != callers {
		t.Errorf("%d at once at one signature a second: %v", callers, said)
	}
	poll(t, "there is room again", func() bool { return r.ask(t, edges[0], o).reason == "" })
}

// TestPrecertificateSigner: where a log refuses what a precertificate signing
// certificate signs, the service says so and issues with two signatures; where the
// configuration insists, it doesn't start. A log that takes it costs one.
func TestPrecertificateSigner(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		form    authority.SignerChoice
		refuses bool
		says    string
	}{
		"on":                    {form: authority.SignerOn, says: "signatures a certificate: 1: precertificates have a signing certificate, valid to "},
		"auto, a key in a file": {form: authority.SignerAuto, says: "signatures a certificate: 2: the authority's key signs precertificates as well"},
		"refused later":         {form: authority.SignerOn, refuses: true, says: "signatures a certificate: 2: a log refuses what a precertificate signing certificate signs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var l *remoteLog
			r := newRig(t, func(r *rig, c *config.Config) {
				l = newRemoteLog(t, r, c)
				c.CA.Authority.PrecertificateSigner = tt.form
			})
			o := r.signingRequest(t, r.token(t, nil))
			r.issues(t, "at first", o)
			if tt.refuses {
				l.breaks(refusePresigned(t))
				r.ask(t, edges[0], o) // one learns of it
				poll(t, "the service learns of it", func() bool {
					return strings.HasPrefix(r.Service.issuer.SigningForm(), "2: a log refuses")
				})
				r.issues(t, "with two signatures", o)
			}
			if _, page := r.readiness(t); !strings.Contains(page, tt.says) {
				t.Errorf("/readyz?verbose doesn't say %q: %s", tt.says, page)
			}
		})
	}
}

// TestPrecertificateSignerRefused: a service that is told to have a precertificate
// signing certificate doesn't start where a log refuses what that signs.
func TestPrecertificateSignerRefused(t *testing.T) {
	t.Parallel()
	r := &rig{issuer: startIssuer(t), dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}}
	c := r.configuration(t)
	newRemoteLog(t, r, c).breaks(refusePresigned(t))
	c.CA.Authority.PrecertificateSigner = authority.SignerOn
	s, err := Open(t.Context(), c, Dependencies{Now: time.Now, Logger: r.logger()}, Overrides{}, Source{})
	if err == nil {
		t.Error("it started", s.Close(t.Context()))
	}
	const want = "ca.authority.precertificate_signer: is on, but a log refuses what such a certificate signs"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
}

// refusePresigned is a log that knows nothing of RFC 6962's second form.
func refusePresigned(t *testing.T) logFault {
	return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		var body struct{ Chain [][]byte }
		if err := json.Unmarshal(data, &body); err != nil {
			t.Error(err)
			return
		}
		if c, err := x509.ParseCertificate(body.Chain[1]); err != nil || ctlog.SignsPrecertificates(c) {
			http.Error(w, "unknown extended key usage", http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(data))
		honest.ServeHTTP(w, r)
	}
}
