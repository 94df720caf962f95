package service

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Several logs elsewhere, of which a certificate needs more than one.

// newSeveralLogs is a service that wants the SCTs of two of its logs.
func newSeveralLogs(t *testing.T, n int) (*rig, []*remoteLog) {
	t.Helper()
	var logs []*remoteLog
	r := newRig(t, func(r *rig, c *config.Config) {
		var all []ctlog.ExternalConfig
		for range n {
			operator := string(rune('a' + len(all)))
			logs = append(logs, newRemoteLogAt(t, operator+".example", r, c))
			l := c.CTLog.Logs[0]
			named(t, operator+".example", &l)
			l.Operator = operator
			all = append(all, l)
		}
		c.CTLog.Logs, c.CTLog.SCTs, c.CTLog.Operators = all, 2, 2
	})
	return r, logs
}

// TestOneOfSeveralLogsDown: with two SCTs wanted, one log that fails costs nothing
// while a third is there, and the certificate where none is. What was signed is a
// precertificate alone.
func TestOneOfSeveralLogsDown(t *testing.T) {
	t.Parallel()
	r, logs := newSeveralLogs(t, 3)
	for name, f := range map[string]logFault{"500": answerWith(500), "silent": silence, "no answer": drop, "reply lost": takeAndDrop} {
		logs[0].breaks(f)
		for _, leaf := range r.issues(t, name, r.signingRequest(t, r.token(t, nil))) {
			if n := countSCTs(t, leaf); n != 2 {
				t.Errorf("%s: %d SCTs, want two", name, n)
			}
		}
	}
	logs[1].breaks(answerWith(503))
	r.fails(t, "one log is left", fault.LogUnavailable)
	logs[0].fault.Store(nil)
	logs[1].fault.Store(nil)
}

// countSCTs is how many the certificate carries.
func countSCTs(t *testing.T, leaf *x509.Certificate) int {
	t.Helper()
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}) { // RFC 6962 §3.3
			continue
		}
		var list []byte
		if _, err := asn1.Unmarshal(e.Value, &list); err != nil {
			t.Fatal(err)
		}
		scts, err := ctlog.ParseList(list)
		if err != nil {
			t.Fatal(err)
		}
		return len(scts)
	}
	return 0
}

// TestSeveralPromises: every SCT of a certificate is followed until its log has kept it.
func TestSeveralPromises(t *testing.T) {
	t.Parallel()
	r, _ := newSeveralLogs(t, 2)
	r.issues(t, "two", r.signingRequest(t, r.token(t, nil)))
	issued := float64(len(edges))
	r.until(t, "mayfly_ctlog_submission_seconds", func(n float64) bool { return n == 2*issued })
	deadline := time.Now().Add(patience)
	for r.scrape(t)["mayfly_ctlog_promises_pending"] != 0 {
		if time.Now().After(deadline) {
			t.Fatal("promises are pending for ever")
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestRootsDropped: a log that stops accepting the CA is told in the detail and the
// metric, and doesn't take readiness away.
func TestRootsDropped(t *testing.T) {
	t.Parallel()
	var l *remoteLog
	r := newRig(t, func(r *rig, c *config.Config) { l = newRemoteLog(t, r, c) })
	empty := logFault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		_ = json.NewEncoder(w).Encode(map[string]any{"certificates": []string{}}) // the client may have gone
	})
	l.reads.Store(&empty)
	if err := r.loaded.external[0].CheckRoots(t.Context(), r.activeChain()); err == nil {
		t.Fatal("an empty list of roots has ours")
	}
	if got := r.scrape(t)["mayfly_ctlog_roots_refused"]; got != 1 {
		t.Errorf("the metric is %v", got)
	}
	// What /readyz says is up to a second old, and may be from before the service was ready.
	for deadline := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
		code, body := r.readiness(t)
		if !strings.Contains(body, "accepts none of this CA's certificates any more") {
			t.Fatalf("%d %s", code, body)
		}
		if code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %s", body)
		}
	}
	r.issues(t, "still", r.signingRequest(t, r.token(t, nil)))
}
