package service

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// wire is the documented status of each kind of failure, on both edges.
var wire = map[fault.Kind]struct {
	status int
	code   codes.Code
}{
	fault.Malformed: {400, codes.InvalidArgument}, fault.TooLarge: {413, codes.InvalidArgument},
	fault.Unauthenticated: {401, codes.Unauthenticated}, fault.Denied: {403, codes.PermissionDenied},
	fault.RateLimited: {429, codes.ResourceExhausted}, fault.Unavailable: {503, codes.Unavailable},
	fault.DeadlineExceeded: {504, codes.DeadlineExceeded}, fault.Canceled: {499, codes.Canceled}, fault.Internal: {500, codes.Internal},
	fault.NotFound: {404, codes.NotFound}, fault.NotAllowed: {405, codes.Unimplemented},
}

// refuses sends the request over every edge that can carry it, and fails the test
// unless each answers with the documented status for one of the reasons, quickly.
func (r *rig) refuses(t *testing.T, name string, o signingRequest, reasons ...fault.Reason) {
	t.Helper()
	var all sync.WaitGroup
	for _, e := range edges {
		if !e.carries(o, r.started.Server.Limits) {
			continue
		}
		all.Go(func() {
			a := r.ask(t, e, o)
			if a.failed != nil {
				return
			}
			if !slices.Contains(reasons, a.reason) {
				t.Errorf("%s, %s: %s %q, want %v", name, a.edge, a.reason, a.message, reasons)
			}
			r.documented(t, name, a)
		})
	}
	all.Wait()
}

// refusesToken is refuses for a good request with the token.
func (r *rig) refusesToken(t *testing.T, name, token string, reasons ...fault.Reason) {
	t.Helper()
	r.refuses(t, name, r.signingRequest(t, token), reasons...)
}

// documented holds a refusal to the table of the wire contract.
func (r *rig) documented(t *testing.T, name string, a answer) {
	t.Helper()
	want := wire[a.reason.Kind()]
	if strings.HasPrefix(a.edge, "REST") && a.status != want.status || strings.HasPrefix(a.edge, "gRPC") && a.code != want.code {
		t.Errorf("%s, %s: status %d, code %v; %s is %d, %v", name, a.edge, a.status, a.code, a.reason, want.status, want.code)
	}
	if mayPass := want.status == 503 || want.status == 429; mayPass != (a.retry >= time.Second) {
		t.Errorf("%s, %s: %s asks to try again after %v", name, a.edge, a.reason, a.retry)
	}
	if a.message == "" || len(a.message) > 500 {
		t.Errorf("%s, %s: the message is %d bytes long", name, a.edge, len(a.message))
	}
	if len(a.chain) > 0 {
		t.Errorf("%s, %s: a certificate beside the refusal", name, a.edge)
	}
}

// record is a line of the audit trail.
type record struct {
	Type string
	Data struct {
		RequestID string       `json:"request_id"`
		Reason    fault.Reason `json:"reason"`
		Serial    string
		Purpose   string
		LogIndex  *uint64 `json:"log_index"`
	}
}

func (r record) kind() string { return r.Type[strings.LastIndexByte(r.Type, '.')+1:] }

func (r *rig) trail() string { return filepath.Join(r.dir, auditName, "audit.jsonl") }
func (r *rig) refused() string {
	return filepath.Join(r.dir, auditName, "audit.refused.jsonl")
}

