package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// The overload: as long as there are requests left, ten times as many callers as
// the service makes certificates at once, and one request in fifty with a bad token.
const (
	capacity    = 4
	callers     = 10 * capacity
	oneBadIn    = 50
	badRequests = 4
	good        = badRequests * (oneBadIn - 1)
	rounds      = good / capacity // of a CA that always has all it can do
)

// countedIdentity counts the tokens that are verified.
type countedIdentity struct {
	Identity
	verified atomic.Int64
}

func (c *countedIdentity) Authenticate(ctx context.Context, token string) (identity.Principal, error) {
	c.verified.Add(1)
	return c.Identity.Authenticate(ctx, token)
}

// overload is a service whose CA finishes what it makes when the test says so.
type overload struct {
	*running
	identity *countedIdentity
	making   chan struct{} // takes one for each request that has come to the CA
	finish   chan struct{} // gives one for each that may be finished
	shed     chan reply    // what was turned away; its caller waits until the test looks
	http     *http.Client
	grpc     fulciov2.CAClient
}

func newOverload(t *testing.T) *overload {
	t.Helper()
	o := &overload{identity: &countedIdentity{}, making: make(chan struct{}), finish: make(chan struct{}), shed: make(chan reply)}
	o.running = run(t, func(c *Config, options *Options) {
		c.Limits.Issuances, c.RequestTimeout = capacity, time.Minute
		o.identity.Identity, options.Identity = options.Identity, o.identity
	})
	o.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	t.Cleanup(o.http.CloseIdleConnections)
	o.grpc = fulciov2.NewCAClient(dial(t, o.server.Addresses().GRPC, nil))
	return o
}

// await is the CA's part: to come to it, and to wait for the test.
func (o *overload) await(ctx context.Context) error {
	select {
	case o.making <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-o.finish:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wanted is a request on its way: how it is sent over either edge, and the
// reason that it must be refused for.
type wanted struct {
	rest   []byte
	grpc   *fulciov2.CreateSigningCertificateRequest
	reason fault.Reason
}

func (o *overload) request(t *testing.T, token string, reason fault.Reason) *wanted {
	t.Helper()
	body := o.bodyV2(t)
	setToken(body, token)
	return &wanted{asJSON(t, body), o.requestV2(t, token), reason}
}

// requests are the good ones, and among each forty-nine of them a bad one.
func (o *overload) requests(t *testing.T) (all []*wanted) {
	t.Helper()
	stranger := identitytest.New(t)
	parts := strings.Split(o.issuer.Token(t, nil), ".")
	forged := parts[0] + ".e30." + parts[2] // no claims: {}
	bad := [badRequests]*wanted{
		o.request(t, forged, fault.TokenMalformed),
		o.request(t, stranger.Token(t, nil), fault.IssuerUnknown),
		o.request(t, stranger.Token(t, object{"iss": o.issuer.URL}), fault.TokenSignature),
		o.request(t, o.issuer.Token(t, object{"aud": "another"}), fault.TokenAudience),
	}
	honest := o.request(t, o.issuer.Token(t, nil), "")
	for _, one := range bad {
		for n := range oneBadIn {
			if n == oneBadIn/2 {
				all = append(all, one)
			} else {
				all = append(all, honest)
			}
		}
	}
	return all
}

// reply is the answer to a request: the reason of a refusal, its status in the
// terms of the edge, and whether it says when to try again.
type reply struct {
	reason fault.Reason
	status int
	code   codes.Code
	retry  bool
}

// ask sends a request over one edge, once.
func (o *overload) ask(ctx context.Context, w *wanted, overGRPC bool) (reply, error) {
	if overGRPC {
		_, err := o.grpc.CreateSigningCertificate(ctx, w.grpc)
		got := reply{code: status.Code(err)}
		for _, d := range status.Convert(err).Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				got.reason = fault.Reason(d.GetReason())
			case *errdetails.RetryInfo:
				got.retry = d.GetRetryDelay().AsDuration() > 0
			}
		}
		if err != nil && got.reason == "" {
			return got, err
		}
		return got, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url(v2Path), bytes.NewReader(w.rest))
	if err != nil {
		return reply{}, err
	}
	response, err := o.http.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	var body errorBody
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		return reply{}, err
	}
	got := reply{status: response.StatusCode, retry: response.Header.Get("Retry-After") != ""}
	if got.status != http.StatusOK && len(body.Details) > 0 {
		got.reason = fault.Reason(body.Details[0].Reason)
	}
	return got, nil
}

