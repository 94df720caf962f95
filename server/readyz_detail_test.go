package server

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

// What only informs is told and decides nothing; details are for `?verbose`.
func TestInformationalDependency(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *Config, o *Options) {
		o.Dependencies = []Dependency{
			{Name: "keys", Check: func(context.Context) error { return nil }, Detail: func() []string { return []string{"12s old"} }},
			{Name: "news", Check: func(context.Context) error { return errBroken }, Informational: true},
		}
	})
	for path, want := range map[string]string{
		"/readyz":         "ok\n",
		"/readyz?verbose": "keys: ok\n  12s old\nnews: failing, but certificates can be issued\n",
	} {
		answer := r.send(t, http.MethodGet, path, nil)
		if got := text(t, answer); answer.StatusCode != http.StatusOK || got != want {
			t.Errorf("%s: %d %q", path, answer.StatusCode, got)
		}
	}
	if strings.Contains(r.lines.String(), "a dependency fails") {
		t.Error("the log says that it fails")
	}
}
