package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.yaml.in/yaml/v3"
)

// yamlBlocks are a page's blocks of YAML, in their order.
func yamlBlocks(t *testing.T, path string) (all []string) {
	t.Helper()
	for _, after := range strings.Split(page(t, path), "\n```yaml\n")[1:] {
		block, _, ended := strings.Cut(after, "\n```\n")
		if !ended {
			t.Fatalf("%s: a block has no end", path)
		}
		all = append(all, block+"\n")
	}
	return all
}

// claims are those of a token, beside its times.
type claims map[string]any

// tokenCase is a token of the form that a vendor documents: the name that it is certified
// under, or the reason that it is refused for where a claim is another.
type tokenCase struct {
	claims claims
	name   string
	other  claims // instead of these, for a refusal
	reason string
}

func serviceAccount(issuer string) tokenCase {
	names := func(namespace string) claims {
		return claims{"namespace": namespace, "pod": claims{"name": "sign-x", "uid": "1"}, "serviceaccount": claims{"name": "signer", "uid": "2"}}
	}
	return tokenCase{
		claims{"iss": issuer, "aud": []string{"https://ca.example.com"}, "sub": "system:serviceaccount:release:signer", "kubernetes.io": names("release")},
		"https://kubernetes.io/namespaces/release/serviceaccounts/signer", claims{"kubernetes.io": names("default")}, "POLICY_DENIED",
	}
}

// providerPages has for each block of a page that configures issuers the tokens that it is for.
var providerPages = map[string][][]tokenCase{
	"docs/tasks/kubernetes.md": {
		{serviceAccount("https://oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF")},
		{serviceAccount("https://container.googleapis.com/v1/projects/my-project/locations/europe-west3/clusters/release")},
		{serviceAccount("https://westeurope.oic.prod-aks.azure.com/11111111-2222-3333-4444-555555555555/66666666-7777-8888-9999-000000000000/")},
		{serviceAccount("https://oidc.cluster.example.com")},
		{serviceAccount("https://kubernetes.default.svc.cluster.local")},
	},
	"docs/tasks/entra.md": {{
		{entra(true), "alice@example.com", claims{"xms_edov": false}, "POLICY_DENIED"},
		{entra("1"), "alice@example.com", claims{"email": "alice@elsewhere.example"}, "POLICY_DENIED"},
		{entra(1), "alice@example.com", claims{"tid": "another"}, "POLICY_DENIED"},
	}},
	"docs/tasks/okta.md": {{{
		claims{"iss": "https://example.okta.com", "aud": "0oa1a2b3c4d5e6f7g8h9", "sub": "00u1", "email": "alice@example.com", "email_verified": true, "ver": 1, "amr": []string{"pwd"}},
		"alice@example.com", claims{"email_verified": nil}, "EMAIL_UNVERIFIED",
	}}},
	"docs/tasks/keycloak.md": {{
		{
			claims{"iss": "https://sso.example.com/realms/example", "aud": "sigstore", "azp": "sigstore", "typ": "ID", "sub": "0b6c", "email": "alice@example.com", "email_verified": true},
			"alice@example.com", claims{"email_verified": false}, "EMAIL_UNVERIFIED",
		},
		{
			claims{"iss": "https://sso.example.com/realms/example", "aud": []string{"https://ca.example.com", "account"}, "azp": "build-signer", "typ": "Bearer", "sub": "5f1c", "preferred_username": "service-account-build-signer"},
			"5f1c!machines.example.com", claims{"azp": "sigstore"}, "TOKEN_AUDIENCE",
		},
	}},
	"docs/tasks/dex.md": {
		{{dex(), "alice@example.com", claims{"email": "alice@elsewhere.example"}, "POLICY_DENIED"}},
		{{dex(), "alice@example.com", claims{"federated_claims": nil}, "CLAIM_MISSING"}},
	},
}

func entra(verified any) claims {
	const tenant = "11111111-2222-3333-4444-555555555555"
	return claims{
		"iss": "https://login.microsoftonline.com/" + tenant + "/v2.0", "aud": "66666666-7777-8888-9999-000000000000", "tid": tenant, "ver": "2.0",
		"sub": "AAAAAAAA", "oid": "7f1c", "preferred_username": "alice@example.com", "email": "alice@example.com", "xms_edov": verified,
	}
}

func dex() claims {
	return claims{
		"iss": "https://dex.example.com", "aud": "sigstore", "sub": "CgVhbGljZQ", "email": "alice@example.com", "email_verified": true,
		"federated_claims": claims{"connector_id": "https://github.com/login/oauth", "user_id": "1"},
	}
}

// TestProviderPages: what the pages of identity providers configure has no fault beside what
// `mayfly init` writes, and certifies tokens of the form that each vendor documents.
func TestProviderPages(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "my-ca")
	if code, _, said := mayfly(t, "", "init", "--dir", ca, "--url", "https://ca.example.com"); code != exitOK {
		t.Fatal(said)
	}
	made, err := os.ReadFile(filepath.Join(ca, configName)) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
	jwks := filepath.Join(ca, "cluster.jwks.json")
	if err := os.WriteFile(jwks, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	explain := func(config string, c, other claims) (int, string) {
		token := claims{"iat": time.Now().Unix(), "nbf": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix()}
		maps.Copy(token, c)
		maps.Copy(token, other)
		maps.DeleteFunc(token, func(_ string, v any) bool { return v == nil })
		payload, err := json.Marshal(token)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		text, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		code, out, said := mayfly(t, text, "token", "explain", "--config", config, "--jwks", jwks, "--offline")
		return code, out + said
	}
	for path, configured := range providerPages {
		n := 0
		for i, block := range yamlBlocks(t, path) {
			if err := yaml.Unmarshal([]byte(block), new(any)); err != nil {
				t.Errorf("%s: block %d: %v", path, i, err)
			}
			if !strings.HasPrefix(block, "issuers:\n") {
				continue
			}
			if n++; n > len(configured) {
				t.Errorf("%s: no token is for\n%s", path, block)
				continue
			}
			config := filepath.Join(ca, fmt.Sprintf("%s.%d.yaml", filepath.Base(path), n))
			if err := os.WriteFile(config, append(made[:len(made):len(made)], block...), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, out, said := mayfly(t, "", "check", "--config", config); code != exitOK {
				t.Errorf("%s: check says\n%s%s, of\n%s", path, out, said, block)
			}
			for _, c := range configured[n-1] {
				if code, said := explain(config, c.claims, nil); code != exitOK || !strings.Contains(said, c.name) {
					t.Errorf("%s: %d, want the name %s:\n%s", path, code, c.name, said)
				}
				if code, said := explain(config, c.claims, c.other); code != exitRefused || !strings.Contains(said, c.reason) {
					t.Errorf("%s: %d, want %s for %v:\n%s", path, code, c.reason, c.other, said)
				}
			}
		}
		if n != len(configured) {
			t.Errorf("%s configures issuers in %d blocks, want %d", path, n, len(configured))
		}
	}
}
