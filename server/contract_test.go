package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	"github.com/mayfly-ca/mayfly/server/internal/restjson"
)

const v2Path, v1Path = "/api/v2/signingCert", "/api/v1/signingCert"

// The rules of the wire contract, each of which some client depends on.

func TestTokenComesInBodyOrBearerHeader(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	bob := object{"email": "bob@example.com", "sub": "bob"}
	for name, c := range map[string]struct {
		body   bool
		header []string
		want   string
		status int
	}{
		"body":                         {body: true, want: identitytest.Email, status: 200},
		"bearer":                       {header: []string{"Authorization", "Bearer " + r.issuer.Token(t, bob)}, want: "bob@example.com", status: 200},
		"scheme in lower case":         {header: []string{"Authorization", "bearer " + r.issuer.Token(t, bob)}, want: "bob@example.com", status: 200},
		"scheme in upper case":         {header: []string{"Authorization", "BEARER " + r.issuer.Token(t, bob)}, want: "bob@example.com", status: 200},
		"the body wins":                {body: true, header: []string{"Authorization", "Bearer " + r.issuer.Token(t, bob)}, want: identitytest.Email, status: 200},
		"another scheme":               {header: []string{"Authorization", "Basic " + r.issuer.Token(t, bob)}, status: 401},
		"none":                         {status: 401},
		"the gRPC name isn't a header": {header: []string{"oidcidentitytoken", r.issuer.Token(t, bob), "Grpc-Metadata-Oidcidentitytoken", r.issuer.Token(t, bob)}, status: 401},
	} {
		t.Run(name, func(t *testing.T) {
			body := r.bodyV2(t)
			if !c.body {
				delete(body, "credentials")
			}
			if c.want != "" {
				keyIn(body)["proofOfPossession"] = r.prove(t, c.want)
			}
			response := r.postV2(t, body, c.header...)
			if c.status != 200 {
				readRefusal(t, response, c.status, fault.TokenMissing)
				return
			}
			leaf := parseCertificate(t, chainOf(t, response)[0])
			if len(leaf.EmailAddresses) != 1 || leaf.EmailAddresses[0] != c.want {
				t.Errorf("SAN %v, want %s", leaf.EmailAddresses, c.want)
			}
		})
	}
}

func TestAcceptAndContentTypeAreIgnored(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, accept := range []string{"application/pem-certificate-chain", "text/html;q=0.1", "*/*", "", "nonsense"} {
		for _, contentType := range []string{"application/json", "application/x-www-form-urlencoded", "text/plain; charset=x", "multipart/form-data", "a/b/c;;", ""} {
			response := r.postV2(t, r.bodyV2(t), "Accept", accept, "Content-Type", contentType)
			if got := response.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Accept %q, Content-Type %q: answered %q", accept, contentType, got)
			}
			chainOf(t, response)
		}
	}
}

func TestJSONIsReadLeniently(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.issuer.Token(t, nil)
	proof := base64.StdEncoding.EncodeToString(r.prove(t, identitytest.Email))
	content, err := json.Marshal(r.spki)
	if err != nil {
		t.Fatal(err)
	}
	camel := `{"credentials":{"oidcIdentityToken":"` + token + `"},"publicKeyRequest":{"publicKey":{%s"content":` + string(content) + `},"proofOfPossession":"` + proof + `"}%s}`
	snake := `{"credentials":{"oidc_identity_token":"` + token + `"},"public_key_request":{"public_key":{%s"content":` + string(content) + `},"proof_of_possession":"` + proof + `"}%s}`
	for _, form := range []string{camel, snake} {
		for _, algorithm := range []string{``, `"algorithm":"",`, `"algorithm":null,`, `"algorithm":"ECDSA",`, `"algorithm":"ecdsa",`, `"algorithm":"whatever \" it is",`, `"algorithm":2,`, `"algorithm":-1,`, `"algorithm":99999999999999999999,`, `"algorithm":1.5,`, `"algorithm":true,`, `"algorithm":{"algorithm":[1]},`, `"algorithm" : ["a" , "b"] ,`} {
			for _, unknown := range []string{``, `,"unknown":{"algorithm":3,"deep":[[[{}]]]}`} {
				body := fmt.Sprintf(form, algorithm, unknown)
				response := r.postV2(t, []byte(body))
				if response.StatusCode != 200 {
					t.Errorf("algorithm %q, unknown %q: %d %s", algorithm, unknown, response.StatusCode, text(t, response))
				}
			}
		}
	}
	for _, algorithm := range []any{"", nil, 7, "ECDSA", true} {
		body := r.bodyV1(t)
		body["publicKey"].(object)["algorithm"] = algorithm
		if response := r.postV1(t, body); response.StatusCode != http.StatusCreated {
			t.Errorf("v1, algorithm %v: %d %s", algorithm, response.StatusCode, text(t, response))
		}
	}
}

