package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	mathrand "math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// applicant is one token and one key, in every form in which they can come.
type applicant struct {
	token, spki string
	proof, csr  []byte
}

func (r *rig) applicant(t *testing.T, claims object) applicant {
	t.Helper()
	key, spki := newKey(t)
	challenge := identitytest.Email
	if email, ok := claims["email"].(string); ok {
		challenge = email
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return applicant{
		token: r.issuer.Token(t, claims), spki: spki, proof: sign(t, key, challenge),
		csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
	}
}

var reasonOf = regexp.MustCompile(`"reason":\s*"([A-Z_]+)"`)

// called calls a method as the edge of gRPC does.
func called[T any](ctx context.Context, s *Server, e *endpoint, request proto.Message) (out T, err error) {
	s.methods(func(_ *grpc.ServiceDesc, methods []rpcMethod) {
		for _, m := range methods {
			if m.endpoint == e {
				var answer any
				answer, err = s.serve(ctx, edgeGRPC, m, func(message proto.Message) *fault.Error {
					proto.Merge(message, request)
					return nil
				})
				out, _ = answer.(T)
			}
		}
	})
	return out, err
}

// results asks by every path, and gives the reason of each refusal, or the
// name on the certificate.
func (r *rig) results(t *testing.T, a applicant) map[string]string {
	t.Helper()
	credentials := object{"oidcIdentityToken": a.token}
	rest := func(path string, body object) string {
		response := r.send(t, http.MethodPost, path, body, "Authorization", "Bearer "+a.token)
		if response.StatusCode < 300 {
			return name(t, strings.ReplaceAll(text(t, response), `\n`, "\n"))
		}
		if m := reasonOf.FindStringSubmatch(text(t, response)); m != nil {
			return m[1]
		}
		return response.Status
	}
	out := map[string]string{
		"rest v2": rest("/api/v2/signingCert", object{"credentials": credentials, "publicKeyRequest": object{
			"publicKey": object{"algorithm": "ECDSA", "content": a.spki}, "proofOfPossession": a.proof}}),
		"rest v2 csr": rest("/api/v2/signingCert", object{"credentials": credentials, "certificateSigningRequest": a.csr}),
		"rest v1": rest("/api/v1/signingCert", object{
			"publicKey": object{"algorithm": "ecdsa", "content": []byte(a.spki)}, "signedEmailAddress": a.proof}),
		"rest v1 csr": rest("/api/v1/signingCert", object{"certificateSigningRequest": a.csr}),
	}
	v2 := func(request *fulciov2.CreateSigningCertificateRequest) string {
		request.Credentials = &fulciov2.Credentials{Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: a.token}}
		got, err := called[*fulciov2.SigningCertificate](t.Context(), r.server, createV2, request)
		if err != nil {
			return string(fault.From(err).Reason)
		}
		return name(t, got.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates()[0])
	}
	out["grpc v2"] = v2(&fulciov2.CreateSigningCertificateRequest{Key: &fulciov2.CreateSigningCertificateRequest_PublicKeyRequest{
		PublicKeyRequest: &fulciov2.PublicKeyRequest{PublicKey: &fulciov2.PublicKey{Content: a.spki}, ProofOfPossession: a.proof}}})
	out["grpc v2 csr"] = v2(&fulciov2.CreateSigningCertificateRequest{Key: &fulciov2.CreateSigningCertificateRequest_CertificateSigningRequest{CertificateSigningRequest: a.csr}})
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+a.token))
	got, err := called[*httpbody.HttpBody](ctx, r.server, createV1, &fulciov1beta.CreateSigningCertificateRequest{
		PublicKey: &fulciov1beta.PublicKey{Content: []byte(a.spki)}, SignedEmailAddress: a.proof})
	if err != nil {
		out["grpc v1"] = string(fault.From(err).Reason)
	} else {
		out["grpc v1"] = name(t, string(got.GetData()))
	}
	return out
}

// name is that of the first certificate in an answer, PEM within JSON or bare.
func name(t *testing.T, response string) string {
	t.Helper()
	const begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
	from, to := strings.Index(response, begin), strings.Index(response, end)
	if from < 0 || to < from {
		t.Fatalf("no certificate in %.200s", response)
	}
	return strings.Join(parseCertificate(t, response[from:to+len(end)]+"\n").EmailAddresses, ",")
}

// TestEveryPathGivesOneResult asks for a generated table of tokens by REST and
// gRPC, in both versions, with a proof and with a CSR: the same token and key
// get the same name, or the same refusal.
func TestEveryPathGivesOneResult(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	config := r.issuer.Config()
	config.Allow = `principal.san.endsWith("@example.com") && (!has(claims.team) || claims.team == "release")`
	verifier, err := identity.NewVerifier([]identity.IssuerConfig{config}, identity.Options{
		Deny: []policy.Deny{{Name: "mallory", When: `principal.san.startsWith("mallory@")`}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.server.with.Identity = verifier
	random := mathrand.New(mathrand.NewPCG(3, 4))
	choices := map[string][]any{
		"email":          {identitytest.Email, "bob@example.com", "mallory@example.com", "eve@example.org", "a@b,c@d"},
		"email_verified": {true, true, true, "true", false, 1},
		"aud":            {"sigstore", "sigstore", "sigstore", []string{"x", "sigstore"}, "other"},
		"sub":            {"alice", "alice", "bob", ""},
		"team":           {nil, nil, "release", "other", 7},
		"exp":            {nil, nil, nil, nil, 1},
	}
	order := []string{"email", "email_verified", "aud", "sub", "team", "exp"}
	seen := map[string]int{}
	for range 60 {
		claims := object{}
		for _, name := range order {
			if v := choices[name][random.IntN(len(choices[name]))]; v != nil {
				claims[name] = v
			}
		}
		all := r.results(t, r.applicant(t, claims))
		want := all["rest v2"]
		seen[want]++
		for path, got := range all {
			if got != want {
				t.Errorf("%v: %s says %s, and rest v2 %s", claims, path, got, want)
			}
		}
	}
	for _, result := range []string{identitytest.Email, "POLICY_DENIED", "TOKEN_AUDIENCE", "EMAIL_UNVERIFIED"} {
		if seen[result] == 0 {
			t.Errorf("the table never gave %s: %v", result, seen)
		}
	}
	for _, e := range r.audit.of("denied") {
		if (e.Reason == fault.PolicyDenied) != (e.Rule != "") {
			t.Errorf("audited %s with the rule %q", e.Reason, e.Rule)
		}
	}
}
