package identity

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	r := prometheus.NewPedanticRegistry()
	v, err := NewVerifier([]IssuerConfig{emailIssuer()}, Options{Now: atMoment, Transport: w, Metrics: r})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewVerifier([]IssuerConfig{emailIssuer()}, Options{Transport: w, Metrics: r}); err == nil {
		t.Error("registered twice")
	}
	if _, err := v.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Fatal(err)
	}
	got, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(got)
	for _, want := range []string{"mayfly_identity_key_fetches_total", "mayfly_identity_issuer_ready", "mayfly_identity_issuer_keys_age_seconds", "mayfly_identity_issuer_fetch_failing", "https://issuer.example"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}
