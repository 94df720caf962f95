package authority

import (
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const day = 24 * time.Hour

// threeAuthorities are one that signs, one that will, one that did.
func threeAuthorities(t *testing.T, wrong func(active, published, retired *lineage)) Section {
	t.Helper()
	active, published, retired := newLineage(t), newLineage(t), newLineage(t)
	if wrong != nil {
		wrong(active, published, retired)
	}
	s := Section{Propagation: DefaultPropagation}
	s.Authorities = []NamedConfig{
		{Name: "active", Config: active.write(t), Record: lifecycle.Record{State: lifecycle.Active, Published: noon.Add(-3 * day), Activated: noon.Add(-2 * day)}},
		{Name: "published", Config: published.write(t), Record: lifecycle.Record{State: lifecycle.Published, Published: noon.Add(-time.Hour)}},
		{Name: "retired", Config: retired.write(t), Record: lifecycle.Record{State: lifecycle.Retired, Activated: noon.Add(-9 * day), Retired: noon.Add(-2 * day)}},
		{Name: "prepared", Config: Config{Chain: "missing", Key: "file:missing"}, Record: lifecycle.Record{State: lifecycle.Prepared}},
		{Name: "new", Config: Config{Chain: "missing", Key: "file:missing"}},
	}
	return s
}

// TestEveryListedAuthorityIsChecked: every authority that clients are told of is held to what
// its state needs, and each fault names its place.
func TestEveryListedAuthorityIsChecked(t *testing.T) {
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
		all, err := LoadSet(t.Context(), threeAuthorities(t, tt.wrong), LoadOptions{Now: noon, Lifetime: testLeaf})
		if len(tt.want) == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if len(all.Trusted) != 3 || len(all.Roots()) != 3 {
				t.Errorf("%s: %d listed", name, len(all.Trusted))
			}
			for _, l := range all.Trusted {
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
	c := threeAuthorities(t, nil)
	first, err := LoadSet(t.Context(), c, LoadOptions{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadSet(t.Context(), c, LoadOptions{Now: noon, Before: first})
	if err != nil || again.Active != first.Active {
		t.Errorf("opened again: %v", err)
	}
	c.Authorities[0].Config = newLineage(t).write(t)
	if other, err := LoadSet(t.Context(), c, LoadOptions{Now: noon, Before: first}); err != nil || other.Active == first.Active {
		t.Errorf("another chain and key, but the same authority: %v", err)
	}
}

func TestAuthoritiesConfig(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*Section)
		want   []string
	}{
		"good":               {func(*Section) {}, nil},
		"both":               {func(c *Section) { c.Authority.Chain = "x" }, []string{"ca.authorities: stands beside ca.authority"}},
		"a name twice":       {func(c *Section) { c.Authorities[1].Name = "active" }, []string{`ca.authorities[1].name: "active" is the name of ca.authorities[0] already`}},
		"no name":            {func(c *Section) { c.Authorities[3].Name = "Über" }, []string{"ca.authorities[3].name: "}},
		"no chain":           {func(c *Section) { c.Authorities[4].Chain = "" }, []string{"ca.authorities[4].chain: required"}},
		"propagation":        {func(c *Section) { c.Propagation = -1 }, []string{"ca.propagation: "}},
		"none active":        {func(c *Section) { c.Authorities[0].State = "" }, []string{"ca.authorities: 0 authorities are active"}},
		"state in two":       {func(c *Section) { c.StateFile, c.Authorities = "s", c.Authorities[:1] }, []string{"ca.authorities[0].state: stands in state_file"}},
		"too soon":           {func(c *Section) { c.Authorities[0].Activated = noon.Add(-3 * day) }, []string{"ca.authorities[0].activated: "}},
		"a file for nothing": {func(c *Section) { c.Authority, c.Authorities, c.StateFile = c.Authorities[0].Config, nil, "s" }, []string{"ca.state_file: belongs to `authorities`"}},
	} {
		c := threeAuthorities(t, nil)
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
	c := threeAuthorities(t, nil)
	records := c.records()
	for i := range c.Authorities {
		c.Authorities[i].Record = lifecycle.Record{}
	}
	c.StateFile = "state.json"
	if _, err := LoadSet(t.Context(), c, LoadOptions{Now: noon}); err == nil || !strings.Contains(err.Error(), "0 authorities are active") {
		t.Errorf("without its state file: %v", err)
	}
	for _, r := range records[:4] {
		c.States = append(c.States, NamedConfig{Name: r.Name, Record: r.Record})
	}
	all, err := LoadSet(t.Context(), c, LoadOptions{Now: noon})
	if err != nil || len(all.Trusted) != 3 {
		t.Fatalf("%v", err)
	}
	c.Authorities = c.Authorities[:2]
	if _, err := LoadSet(t.Context(), c, LoadOptions{Now: noon}); err == nil || !strings.Contains(err.Error(), `has the retired authority "retired"`) {
		t.Errorf("a listed authority that is left out: %v", err)
	}
}
