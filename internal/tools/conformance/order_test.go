package conformance

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// orderer asks for certificates over REST, for one key and one token: as fast as
// a client can.
type orderer struct {
	url, token string
	body       []byte
	client     *http.Client
}

// newOrderer makes a key and the proof of it that is good for Alice.
func newOrderer(t *testing.T, m *mayfly, token string) *orderer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(aliceEmail))
	proof, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"publicKeyRequest": map[string]any{
		"publicKey": map[string]any{
			"algorithm": "ECDSA",
			"content":   string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
		},
		"proofOfPossession": proof,
	}})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &orderer{
		url: m.HTTP + "/api/v2/signingCert", token: token, body: body,
		client: &http.Client{Transport: transport, Timeout: 20 * time.Second},
	}
}

// order makes one attempt. It answers with the status, and with the certificate
// in DER where there is one.
func (o *orderer) order(ctx context.Context) (status int, der []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url, bytes.NewReader(o.body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+o.token)
	response, err := o.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode/100 != 2 {
		return response.StatusCode, nil, err
	}
	var answer struct {
		SignedCertificateEmbeddedSct struct {
			Chain struct{ Certificates []string }
		}
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return response.StatusCode, nil, err
	}
	chain := answer.SignedCertificateEmbeddedSct.Chain.Certificates
	if len(chain) == 0 {
		return response.StatusCode, nil, fmt.Errorf("no certificate in %s", raw)
	}
	block, _ := pem.Decode([]byte(chain[0]))
	if block == nil {
		return response.StatusCode, nil, fmt.Errorf("no PEM in %q", chain[0])
	}
	return response.StatusCode, block.Bytes, nil
}

// must orders one certificate.
func (o *orderer) must(t *testing.T) []byte {
	t.Helper()
	status, der, err := o.order(t.Context())
	if err != nil || der == nil {
		t.Fatalf("no certificate: status %d, %v", status, err)
	}
	return der
}
