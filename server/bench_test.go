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
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// canned, cannedKeys and cannedCA answer what a real one answered before, so
// that a benchmark measures the edge alone.
type canned struct{ who identity.Principal }

func (c canned) Authenticate(context.Context, string) (identity.Principal, error) { return c.who, nil }
func (canned) Issuers() []identity.IssuerConfig                                   { return nil }

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

// issueNothing replaces the real issuance by an answer made before.
func (r *rig) issueNothing(b *testing.B) {
	b.Helper()
	who, err := r.verifier.Authenticate(b.Context(), r.issuer.Token(b, nil))
	if err != nil {
		b.Fatal(err)
	}
	key, err := r.server.with.Keys.Signature([]byte(r.spki), r.prove(b, identitytest.Email), who)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := r.ca.Issue(b.Context(), who, key)
	if err != nil {
		b.Fatal(err)
	}
	r.server.with.Identity, r.server.with.Keys, r.server.with.CA = canned{who: who}, cannedKeys{key}, cannedCA{cert}
}

func unlogged(_ *Config, o *Options) { o.Logger = nil }

// BenchmarkREST is what a request costs beyond its cryptography.
func BenchmarkREST(b *testing.B) {
	r := newRig(b, unlogged)
	body := asJSON(b, r.bodyV2(b))
	r.issueNothing(b)
	b.ReportAllocs()
	for b.Loop() {
		request := httptest.NewRequest(http.MethodPost, v2Path, bytes.NewReader(body))
		recorder := httptest.NewRecorder()
		r.server.serveHTTP(recorder, request)
		if recorder.Code != 200 {
			b.Fatal(recorder.Body.String())
		}
	}
}

// BenchmarkGRPC is the same over a connection, the client's part included.
func BenchmarkGRPC(b *testing.B) {
	r := run(b, unlogged)
	request := r.requestV2(b, r.issuer.Token(b, nil))
	r.issueNothing(b)
	client := fulciov2.NewCAClient(dial(b, r.server.Addresses().GRPC, nil))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.CreateSigningCertificate(b.Context(), request); err != nil {
			b.Fatal(err)
		}
	}
}
