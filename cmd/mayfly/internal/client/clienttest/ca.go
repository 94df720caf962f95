// Package clienttest is a small CA for tests of the client: real certificates,
// real SCTs, no policy at all, and knobs to make it answer wrongly. It is
// written apart from package ca, so that it is a second opinion on the bytes.
package clienttest

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// Knobs are ways to answer wrongly. The zero Knobs answers rightly.
type Knobs struct {
	OtherKey     bool                                              // certify another key than the one that was sent
	NoSCT        bool                                              // leave the SCT list out
	BadSCT       bool                                              // sign the SCT over something else
	UnknownLog   bool                                              // an SCT of a log that the trusted root doesn't list
	SCTTime      time.Time                                         // the SCT's time, instead of the start
	Subject      string                                            // the recorded token subject, instead of the token's
	Username     string                                            // a username SAN instead of the email
	Issuer       string                                            // the recorded issuer, instead of the token's
	Detached     bool                                              // answer in the detached form
	Edit         func(leaf *x509.Certificate)                      // change the certificate before it is signed
	Answer       func(w http.ResponseWriter, r *http.Request) bool // answer instead, when it returns true
	Issuers      []string                                          // what the configuration lists
	Audience     string                                            // what it names for each of them
	LogEnd       time.Time                                         // the end of the log's window
	AuthorityEnd time.Time                                         // the end of the authority's window
}

// CA is the running CA.
type CA struct {
	URL   string
	Start time.Time // of every certificate

	mu       sync.Mutex
	Knobs    Knobs
	requests atomic.Int64

	t      testing.TB
	chain  []*x509.Certificate // intermediate, root
	signer *ecdsa.PrivateKey
	log    *ecdsa.PrivateKey
}

// New starts a CA on loopback that ends with the test.
func New(t testing.TB) *CA {
	t.Helper()
	c := &CA{t: t, Start: time.Now().Add(-time.Minute).UTC().Truncate(time.Second), log: catest.Key(t), signer: catest.Key(t)}
	rootKey := catest.Key(t)
	root := catest.Sign(t, catest.Authority("clienttest", "root", c.Start.Add(-time.Hour), c.Start.AddDate(10, 0, 0)), nil, rootKey.Public(), rootKey)
	template := catest.Authority("clienttest", "intermediate", c.Start.Add(-time.Hour), c.Start.AddDate(5, 0, 0))
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	intermediate := catest.Sign(t, template, root, c.signer.Public(), rootKey)
	c.chain = []*x509.Certificate{intermediate, root}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v2/signingCert", c.serveCertificate)
	mux.HandleFunc("GET /api/v2/configuration", c.serveConfiguration)
	mux.HandleFunc("GET /trusted_root.json", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(c.TrustedRoot()) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Set changes the knobs.
func (c *CA) Set(k Knobs) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Knobs = k
}

// Requests is how often a certificate was asked for.
func (c *CA) Requests() int { return int(c.requests.Load()) }

// Chain is the intermediate and the root.
func (c *CA) Chain() []*x509.Certificate { return c.chain }

// TrustedRoot is the trusted_root.json of this CA.
func (c *CA) TrustedRoot() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	spki := catest.SPKI(c.t, c.log.Public())
	id := sha256.Sum256(spki)
	span := func(end time.Time) map[string]string {
		w := map[string]string{"start": c.Start.Add(-time.Hour).Format(time.RFC3339)}
		if !end.IsZero() {
			w["end"] = end.UTC().Format(time.RFC3339)
		}
		return w
	}
	type object = map[string]any
	document, err := json.Marshal(object{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"certificateAuthorities": []object{{
			"uri":      "https://ca.example.com",
			"subject":  object{"organization": "clienttest", "commonName": "root"},
			"validFor": span(c.Knobs.AuthorityEnd),
			"certChain": object{"certificates": []object{
				{"rawBytes": c.chain[0].Raw}, {"rawBytes": c.chain[1].Raw},
			}},
		}},
		"ctlogs": []object{{
			"baseUrl": "https://log.example.com", "hashAlgorithm": "SHA2_256",
			"publicKey": object{"rawBytes": spki, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": span(c.Knobs.LogEnd)},
			"logId":     object{"keyId": id[:]},
		}},
	})
	c.must(err)
	return append(document, '\n')
}

// must fails the test where the CA itself can't go on.
func (c *CA) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Errorf("clienttest: %v", err)
	}
}

func (c *CA) serveConfiguration(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	type issuer struct {
		URL      string `json:"issuerUrl"`
		Audience string `json:"audience"`
	}
	list := []issuer{}
	for _, u := range c.Knobs.Issuers {
		list = append(list, issuer{u, c.Knobs.Audience})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"issuers": list})
}

