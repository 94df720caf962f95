package identity

import (
	"strings"
	"testing"
	"time"
)

// TestRemarks: what works and has a price is told, each with its path, and what has
// none isn't.
func TestRemarks(t *testing.T) {
	t.Parallel()
	own := emailIssuer()
	own.Audiences = []string{"https://ca.example.com"}
	for want, change := range map[string]func(*IssuerConfig){
		"": func(*IssuerConfig) {},
		"issuers[1].audiences[1]: sigstore is the audience of every Sigstore service: one that is sent a token can use it at another, this CA among them (allow bounds whose; one_time lets each be used once)": func(c *IssuerConfig) {
			c.Audiences = append(c.Audiences, "sigstore")
		},
		"issuers[1].max_token_age: bounds nothing, since no token may be valid for longer than 24h0m0s": func(c *IssuerConfig) { c.MaxTokenAge = 24 * time.Hour },
		"and one_time is set": func(c *IssuerConfig) { c.Audiences, c.OneTime = []string{"sigstore"}, true },
		"issuers[1].bearer_token_file: is never sent": func(c *IssuerConfig) {
			c.JWKSURL, c.BearerTokenFile = "https://keys.example/jwks", "token"
		},
	} {
		c := own
		change(&c)
		got := Remarks("issuers", []IssuerConfig{own, c})
		if want == "" && len(got) != 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%q: %q", want, got)
		}
	}
	sent := own
	sent.JWKSURL, sent.BearerTokenFile = own.URL+"/keys", "token"
	if got := Remarks("issuers", []IssuerConfig{sent}); len(got) != 0 {
		t.Errorf("a bearer token that is sent: %q", got)
	}
}
