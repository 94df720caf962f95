package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/requestid"
)

// Submission is what a client sends for one certificate: the token, and either
// the public key with its proof or a CSR.
type Submission struct {
	token     string
	algorithm string
	spki      []byte // PEM
	proof     []byte
	csr       []byte // PEM; nil for key and proof
}

// Submit makes the submission for a key and a token.
func Submit(token *Token, key *Key, csr bool) (Submission, error) {
	s := Submission{token: token.raw, algorithm: key.typ.algorithm}
	var err error
	if csr {
		s.csr, err = key.CSR()
		return s, err
	}
	if s.spki, err = key.SPKI(); err != nil {
		return s, err
	}
	s.proof, err = key.Prove(token.Challenge())
	return s, err
}

// CA is one way to ask a CA for a certificate.
type CA interface {
	// Certificate sends the submission and returns the chain as it came, leaf
	// first, parsed and otherwise unverified. A refusal is an *Error of kind
	// Refused, what may pass later is Unavailable, an answer that can't be
	// read is Failed. ctx must have a deadline.
	Certificate(ctx context.Context, s Submission) ([]*x509.Certificate, error)
}

// REST asks over POST /api/v2/signingCert.
type REST struct {
	URL   string // the base, checked by CheckURL
	HTTP  *http.Client
	Retry Retry
}

// The JSON of dev.sigstore.fulcio.v2, as far as this client uses it.
type (
	createRequest struct {
		Credentials struct {
			Token string `json:"oidcIdentityToken"`
		} `json:"credentials"`
		PublicKeyRequest *publicKeyRequest `json:"publicKeyRequest,omitempty"`
		CSR              []byte            `json:"certificateSigningRequest,omitempty"`
	}
	publicKeyRequest struct {
		PublicKey struct {
			Algorithm string `json:"algorithm"`
			Content   string `json:"content"`
		} `json:"publicKey"`
		Proof []byte `json:"proofOfPossession"`
	}
	createAnswer struct {
		Embedded *struct {
			Chain jsonChain `json:"chain"`
		} `json:"signedCertificateEmbeddedSct"`
		Detached *struct {
			Chain jsonChain `json:"chain"`
		} `json:"signedCertificateDetachedSct"`
	}
	jsonChain struct {
		Certificates []string `json:"certificates"`
	}
)

// Certificate implements CA.
func (c *REST) Certificate(ctx context.Context, s Submission) ([]*x509.Certificate, error) {
	var body createRequest
	body.Credentials.Token = s.token
	body.CSR = s.csr
	if s.csr == nil {
		body.PublicKeyRequest = &publicKeyRequest{Proof: s.proof}
		body.PublicKeyRequest.PublicKey.Algorithm = s.algorithm
		body.PublicKeyRequest.PublicKey.Content = string(s.spki)
	}
	payload, err := json.Marshal(body)
	if err != nil {
		return nil, problem(Failed, "", "encoding the request").because(err)
	}
	id := requestid.New()
	answer, err := exchange(ctx, c.HTTP, c.Retry, "the CA", func(ctx context.Context) (*http.Request, error) {
		url := strings.TrimRight(c.URL, "/") + "/api/v2/signingCert"
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(payload))
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "application/json")
			req.Header.Set("X-Request-Id", id)
		}
		return req, err
	})
	if err != nil {
		return nil, err
	}
	if answer.status != http.StatusOK {
		return nil, answer.fault("the CA")
	}
	var got createAnswer
	if err := json.Unmarshal(answer.body, &got); err != nil {
		return nil, unreadable("it is not JSON")
	}
	switch {
	case got.Embedded != nil:
		return parseChain(got.Embedded.Chain.Certificates)
	case got.Detached != nil:
		// Allowed by the API: a CA without a log answers in this form with an empty SCT.
		return parseChain(got.Detached.Chain.Certificates)
	default:
		return nil, unreadable("it holds no certificate")
	}
}

func unreadable(why string) *Error {
	return problem(Failed, "check that the URL is that of a Fulcio-compatible CA", "the CA's answer can't be read: %s", why)
}

// maxChain bounds the work of parsing a hostile answer.
const maxChain = 16

// parseChain reads one certificate from each PEM, leaf first.
func parseChain(pems []string) ([]*x509.Certificate, error) {
	if len(pems) == 0 || len(pems) > maxChain {
		return nil, unreadable("its chain has an unfit number of certificates")
	}
	chain := make([]*x509.Certificate, 0, len(pems))
	for _, p := range pems {
		block, rest := pem.Decode([]byte(p))
		if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, unreadable("its chain holds something other than one PEM certificate an entry")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, unreadable("its chain holds a malformed certificate").because(err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}
