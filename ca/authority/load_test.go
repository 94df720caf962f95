package authority

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const day = 24 * time.Hour

// family is three authorities: one that signs, one that will, one that did.
func family(t *testing.T, wrong func(active, published, retired *lineage)) Config {
	t.Helper()
	active, published, retired := newLineage(t), newLineage(t), newLineage(t)
	if wrong != nil {
		wrong(active, published, retired)
	}
	c := DefaultConfig()
	c.Authorities = []NamedAuthority{
		{Name: "active", AuthorityConfig: active.write(t), Record: lifecycle.Record{State: lifecycle.Active, Published: noon.Add(-3 * day), Activated: noon.Add(-2 * day)}},
		{Name: "published", AuthorityConfig: published.write(t), Record: lifecycle.Record{State: lifecycle.Published, Published: noon.Add(-time.Hour)}},
		{Name: "retired", AuthorityConfig: retired.write(t), Record: lifecycle.Record{State: lifecycle.Retired, Activated: noon.Add(-9 * day), Retired: noon.Add(-2 * day)}},
		{Name: "prepared", AuthorityConfig: AuthorityConfig{Chain: "missing", Key: "file:missing"}, Record: lifecycle.Record{State: lifecycle.Prepared}},
		{Name: "new", AuthorityConfig: AuthorityConfig{Chain: "missing", Key: "file:missing"}},
	}
	return c
}

// TestE2ListedAuthorities: every authority that clients are told of is held to what
// its state needs, and each fault names its place.
func TestE2ListedAuthorities(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		wrong func(active, published, retired *lineage)
		want  []string
	}{
		"good":              {nil, nil},
		"expired":           {func(a, _, _ *lineage) { a.intermediate.NotAfter = noon.Add(-time.Minute) }, []string{"ca.authorities[0].chain: "}},
		"soon":              {func(a, _, _ *lineage) { a.intermediate.NotAfter = noon.Add(9 * time.Minute) }, []string{"ca.authorities[0].chain: "}},
		"for one more":      {func(a, _, _ *lineage) { a.intermediate.NotAfter = noon.Add(11 * time.Minute) }, nil},
		"another's key":     {func(_, p, _ *lineage) { p.keyFile = ecKey(t, elliptic.P256()) }, []string{"ca.authorities[1].key: isn't the key of the first certificate"}},
		"published expired": {func(_, p, _ *lineage) { p.intermediate.NotAfter = noon.Add(-time.Minute) }, []string{"ca.authorities[1].chain: "}},
		"no codeSigning":    {func(_, _, r *lineage) { r.intermediate.ExtKeyUsage = nil }, []string{"ca.authorities[2].chain: "}},
		"upside down":       {func(_, _, r *lineage) { r.order = func(i, root string) string { return root + i } }, []string{"ca.authorities[2].chain: "}},
		"retired, expired":  {func(_, _, r *lineage) { r.intermediate.NotAfter = noon.Add(-time.Minute) }, nil},
		"retired, no key":   {func(_, _, r *lineage) { r.keyFile = ecKey(t, elliptic.P256()) }, nil},
		"all at once": {func(a, p, r *lineage) {
			a.intermediate.KeyUsage, p.intermediate.KeyUsage, r.intermediate.KeyUsage = x509.KeyUsageCRLSign, x509.KeyUsageCRLSign, x509.KeyUsageCRLSign
		}, []string{"ca.authorities[0].chain: ", "ca.authorities[1].chain: ", "ca.authorities[2].chain: "}},
	} {
		all, err := LoadAuthorities(t.Context(), family(t, tt.wrong), LoadOptions{Now: noon, Lifetime: DefaultLifetime})
		if len(tt.want) == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if len(all.Listed) != 3 || len(all.Roots()) != 3 {
				t.Errorf("%s: %d listed", name, len(all.Listed))
			}
			for _, l := range all.Listed {
				if l.Name == "retired" && l.End.After(noon.Add(-2*day).Add(lifecycle.Handover)) {
					t.Errorf("%s: the retired one's window ends at %v", name, l.End)
				}
			}
			continue
		}
		var faults *setting.FaultError
		if !errors.As(err, &faults) || len(faults.Faults) != len(tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.HasPrefix(faults.Faults[i], want) {
				t.Errorf("%s: %q; want %q", name, faults.Faults[i], want)
			}
		}
	}
}