func (c *CA) serveCertificate(w http.ResponseWriter, r *http.Request) {
	c.requests.Add(1)
	c.mu.Lock()
	knobs := c.Knobs
	c.mu.Unlock()
	if knobs.Answer != nil && knobs.Answer(w, r) {
		return
	}
	var body struct {
		Credentials struct {
			Token string `json:"oidcIdentityToken"`
		} `json:"credentials"`
		Key struct {
			Public struct {
				Content string `json:"content"`
			} `json:"publicKey"`
			Proof []byte `json:"proofOfPossession"`
		} `json:"publicKeyRequest"`
		CSR []byte `json:"certificateSigningRequest"`
	}
	err := json.NewDecoder(r.Body).Decode(&body)
	var chain []string
	if err == nil {
		chain, err = c.Issue(body.Credentials.Token, []byte(body.Key.Public.Content), body.Key.Proof, body.CSR)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"code": 3, "message": err.Error(), "details": []any{}})
		return
	}
	form := "signedCertificateEmbeddedSct"
	if knobs.Detached {
		form = "signedCertificateDetachedSct"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{form: map[string]any{"chain": map[string]any{"certificates": chain}}})
}

// Issue makes the chain for a request, leaf first, in PEM. The proof is
// verified, the token is not.
func (c *CA) Issue(token string, spki, proof, csr []byte) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claims, err := readClaims(token)
	if err != nil {
		return nil, err
	}
	public, err := proven(claims, spki, proof, csr)
	if err != nil {
		return nil, err
	}
	if c.Knobs.OtherKey {
		public = catest.Key(c.t).Public()
	}
	var chain []string
	for _, cert := range append([]*x509.Certificate{c.sign(claims, public)}, c.chain...) {
		chain = append(chain, string(catest.PEM(cert)))
	}
	return chain, nil
}

type claims struct {
	Issuer  string `json:"iss"`
	Subject string `json:"sub"`
	Email   string `json:"email"`
}

func (c claims) challenge() string {
	return cmp.Or(c.Email, c.Subject)
}

func readClaims(token string) (c claims, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, fmt.Errorf("the token has %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(payload, &c)
	}
	return c, err
}

// Token makes an unsigned token that this CA takes: only its claims count.
func Token(t testing.TB, values map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(payload) + "." + part([]byte("clienttest-secret"))
}

// proven is the public key whose possession was shown.
func proven(who claims, spki, proof, csr []byte) (crypto.PublicKey, error) {
	if len(csr) > 0 {
		block, _ := pem.Decode(csr)
		if block == nil {
			return nil, fmt.Errorf("the CSR is not PEM")
		}
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return nil, err
		}
		return request.PublicKey, request.CheckSignature()
	}
	block, _ := pem.Decode(spki)
	if block == nil {
		return nil, fmt.Errorf("the key is not PEM")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return public, CheckProof(public, []byte(who.challenge()), proof)
}

// sign issues the leaf in one step: the log signs the TBS of a first version
// without an SCT list, which is put into the second.
func (c *CA) sign(who claims, public crypto.PublicKey) *x509.Certificate {
	template := c.template(who)
	first := catest.Sign(c.t, template, c.chain[0], public, c.signer)
	if c.Knobs.NoSCT {
		return first
	}
	template.SerialNumber = first.SerialNumber
	template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: ctlog.OIDSCTList, Value: c.sctList(first.RawTBSCertificate)})
	return catest.Sign(c.t, template, c.chain[0], public, c.signer)
}

func (c *CA) template(who claims) *x509.Certificate {
	subject := cmp.Or(c.Knobs.Subject, who.Subject)
	who.Issuer = cmp.Or(c.Knobs.Issuer, who.Issuer)
	v2, err1 := asn1.MarshalWithParams(who.Issuer, "utf8")
	sub, err2 := asn1.MarshalWithParams(subject, "utf8")
	c.must(errors.Join(err1, err2))
	arc := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, n} }
	t := &x509.Certificate{
		NotBefore: c.Start, NotAfter: c.Start.Add(10*time.Minute - time.Second),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: arc(1), Value: []byte(who.Issuer)}, {Id: arc(8), Value: v2}, {Id: arc(24), Value: sub}},
	}
	switch u, err := url.Parse(who.Subject); {
	case c.Knobs.Username != "":
		t.ExtraExtensions = append(t.ExtraExtensions, c.usernameSAN(c.Knobs.Username))
	case who.Email != "":
		t.EmailAddresses = []string{who.Email}
	case err == nil && u.Scheme != "":
		t.URIs = []*url.URL{u}
	default:
		t.EmailAddresses = []string{who.Subject}
	}
	if c.Knobs.Edit != nil {
		c.Knobs.Edit(t)
	}
	return t
}

// usernameSAN is a critical SAN with one OtherName 1.3.6.1.4.1.57264.1.7.
func (c *CA) usernameSAN(name string) pkix.Extension {
	type otherName struct {
		ID    asn1.ObjectIdentifier
		Value string `asn1:"utf8,explicit,tag:0"`
	}
	value, err := asn1.Marshal(struct {
		Name otherName `asn1:"tag:0"`
	}{otherName{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 7}, name}})
	c.must(err)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}
}
