package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// audience is what all tokens are for.
const audience = "sigstore"

// issuer is an OpenID Connect provider of email addresses, for Mayfly and for its
// peer, with a key of each kind.
type issuer struct {
	*httptest.Server
	signers map[jose.SignatureAlgorithm]jose.Signer
}

func newIssuer() (*issuer, error) {
	rs256, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	es256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	i := &issuer{signers: make(map[jose.SignatureAlgorithm]jose.Signer)}
	var set jose.JSONWebKeySet
	for algorithm, key := range map[jose.SignatureAlgorithm]crypto.Signer{jose.RS256: rs256, jose.ES256: es256} {
		private := jose.JSONWebKey{Key: key, KeyID: string(algorithm), Algorithm: string(algorithm), Use: "sig"}
		set.Keys = append(set.Keys, private.Public())
		i.signers[algorithm], err = jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: private}, (&jose.SignerOptions{}).WithType("JWT"))
		if err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	i.Server = httptest.NewServer(mux)
	for path, answer := range map[string]any{
		"/keys": set,
		"/.well-known/openid-configuration": map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL + "/auth", "token_endpoint": i.URL + "/token",
			"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []jose.SignatureAlgorithm{jose.RS256, jose.ES256},
		},
	} {
		text, err := json.Marshal(answer)
		if err != nil {
			return nil, err
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(text)
		})
	}
	return i, nil
}

// token is one for the address that all certificates are for.
func (i *issuer) token(algorithm jose.SignatureAlgorithm) (string, error) {
	return signed(i.signers[algorithm], i.URL, audience, map[string]any{"sub": email, "email": email, "email_verified": true})
}

// signed is a token with the claims given, and those that every token needs.
func signed(signer jose.Signer, issuer, audience string, claims map[string]any) (string, error) {
	now := time.Now()
	all := map[string]any{"iss": issuer, "aud": audience, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	payload, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}