// TestLoadKeepsTheOpenKey: what hasn't changed goes on with the key that is open.
func TestLoadKeepsTheOpenKey(t *testing.T) {
	t.Parallel()
	c := family(t, nil)
	first, err := LoadAuthorities(t.Context(), c, LoadOptions{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadAuthorities(t.Context(), c, LoadOptions{Now: noon, Before: first})
	if err != nil || again.Active != first.Active {
		t.Errorf("opened again: %v", err)
	}
	c.Authorities[0].AuthorityConfig = newLineage(t).write(t)
	if other, err := LoadAuthorities(t.Context(), c, LoadOptions{Now: noon, Before: first}); err != nil || other.Active == first.Active {
		t.Errorf("another chain and key, but the same authority: %v", err)
	}
}

func TestAuthoritiesConfig(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"good":               {func(*Config) {}, nil},
		"both":               {func(c *Config) { c.Authority.Chain = "x" }, []string{"ca.authorities: stands beside ca.authority"}},
		"a name twice":       {func(c *Config) { c.Authorities[1].Name = "active" }, []string{`ca.authorities[1].name: "active" is the name of ca.authorities[0] already`}},
		"no name":            {func(c *Config) { c.Authorities[3].Name = "Über" }, []string{"ca.authorities[3].name: "}},
		"no chain":           {func(c *Config) { c.Authorities[4].Chain = "" }, []string{"ca.authorities[4].chain: required"}},
		"propagation":        {func(c *Config) { c.Propagation = -1 }, []string{"ca.propagation: "}},
		"none active":        {func(c *Config) { c.Authorities[0].State = "" }, []string{"ca.authorities: 0 authorities are active"}},
		"state in two":       {func(c *Config) { c.StateFile, c.Authorities = "s", c.Authorities[:1] }, []string{"ca.authorities[0].state: stands in state_file"}},
		"too soon":           {func(c *Config) { c.Authorities[0].Activated = noon.Add(-3 * day) }, []string{"ca.authorities[0].activated: "}},
		"a file for nothing": {func(c *Config) { c.Authority, c.Authorities, c.StateFile = c.Authorities[0].AuthorityConfig, nil, "s" }, []string{"ca.state_file: belongs to `authorities`"}},
	} {
		c := family(t, nil)
		tt.change(&c)
		var f setting.Faults
		c.Check("ca", &f)
		var faults *setting.FaultError
		if !errors.As(f.Err(), &faults) {
			faults = &setting.FaultError{}
		}
		if len(faults.Faults) != len(tt.want) {
			t.Errorf("%s: %q; want %q", name, faults.Faults, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.HasPrefix(faults.Faults[i], want) {
				t.Errorf("%s: %q; want %q", name, faults.Faults[i], want)
			}
		}
	}
}

// TestStateFile: states come from the file, and what it lists can't just be left out.
func TestStateFile(t *testing.T) {
	t.Parallel()
	c := family(t, nil)
	records := c.records()
	for i := range c.Authorities {
		c.Authorities[i].Record = lifecycle.Record{}
	}
	c.StateFile = setting.Path(filepath.Join(t.TempDir(), "state.json"))
	if _, err := LoadAuthorities(t.Context(), c, LoadOptions{Now: noon}); err == nil || !strings.Contains(err.Error(), "0 authorities are active") {
		t.Errorf("without its state file: %v", err)
	}
	if err := lifecycle.Write(string(c.StateFile), records[:4]); err != nil {
		t.Fatal(err)
	}
	all, err := LoadAuthorities(t.Context(), c, LoadOptions{Now: noon})
	if err != nil || len(all.Listed) != 3 {
		t.Fatalf("%v", err)
	}
	c.Authorities = c.Authorities[:2]
	if _, err := LoadAuthorities(t.Context(), c, LoadOptions{Now: noon}); err == nil || !strings.Contains(err.Error(), `has the retired authority "retired"`) {
		t.Errorf("a listed authority that is left out: %v", err)
	}
}

// spoken is what a log says, for two goroutines.
type spoken struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *spoken) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *spoken) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestExpiry: warnings at the start and when 30 %, 10 % and nothing remain, each
// once; the metric has the end of every listed authority and of no other.
func TestExpiry(t *testing.T) {
	t.Parallel()
	old := testAuthority(t, kms.ECDSAP256)
	synctest.Test(t, func(t *testing.T) {
		a := *old
		a.notBefore, a.notAfter = time.Now(), time.Now().Add(100*day)
		var text spoken
		registry := prometheus.NewRegistry()
		r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) {
			o.Authorities = &Authorities{Active: &a, Listed: []Listed{a.Listed("y2026")}}
			o.Now, o.Metrics, o.Logger = time.Now, registry, slog.New(slog.NewTextHandler(&text, nil))
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.issuer.WatchExpiry(ctx) }()
		lines := 0
		for _, step := range []struct {
			wait time.Duration
			says string
			word string
		}{
			{time.Minute, "", ""},
			{69 * day, "", ""},
			{day, "percent_of_life_remaining=30", "less than 30 % of its life remains"},
			{day, "", "less than 30 % of its life remains"},
			{19 * day, "percent_of_life_remaining=10", "less than 10 % of its life remains"},
			{10 * day, "percent_of_life_remaining=0", "expired"},
			{day, "", "expired"},
		} {
			time.Sleep(step.wait)
			synctest.Wait()
			got := strings.FieldsFunc(text.String(), func(r rune) bool { return r == '\n' })
			if step.says != "" {
				lines++
			}
			if len(got) != lines || step.says != "" && !strings.Contains(got[lines-1], step.says) {
				t.Errorf("after %v more: %q; want %d lines, the last with %q", step.wait, got, lines, step.says)
			}
			if word := a.Listed("y2026").Expiry(time.Now()); word != step.word {
				t.Errorf("after %v more: %q; want %q", step.wait, word, step.word)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		before := text.String()
		r.issuer.tellExpiry(t.Context(), map[string]int{})
		if !strings.Contains(strings.TrimPrefix(text.String(), before), "percent_of_life_remaining=0") {
			t.Error("no warning at the start")
		}
		r.issuer.Use(One(old))
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "mayfly_ca_authority_expiry_timestamp_seconds" {
				continue
			}
			if m := f.GetMetric(); len(m) != 1 || m[0].GetLabel()[0].GetValue() != DefaultName || m[0].GetGauge().GetValue() != float64(old.notAfter.Unix()) {
				t.Errorf("the metric of expiry: %v", m)
			}
		}
	})
}
