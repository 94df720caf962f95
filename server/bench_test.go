package server

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/proof"
)

// canned, cannedKeys and cannedCA answer what a real one answered before, so
// that a benchmark measures the edge alone.
type canned struct{ who identity.Principal }

func (c canned) Authenticate(context.Context, string) (identity.Principal, error) { return c.who, nil }
func (canned) Issuers() []identity.Description                                    { return nil }

type cannedKeys struct{ key proof.Key }

func (c cannedKeys) Signature(_, _ []byte, _ identity.Principal) (proof.Key, error) {
	return c.key, nil
}
func (c cannedKeys) CSR([]byte) (proof.Key, error) { return c.key, nil }

type cannedCA struct{ cert *ca.Certificate }

func (c cannedCA) Issue(context.Context, identity.Principal, proof.Key) (*ca.Certificate, error) {
	return c.cert, nil
}
func (cannedCA) Chains() [][][]byte { return nil }

// BenchmarkREST is what a request costs beyond its cryptography: the real
// issuance is replaced by an answer made before.
func BenchmarkREST(b *testing.B) {
	r := newRig(b, func(_ *Config, o *Options) { o.Logger = nil })
	body := asJSON(b, r.bodyV2(b))
	who, err := r.verifier.Authenticate(b.Context(), r.issuer.Token(b, nil))
	if err != nil {
		b.Fatal(err)
	}
	keys := r.server.keys
	key, err := keys.Signature([]byte(r.spki), r.prove(b, identitytest.Email), who)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := r.ca.Issue(b.Context(), who, key)
	if err != nil {
		b.Fatal(err)
	}
	r.server.identity, r.server.keys, r.server.ca = canned{who: who}, cannedKeys{key}, cannedCA{cert}
	handler := http.HandlerFunc(r.server.serveHTTP)
	b.ReportAllocs()
	for b.Loop() {
		request := httptest.NewRequest(http.MethodPost, v2Path, bytes.NewReader(body))
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != 200 {
			b.Fatal(answer.Body.String())
		}
	}
}
