package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Issuers of the tokens that are measured with. None of them is ever asked: their
// keys are in a file.
const (
	emailIssuer   = "https://issuer.example"
	githubIssuer  = "https://token.actions.githubusercontent.com"
	clusterIssuer = "https://eu.k8s.example.com/id/A1B2"
)

// How many issuers "many" are, beside those above.
const (
	manyIssuers  = 1000
	manyPatterns = 200
)

// identityFigures is the CPU time of verifying tokens, and of finding their issuer.
type identityFigures struct {
	email, github  tokenFigure
	exact, pattern [2]time.Duration // refusals for the audience, with few issuers and with many
}

// tokenFigure is the CPU time of a token: of its RS256 signature alone, the hash
// included, and of Authenticate with the keys at hand and a condition in CEL.
type tokenFigure struct{ signature, all time.Duration }

// tokens makes tokens and the file of the key that they are signed with.
type tokens struct {
	key    *rsa.PrivateKey
	signer jose.Signer
	keys   setting.Path
}

func newTokens(dir string) (*tokens, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	private := jose.JSONWebKey{Key: key, KeyID: "bench", Algorithm: string(jose.RS256), Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: private}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{private.Public()}})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "jwks.json")
	return &tokens{key, signer, setting.Path(file)}, os.WriteFile(file, set, 0o600)
}

// token has the claims given, and those that every token needs.
func (m *tokens) token(issuer, audience string, claims map[string]any) (string, error) {
	return signed(m.signer, issuer, audience, claims)
}

// issuers are a provider of email addresses, GitHub Actions, and a pattern.
func (m *tokens) issuers() []identity.IssuerConfig {
	audiences := []string{"sigstore"}
	return []identity.IssuerConfig{
		{
			URL: emailIssuer, Type: identity.TypeEmail, Audiences: audiences, JWKSFile: m.keys,
			Allow: `claims.email_verified == true && principal.san.endsWith("@example.com")`,
		},
		{
			URL: githubIssuer, Type: identity.TypeCI, Preset: "github", Audiences: audiences, JWKSFile: m.keys,
			Allow: `claims.repository_owner == "octo-org" && principal.san.startsWith("https://github.com/octo-org/")`,
		},
		{Pattern: "https://*.k8s.example.com/id/*", Type: identity.TypeEmail, Audiences: audiences, Allow: "true"},
	}
}

// crowd is issuers among many others. Half of the patterns look like the token's
// own until the last part.
func (m *tokens) crowd() []identity.IssuerConfig {
	all := m.issuers()
	other := all[0]
	for n := range manyIssuers {
		other.URL = fmt.Sprintf("https://issuer-%d.example/realms/main", n)
		all = append(all, other)
	}
	other = all[2]
	for n := range manyPatterns {
		other.Pattern = fmt.Sprintf("https://*.cluster-%d.example.com/id/*", n)
		if n%2 == 1 {
			other.Pattern = fmt.Sprintf("https://*.k8s.example.com/id-%d/*", n)
		}
		all = append(all, other)
	}
	return all
}

// authentication measures for about d each what a token costs.
func authentication(ctx context.Context, dir string, d time.Duration) (f identityFigures, err error) {
	m, err := newTokens(dir)
	if err != nil {
		return f, err
	}
	few, err := identity.NewVerifier(m.issuers(), identity.Options{})
	if err != nil {
		return f, err
	}
	many, err := identity.NewVerifier(m.crowd(), identity.Options{})
	if err != nil {
		return f, err
	}
	if err := m.warm(ctx, few, d, &f); err != nil {
		return f, err
	}
	for url, into := range map[string]*[2]time.Duration{emailIssuer: &f.exact, clusterIssuer: &f.pattern} {
		token, err := m.token(url, "another", nil)
		if err != nil {
			return f, err
		}
		times, err := byTurns(d, refusal(ctx, few, token), refusal(ctx, many, token))
		if err != nil {
			return f, err
		}
		copy(into[:], times)
	}
	return f, nil
}

// warm measures good tokens of issuers whose keys are known, and their signatures.
func (m *tokens) warm(ctx context.Context, v *identity.Verifier, d time.Duration, f *identityFigures) error {
	person, err := m.token(emailIssuer, "sigstore", map[string]any{"sub": "alice", "email": "alice@example.com", "email_verified": true})
	if err != nil {
		return err
	}
	job, err := m.token(githubIssuer, "sigstore", githubClaims)
	if err != nil {
		return err
	}
	personBare, err := m.bare(person)
	if err != nil {
		return err
	}
	jobBare, err := m.bare(job)
	if err != nil {
		return err
	}
	times, err := byTurns(d, personBare, authenticate(ctx, v, person), jobBare, authenticate(ctx, v, job))
	if err != nil {
		return err
	}
	f.email, f.github = tokenFigure{times[0], times[1]}, tokenFigure{times[2], times[3]}
	return nil
}

// bare is the cryptography that a token can't do without.
func (m *tokens) bare(token string) (func() error, error) {
	end := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[end+1:])
	if err != nil {
		return nil, err
	}
	signed := []byte(token[:end])
	return func() error {
		digest := sha256.Sum256(signed)
		return rsa.VerifyPKCS1v15(&m.key.PublicKey, crypto.SHA256, digest[:], signature)
	}, nil
}

func authenticate(ctx context.Context, v *identity.Verifier, token string) func() error {
	return func() error {
		_, err := v.Authenticate(ctx, token)
		return err
	}
}

// refusal is the way of a token for another audience: it is read, its issuer is
// found, and that is all. With more issuers nothing of it costs more but finding
// the issuer.
func refusal(ctx context.Context, v *identity.Verifier, token string) func() error {
	return func() error {
		_, err := v.Authenticate(ctx, token)
		var f *fault.Error
		if errors.As(err, &f) && f.Reason == fault.TokenAudience {
			return nil
		}
		return fmt.Errorf("a token for another audience: %w", err)
	}
}

// githubClaims is what the token of a workflow says.
var githubClaims = map[string]any{
	"sub": "repo:octo-org/octo-repo:ref:refs/heads/main", "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true",
	"sha": "3a1c5e2b9f0d4c7a8b6e1f2d3c4b5a6978877665", "event_name": "push", "actor": "octocat", "actor_id": "12",
	"repository": "octo-org/octo-repo", "repository_id": "74", "repository_visibility": "public",
	"repository_owner": "octo-org", "repository_owner_id": "65", "enterprise": "avocado-corp",
	"run_id": "5647382910", "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted",
	"workflow": "Release", "head_ref": "", "base_ref": "",
	"job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
	"job_workflow_sha": "1111111111111111111111111111111111111111",
	"workflow_ref":     "octo-org/octo-repo/.github/workflows/release.yml@refs/heads/main",
	"workflow_sha":     "2222222222222222222222222222222222222222",
}

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