func TestWrongJSONIsRefusedWithoutQuotingIt(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"not JSON": `secret-text`, "cut": `{"credentials":{"oidcIdentityToken":"secret-text"`,
		"number for a token": `{"credentials":{"oidcIdentityToken":12345}}`, "text for an object": `{"credentials":"secret-text"}`,
		"bad base64": `{"publicKeyRequest":{"proofOfPossession":"secret-text!"}}`, "array": `["secret-text"]`,
		"twice": `{"credentials":{"oidcIdentityToken":"secret-text"},"credentials":{}}`,
		"both":  `{"certificateSigningRequest":"QQ==","publicKeyRequest":{"publicKey":{"algorithm":"secret-text"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			b := r.refused(t, r.postV2(t, []byte(body)), 400, fault.RequestMalformed, "secret-text", "12345")
			if strings.Contains(b.Message, "secret-text") || strings.Contains(b.Message, "12345") {
				t.Errorf("the answer quotes the body: %s", b.Message)
			}
		})
	}
}

func TestUnpopulatedFieldsAreEmitted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got := text(t, r.send(t, http.MethodGet, "/api/v2/configuration", nil))
	for _, field := range []string{`"skipEmailVerification":false`, `"spiffeTrustDomain":""`, `"subjectDomain":""`} {
		if !strings.Contains(strings.ReplaceAll(got, " ", ""), field) {
			t.Errorf("%s lacks %s", got, field)
		}
	}
	detached, err := restjson.New().Marshal(&fulciov2.SigningCertificateDetachedSCT{})
	if err != nil || !strings.Contains(strings.ReplaceAll(string(detached), " ", ""), `"signedCertificateTimestamp":""`) {
		t.Errorf("%s, %v", detached, err)
	}
}

func TestCSRContentIsIgnored(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	basic, err := asn1.Marshal(struct{ CA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "evil", Organization: []string{"Evil"}},
		DNSNames: []string{"evil.example"}, EmailAddresses: []string{"evil@example.com"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: basic}},
	}, r.key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	token := r.issuer.Token(t, nil)
	v2 := r.postV2(t, object{"credentials": object{"oidcIdentityToken": token}, "certificateSigningRequest": csr})
	v1 := r.postV1(t, object{"certificateSigningRequest": csr})
	if v1.StatusCode != http.StatusCreated {
		t.Fatalf("v1: %d %s", v1.StatusCode, text(t, v1))
	}
	for _, leaf := range []*x509.Certificate{parseCertificate(t, chainOf(t, v2)[0]), parseCertificate(t, firstBlock(t, text(t, v1)))} {
		if len(leaf.Subject.Names) != 0 || len(leaf.DNSNames) != 0 || leaf.IsCA || len(leaf.EmailAddresses) != 1 || leaf.EmailAddresses[0] != identitytest.Email {
			t.Errorf("the CSR got into the certificate: %v %v %v", leaf.Subject, leaf.DNSNames, leaf.EmailAddresses)
		}
	}
}

func firstBlock(t testing.TB, chain string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		t.Fatalf("no PEM: %q", chain)
	}
	return string(pem.EncodeToMemory(block))
}

func TestChainIncludesTheRoot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	chain := chainOf(t, r.postV2(t, r.bodyV2(t)))
	if len(chain) < 2 {
		t.Fatalf("%d certificates", len(chain))
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for i, c := range chain {
		if !strings.HasSuffix(c, "-----\n") {
			t.Errorf("certificate %d doesn't end in a new line", i)
		}
		switch parsed := parseCertificate(t, c); i {
		case 0:
		case len(chain) - 1:
			roots.AddCert(parsed)
			if err := parsed.CheckSignatureFrom(parsed); err != nil {
				t.Errorf("the last isn't a root: %v", err)
			}
		default:
			intermediates.AddCert(parsed)
		}
	}
	leaf := parseCertificate(t, chain[0])
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}); err != nil {
		t.Error(err)
	}
}

func TestSCTIsEmbedded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	response := r.postV2(t, r.bodyV2(t))
	body := text(t, response)
	var out fulciov2.SigningCertificate
	if err := protojson.Unmarshal([]byte(body), &out); err != nil {
		t.Fatal(err)
	}
	if out.GetSignedCertificateDetachedSct() != nil || out.GetSignedCertificateEmbeddedSct() == nil {
		t.Fatalf("not embedded: %s", body)
	}
	for _, e := range parseCertificate(t, out.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates()[0]).Extensions {
		if e.Id.String() == "1.3.6.1.4.1.11129.2.4.2" { // RFC 6962 §3.3
			return
		}
	}
	t.Error("no SCT list in the certificate")
}

func TestStatusIs200ForV2And201ForV1(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v2 := r.postV2(t, r.bodyV2(t))
	if body := text(t, v2); v2.StatusCode != http.StatusOK || len(body) > 1<<20 {
		t.Errorf("v2: %d, %d bytes", v2.StatusCode, len(body))
	}
	v1 := r.postV1(t, r.bodyV1(t))
	body := text(t, v1)
	if v1.StatusCode != http.StatusCreated || v1.Header.Get("Content-Type") != "application/pem-certificate-chain" {
		t.Errorf("v1: %d %s", v1.StatusCode, v1.Header.Get("Content-Type"))
	}
	if leaf := parseCertificate(t, firstBlock(t, body)); leaf.IsCA {
		t.Error("the leaf isn't first")
	}
	root := r.send(t, http.MethodGet, "/api/v1/rootCert", nil)
	if body := text(t, root); root.StatusCode != http.StatusOK || root.Header.Get("Content-Type") != "application/pem-certificate-chain" || strings.Count(body, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("rootCert: %d %s %s", root.StatusCode, root.Header.Get("Content-Type"), body)
	}
}

func TestRetryAfterForWhatMayPass(t *testing.T) {
	t.Parallel()
	for reason, want := range map[fault.Reason]int{
		fault.LogUnavailable: 503, fault.SignerUnavailable: 503, fault.IssuerUnavailable: 503, fault.AuditUnavailable: 503, fault.RateExceeded: 429,
	} {
		r := newRig(t)
		r.ca.before = func(context.Context) error { return fault.New(reason, "unavailable").Because(errBroken) }
		response := r.postV2(t, r.bodyV2(t))
		if response.Header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", reason)
		}
		readRefusal(t, response, want, reason)
	}
}

func TestErrorBodyAndRequestID(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for sent, kept := range map[string]bool{"my-id_1.2": true, "": false, "a b": false, "x\"y": false, strings.Repeat("a", 65): false} {
		for path, method := range map[string]string{"/api/v2/trustBundle": "GET", v2Path: "POST", "/nowhere": "GET", "/healthz": "GET", "/trusted_root.json": "DELETE"} {
			response := r.send(t, method, path, nil, "X-Request-Id", sent)
			got := response.Header.Get("X-Request-Id")
			if got == "" || (got == sent) != kept {
				t.Errorf("%s %s with id %q: got %q", method, path, sent, got)
			}
		}
	}
	b := readRefusal(t, r.postV2(t, []byte(`{}`)), 401, fault.TokenMissing)
	if b.Code != 16 || b.Message == "" || b.Details[0].Type != "type.googleapis.com/google.rpc.ErrorInfo" || b.Details[0].Domain == "" ||
		b.Details[1].Type != "type.googleapis.com/google.rpc.RequestInfo" {
		t.Errorf("%+v", b)
	}
}

func TestProofOverEmailOrSubject(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for challenge, want := range map[string]int{identitytest.Email: 200, identitytest.Subject: 200, "mallory@example.com": 400, "": 400, r.issuer.URL: 400} {
		body := r.bodyV2(t)
		keyIn(body)["proofOfPossession"] = r.prove(t, challenge)
		if response := r.postV2(t, body); response.StatusCode != want {
			t.Errorf("challenge %q: %d, want %d: %s", challenge, response.StatusCode, want, text(t, response))
		}
	}
}

// signers are one key of each accepted kind, and how it proves possession.
func signers(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	all := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = key
	}
	for _, bits := range []int{2048, 3072} { // 4096 takes long to make; the proof package has it
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		all[fmt.Sprintf("RSA-%d", bits)] = key
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all["Ed25519"] = ed
	return all
}

func TestEveryAcceptedKeyProvesPossession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, key := range signers(t) {
		body := r.bodyV2(t)
		body["publicKeyRequest"] = object{
			"publicKey":         object{"content": spkiPEM(t, key.Public())},
			"proofOfPossession": sign(t, key, identitytest.Email),
		}
		if response := r.postV2(t, body); response.StatusCode != 200 {
			t.Errorf("%s: %d %s", name, response.StatusCode, text(t, response))
		}
	}
	der, _ := pem.Decode([]byte(r.spki))
	body := r.bodyV2(t)
	keyIn(body)["publicKey"] = object{"content": base64.StdEncoding.EncodeToString(der.Bytes)}
	chainOf(t, r.postV2(t, body))
	v1 := r.bodyV1(t)
	v1["publicKey"] = object{"content": der.Bytes, "algorithm": "ecdsa"} // as gitsign sends it
	if response := r.postV1(t, v1); response.StatusCode != http.StatusCreated {
		t.Errorf("DER: %d %s", response.StatusCode, text(t, response))
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	t.Parallel()
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content string
		reason  fault.Reason
	}{
		"P-224":   {spkiPEM(t, small.Public()), fault.KeyUnsupported},
		"garbage": {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", fault.KeyMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			body := r.bodyV2(t)
			keyIn(body)["publicKey"] = object{"content": c.content}
			r.refused(t, r.postV2(t, body), 400, c.reason, tokenIn(body))
		})
	}
}

func TestCORSAndCaching(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	reads := []string{"/api/v2/trustBundle", "/api/v2/configuration", "/api/v1/rootCert", "/openapi.json", "/trusted_root.json", "/signing_config.json", "/trust_config.json"}
	for _, path := range reads {
		first := r.send(t, http.MethodGet, path, nil, "Origin", "https://app.example")
		tag := first.Header.Get("ETag")
		if first.StatusCode != 200 || tag == "" || first.Header.Get("Cache-Control") == "" || first.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d %v", path, first.StatusCode, first.Header)
		}
		body := text(t, first)
		for _, value := range []string{tag, "W/" + tag, `"other", ` + tag, "*"} {
			again := r.send(t, http.MethodGet, path, nil, "If-None-Match", value)
			if got := text(t, again); again.StatusCode != http.StatusNotModified || got != "" || again.Header.Get("ETag") != tag {
				t.Errorf("%s with %s: %d %q", path, value, again.StatusCode, got)
			}
		}
		if changed := r.send(t, http.MethodGet, path, nil, "If-None-Match", `"other"`); changed.StatusCode != 200 || text(t, changed) != body {
			t.Errorf("%s: %d for another tag, or another body", path, changed.StatusCode)
		}
		if again := r.send(t, http.MethodGet, path, nil, "If-None-Match", `"other"`, "If-None-Match", tag); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s: %d for its tag in a second header", path, again.StatusCode)
		}
		for _, header := range []string{"If-Match", "Range", "Grpc-Timeout", "Grpc-Metadata-Authorization", "X-Http-Method-Override"} {
			value := map[string]string{"If-Match": `"other"`, "Range": "bytes=0-1", "Grpc-Timeout": "1n"}[header]
			whole := r.send(t, http.MethodGet, path+"?x=%zz", nil, header, value)
			if got := text(t, whole); whole.StatusCode != 200 || got != body || whole.Header.Get("Content-Length") != strconv.Itoa(len(body)) {
				t.Errorf("%s with %s: %d %q, %v", path, header, whole.StatusCode, got, whole.Header)
			}
		}
		if head := r.send(t, http.MethodHead, path, nil); head.StatusCode != 200 || head.Header.Get("ETag") != tag {
			t.Errorf("HEAD %s: %d %v", path, head.StatusCode, head.Header)
		}
	}
	for _, path := range append(reads, v2Path, v1Path) {
		pre := r.send(t, http.MethodOptions, path, nil, "Origin", "https://app.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type")
		if pre.StatusCode != http.StatusNoContent || pre.Header.Get("Access-Control-Allow-Origin") != "*" || pre.Header.Get("Access-Control-Allow-Methods") == "" ||
			!strings.Contains(strings.ToLower(pre.Header.Get("Access-Control-Allow-Headers")), "authorization") {
			t.Errorf("preflight %s: %d %v", path, pre.StatusCode, pre.Header)
		}
	}
	refused := r.postV2(t, []byte(`{}`), "Origin", "https://app.example")
	if refused.Header.Get("Access-Control-Allow-Origin") != "*" || refused.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("a refusal: %v", refused.Header)
	}
	if got := r.send(t, http.MethodGet, "/trusted_root.json", nil).Header.Get("Content-Type"); got != trustroot.TrustedRootMediaType {
		t.Errorf("content type %q", got)
	}
}

func TestOnlyConfiguredOriginsMayRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config, _ *Options) { c.CORSOrigins = []string{"https://app.example"} })
	for origin, want := range map[string]string{"https://app.example": "https://app.example", "https://evil.example": "", "": ""} {
		response := r.send(t, http.MethodGet, "/api/v2/trustBundle", nil, "Origin", origin)
		if got := response.Header.Get("Access-Control-Allow-Origin"); got != want || response.Header.Get("Vary") != "Origin" {
			t.Errorf("%q: allowed %q, Vary %q", origin, got, response.Header.Get("Vary"))
		}
	}
}
