package service

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/policy"
)

// TestSessionsEnd when who may read changes, whichever list says so, and not else.
func TestSessionsEnd(t *testing.T) {
	rules := func(c config.Config) string {
		s := &Service{}
		s.current.Store(&state{config: &c})
		return shown{s}.rules()
	}
	before := config.Config{Access: access.Config{Readers: []access.Rule{{Name: "staff", When: "true"}}}}
	for name, change := range map[string]func(*config.Config){
		"a reader's rule": func(c *config.Config) { c.Access.Readers = []access.Rule{{Name: "staff", When: "false"}} },
		"an admin's rule": func(c *config.Config) { c.Access.Admins = []access.Rule{{Name: "chief", When: "true"}} },
		"a deny rule":     func(c *config.Config) { c.Deny = []policy.Deny{{Name: "mallory", When: "true"}} },
	} {
		after := before
		if change(&after); rules(after) == rules(before) {
			t.Errorf("%s changes, and sessions go on", name)
		}
	}
	other := before
	if other.Logging.Level = "debug"; rules(other) != rules(before) {
		t.Error("sessions end for what doesn't concern them")
	}
}

// TestProviderHead: a provider's answer is bounded from its head on.
func TestProviderHead(t *testing.T) {
	t.Parallel()
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
	}))
	defer provider.Close()
	client, err := providerClient(&state{config: &config.Config{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(provider.URL); err == nil || !strings.Contains(err.Error(), "headers exceeded") {
		t.Errorf("a head of 1 MiB: %v", err)
	}
}