func records(t testing.TB, path string) (all []record) {
	t.Helper()
	f, err := os.Open(path) // #nosec G304 -- a test's own file
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var one record
		if err := json.Unmarshal(scanner.Bytes(), &one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// verdict ends the service and holds it to the common oracle: no signature was
// made and nothing appended to the log for what was refused; each refusal has
// exactly one record with its reason; no token is anywhere.
func (r *rig) verdict(t *testing.T) {
	t.Helper()
	published := r.published(t)
	r.http.CloseIdleConnections()
	if err := r.grpc.Close(); err != nil {
		t.Error(err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("the service ended with %v", err)
	}
	r.untouched(t)
	r.recorded(t)
	texts := map[string]string{"the log": r.lines.String(), "the metrics": published}
	for _, path := range []string{r.trail(), r.refused()} {
		data, err := os.ReadFile(path) // #nosec G304 -- a test's own file
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		texts[filepath.Base(path)] = string(data)
	}
	var answers strings.Builder
	for _, a := range r.answers {
		answers.WriteString(a.raw)
	}
	texts["the answers"] = answers.String()
	r.discreet(t, texts)
}

// published is what Prometheus reads.
func (r *rig) published(t *testing.T) string {
	t.Helper()
	_, text, err := get(context.WithoutCancel(t.Context()), r.metrics)
	if err != nil { // a test may have ended the service
		return ""
	}
	return string(text)
}

// untouched compares signatures, intents and entries with the certificates that
// clients were given: there is one of each for each, and no other.
func (r *rig) untouched(t *testing.T) {
	t.Helper()
	issued := uint64(r.issued.Load())
	if r.started.CTLog.Mode != ctlog.ModeEmbedded || r.broken {
		return // tests of other logs, and of what fails within, look for themselves
	}
	for stage, n := range r.counts(t) {
		want := issued
		if stage == "profile" { // what the quota refuses has gone through it, and through nothing else
			want += r.overQuota()
		}
		if n != want {
			t.Errorf("stage %s was gone through %d times, for %d certificates", stage, n, issued)
		}
	}
	var clients, probes uint64
	for _, one := range records(t, r.trail()) {
		switch {
		case one.kind() == "admin":
		case one.Data.Purpose == "":
			clients++
		case one.kind() == "probed":
			probes++
		}
	}
	var entries uint64
	for _, log := range append(r.started.CTLog.Own(), r.further...) {
		report, err := maintain.Verify(context.WithoutCancel(t.Context()), string(log.Directory), maintain.VerifyOptions{MarkFile: string(log.MarkFile)})
		if err != nil {
			t.Errorf("the log %s: %v", log.URL, err)
		}
		entries += report.Size + report.Unpublished
	}
	if entries != issued+probes {
		t.Errorf("%d entries in the logs, for %d certificates and %d probes", entries, issued, probes)
	}
	if clients != 2*issued {
		t.Errorf("%d records in the trail, want an intent and an outcome for each of %d certificates", clients, issued)
	}
}

// overQuota is how many requests the signing quota refused.
func (r *rig) overQuota() (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.answers {
		if a.reason == fault.SigningQuota {
			n++
		}
	}
	return n
}

// recorded finds each refusal once, as it was answered.
func (r *rig) recorded(t *testing.T) {
	t.Helper()
	found := map[string][]record{}
	for _, one := range append(records(t, r.refused()), records(t, r.trail())...) {
		found[one.Data.RequestID] = append(found[one.Data.RequestID], one)
	}
	for _, a := range r.answers {
		if a.reason == "" || a.reason == fault.ShuttingDown || a.reason == fault.Overloaded {
			continue // load that is shed unread leaves no record
		}
		want := "denied"
		switch a.reason.Kind() {
		case fault.Internal, fault.Unavailable, fault.DeadlineExceeded:
			want = "failed"
		}
		got := slices.DeleteFunc(slices.Clone(found[a.id]), func(one record) bool { return one.kind() == "intent" })
		if len(got) != 1 || got[0].kind() != want || got[0].Data.Reason != a.reason {
			t.Errorf("%s: %s has the records %+v, want one %s", a.id, a.reason, got, want)
		}
	}
}

// discreet looks for every token that was sent, and all else that is private,
// in every text that the service wrote.
func (r *rig) discreet(t *testing.T, texts map[string]string) {
	t.Helper()
	var secrets []string
	for _, token := range r.tokens {
		secrets = append(secrets, fragments(token)...)
	}
	secrets = append(secrets, r.private...)
	slices.Sort(secrets)
	for _, secret := range slices.Compact(secrets) {
		for name, text := range texts {
			if strings.Contains(text, secret) {
				t.Errorf("%s: holds the secret %q", name, secret)
			}
		}
	}
}

// fragments are pieces of each part of a token, short enough that one that was
// cut is found too.
func fragments(token string) (pieces []string) {
	const size = 24
	for part := range strings.SplitSeq(token, ".") {
		if len(part) >= size {
			middle := (len(part) - size) / 2
			pieces = append(pieces, part[:size], part[middle:middle+size], part[len(part)-size:])
		}
	}
	return pieces
}