// persist sends a request until it isn't turned away.
func (o *overload) persist(ctx context.Context, w *wanted, overGRPC bool) error {
	for {
		got, err := o.ask(ctx, w, overGRPC)
		switch {
		case err != nil:
			return err
		case got.reason != fault.Overloaded && got.reason != w.reason:
			return errors.New("refused for " + string(got.reason) + ", want " + string(w.reason))
		case got.reason == "" && (got.status == http.StatusOK || overGRPC):
			return nil
		case got.reason == w.reason && (got.status == http.StatusUnauthorized || got.code == codes.Unauthenticated):
			return nil
		case got.reason == w.reason:
			return errors.New("refused for " + string(got.reason) + " with another status than documented")
		}
		select {
		case o.shed <- got:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// flood sends the requests from all callers at once. The channel is closed when
// each has its answer, or one of them has failed, which cancels the others.
func (o *overload) flood(t *testing.T, all []*wanted) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var next atomic.Int64
	var calls sync.WaitGroup
	for caller := range callers {
		calls.Go(func() {
			for n := next.Add(1); n <= int64(len(all)); n = next.Add(1) {
				if err := o.persist(ctx, all[n-1], caller%2 == 1); err != nil {
					if ctx.Err() == nil {
						t.Errorf("request %d: %v", n, err)
					}
					cancel()
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		calls.Wait()
		cancel()
	}()
	return done
}

// round waits until the CA has all that it can do, has a look at n requests that
// are turned away meanwhile, and lets the CA finish.
func (o *overload) round(t *testing.T, done <-chan struct{}, n int) {
	t.Helper()
	for held, turned := 0, 0; held < capacity; {
		select {
		case <-o.making:
			held++
		case <-o.shed:
			if turned++; turned == 50_000 { // by far more than the time of any check
				t.Fatalf("the CA has %d requests, and nothing else comes through: something holds the rest of its capacity", held)
			}
		case <-done:
			t.Fatalf("the CA has %d requests, and no more come", held)
		}
	}
	verified := o.identity.verified.Load()
	for range n {
		select {
		case got := <-o.shed:
			if !got.retry || got.status != http.StatusServiceUnavailable && got.code != codes.Unavailable {
				t.Errorf("turned away with %+v", got)
			}
		case <-o.making:
			t.Fatal("more requests in the making than the limit")
		case <-done:
			t.Fatal("the callers gave up")
		}
	}
	if more := o.identity.verified.Load() - verified; more != 0 {
		t.Errorf("%d tokens were verified of requests that are turned away", more)
	}
	for range capacity {
		select {
		case o.finish <- struct{}{}:
		case <-done:
			t.Fatal("the callers gave up")
		}
	}
}

// Whatever is offered beyond what the service can do is turned away before
// its token is looked at, bad tokens don't take the place of good ones, and the
// CA is never short of work: goodput is all of the capacity. Then the service is
// as before. It isn't parallel, to see which goroutines it leaves.
func TestGoodputUnderTenfoldOverload(t *testing.T) {
	o := newOverload(t)
	all := o.requests(t)
	served := func() {
		t.Helper()
		for _, overGRPC := range []bool{false, true} {
			got, err := o.ask(t.Context(), all[0], overGRPC)
			if err != nil || got.reason != "" || got.status != http.StatusOK && !overGRPC {
				t.Fatalf("an honest request: %+v, %v", got, err)
			}
		}
	}
	served() // connections and keys are there from now on
	before := goleak.IgnoreCurrent()

	o.ca.before = o.await
	done := o.flood(t, all)
	for n := range rounds {
		look := callers // more than were turned away before the CA was full, and wait to be looked at
		if n == rounds-1 {
			look = 0 // everybody else has his certificate
		}
		o.round(t, done, look)
	}
	for flooded := true; flooded; {
		select {
		case <-o.shed: // a bad request that hasn't come through yet
		case <-o.making:
			t.Fatal("the CA was asked for more than the good requests")
		case <-done:
			flooded = false
		}
	}
	o.ca.before = nil
	if n := o.server.inFlight.count(); n != 0 {
		t.Errorf("%v requests are in flight after the last answer", n)
	}
	served()
	o.http.CloseIdleConnections()
	goleak.VerifyNone(t, before)

	const probes = 4 // two before, two after
	if n := o.identity.verified.Load(); n != good+badRequests+probes {
		t.Errorf("%d tokens were verified, want %d", n, good+badRequests+probes)
	}
	if calls, entries := o.ca.calls.Load(), o.log.entries.Load(); calls != good+probes || entries != good+probes {
		t.Errorf("the CA was asked %d times, and the log %d times; %d requests were good", calls, entries, good+probes)
	}
	if issued, denied, failed := len(o.audit.of(audit.Issued)), len(o.audit.of(audit.Denied)), len(o.audit.of(audit.Failed)); issued != good+probes || denied != badRequests || failed != 0 {
		t.Errorf("%d issued, %d denied and %d failed on record", issued, denied, failed)
	}
}
