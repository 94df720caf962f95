package authority

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

// states are authorities in each state, the last with its definition.
func states() []NamedConfig {
	record := func(name string, r lifecycle.Record) NamedConfig { return NamedConfig{Name: name, Record: r} }
	return []NamedConfig{
		record("active", lifecycle.Record{State: lifecycle.Active, Prepared: noon, Published: noon, Activated: noon.Add(day), Forced: `at <once> & "more"`}),
		record("retired", lifecycle.Record{State: lifecycle.Retired, Activated: noon.Add(-day), Retired: noon}),
		record("distrusted", lifecycle.Record{State: lifecycle.Distrusted, Distrusted: noon}),
		{Name: "added", Record: lifecycle.Record{State: lifecycle.Prepared, Prepared: noon}, Config: Config{
			Chain: "/srv/chain.pem", Mode: ModeEphemeral, Key: "hashivault://transit/keys/ca", Passphrase: setting.Secret{File: "/srv/pass"},
			Ephemeral: EphemeralConfig{Lifetime: 72 * time.Hour, History: "/srv/issuing"}, SigningQuota: 7,
			Access: kms.Access{Endpoint: "https://vault.example.com", Vault: kms.VaultAccess{TokenFile: "/run/token"}},
		}},
	}
}

// TestStatesAreReadBack: the state file keeps all of an authority, in one form.
func TestStatesAreReadBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "authorities.json")
	if all, err := ReadStates(path); err != nil || len(all) > 0 {
		t.Errorf("a missing file: %v, %v", all, err)
	}
	for _, all := range [][]NamedConfig{states(), states()[:3], {}} {
		f, err := statefile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Write(newStateDocument(all)); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if got, err := ReadStates(path); err != nil || !slices.EqualFunc(got, all, func(a, b NamedConfig) bool { return reflect.DeepEqual(a, b) }) {
			t.Errorf("read back %+v, %v; want %+v", got, err, all)
		}
	}
	const form = `{
  "version": 3,
  "authorities": [
    {
      "name": "retired",
      "state": "retired",
      "activated": "2026-02-28T12:00:00Z",
      "retired": "2026-03-01T12:00:00Z"
    }
  ]
}
`
	b, err := statefile.Format(newStateDocument([]NamedConfig{{Name: "retired", Record: lifecycle.Record{
		State: lifecycle.Retired, Activated: time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC), Retired: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}}}), "/")
	if err != nil || string(b) != form {
		t.Errorf("%v, %s", err, b)
	}
}

// TestStateFileForm: what no command writes isn't read.
func TestStateFileForm(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "authorities.json")
	good := `{"version":1,"authorities":[{"name":"a","state":"active"}]}`
	for name, tt := range map[string]struct{ text, says string }{
		"good":                         {good, ""},
		"in another order":             {`{"authorities":[{"state":"active","name":"a"}],"version":1}`, ""},
		"with tabs":                    {"{\n\t\"version\": 1,\n\t\"authorities\": []\n}\n", ""},
		"defined":                      {`{"version":2,"authorities":[{"name":"a","chain":"c.pem","key":"file:k"}]}`, ""},
		"empty":                        {"", "isn't a state file"},
		"null":                         {"null", "has version 0"},
		"a list":                       {"[]", "isn't a state file"},
		"YAML":                         {"version: 1\nauthorities: []\n", "isn't a state file"},
		"of a newer Mayfly":            {`{"version":4,"authorities":{},"more":1}`, "has version 4; this Mayfly knows those up to 3"},
		"unknown member":               {`{"version":1,"authorities":[{"name":"a","state":"active","x":1}]}`, "authorities[0].x: unknown field"},
		"a member twice":               {`{"version":1,"authorities":[{"name":"a","state":"retired","state":"active"}]}`, "duplicate key"},
		"other case":                   {`{"version":1,"authorities":[{"name":"a","State":"active"}]}`, "did you mean state?"},
		"trailing":                     {good + "{}", "isn't a state file"},
		"a name twice":                 {`{"version":1,"authorities":[{"name":"a","state":"active"},{"name":"a","state":"retired"}]}`, `the authority "a" twice`},
		"no name":                      {`{"version":1,"authorities":[{"name":"","state":"active"}]}`, "without a name"},
		"no list":                      {`{"version":1}`, "authorities: is missing"},
		"a time of no time":            {`{"version":1,"authorities":[{"name":"a","state":"active","activated":"yesterday"}]}`, "a time such as"},
		"too large":                    {good + strings.Repeat(" ", statefile.MaxBytes), "is larger than"},
		"a definition in version 1":    {`{"version":1,"authorities":[{"name":"a","state":"active","chain":"c.pem"}]}`, "begins with version 2"},
		"a certificate in version 2":   {`{"version":2,"authorities":[{"name":"a","state":"active","certificate":"ab"}]}`, "begins with version 3"},
		"with a certificate":           {`{"version":3,"authorities":[{"name":"a","state":"active","certificate":"ab"}]}`, ""},
		"an anchor, which JSON hasn't": {`{"version":1,"authorities":&a []}`, "isn't a state file"},
	} {
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := ReadStates(path)
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), path)) {
			t.Errorf("%s: %+v, %v; want %q", name, all, err, tt.says)
		}
	}
	if err := os.WriteFile(path, []byte(`{"version":2,"authorities":[{"name":"a","chain":"c.pem","key":"file:k/../k.pem"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := ReadStates(path)
	if err != nil || string(all[0].Chain) != filepath.Join(filepath.Dir(path), "c.pem") || string(all[0].Key) != "file:"+filepath.Join(filepath.Dir(path), "k.pem") {
		t.Errorf("relative paths begin elsewhere: %+v, %v", all, err)
	}
}

// TestStateFileAdds: an authority is defined in the configuration or in the state file.
func TestStateFileAdds(t *testing.T) {
	t.Parallel()
	c := threeAuthorities(t, nil)
	for i := range c.Authorities {
		c.States = append(c.States, NamedConfig{Name: c.Authorities[i].Name, Record: c.Authorities[i].Record})
		c.Authorities[i].Record = lifecycle.Record{}
	}
	c.StateFile = "state.json"
	faults := func() string {
		var f setting.Faults
		c.Check("ca", &f)
		if f.Len() == 0 {
			return ""
		}
		return f.Err().Error()
	}
	last := len(c.Authorities) - 1
	moved := c.Authorities[last].Config
	c.States[last].Config = moved
	if got := faults(); !strings.Contains(got, "state.json, the state_file, defines ") {
		t.Errorf("defined twice: %s", got)
	}
	c.Authorities = c.Authorities[:last]
	if got := faults(); got != "" {
		t.Errorf("defined in the state file alone: %s", got)
	}
	if all := c.All(); len(all) != last+1 || !reflect.DeepEqual(all[last].Config, moved) {
		t.Errorf("they are %+v", all)
	}
	if _, err := LoadSet(t.Context(), c, LoadOptions{Now: noon}); err != nil {
		t.Error(err)
	}
	c.States[last].Key = ""
	if got := faults(); !strings.Contains(got, setting.Index("ca.authorities", last)+".key: required") {
		t.Errorf("without a key: %s", got)
	}
}

// TestStoreAdds: an authority that is added is in the file once it is prepared, and
// not where its key isn't that of its chain.
func TestStoreAdds(t *testing.T) {
	t.Parallel()
	c := threeAuthorities(t, nil)
	added := NamedConfig{Name: "added", Config: c.Authorities[1].Config}
	c.StateFile = setting.Path(filepath.Join(t.TempDir(), "state.json"))
	if err := ExportStates(c, string(c.StateFile)); err != nil {
		t.Fatal(err)
	}
	if err := ExportStates(c, string(c.StateFile)); !errors.Is(err, os.ErrExist) {
		t.Errorf("a state file is made twice: %v", err)
	}
	for i := range c.Authorities {
		c.Authorities[i].Record = lifecycle.Record{}
	}
	open := func() *Store {
		s, err := OpenStore(c)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before, err := os.ReadFile(string(c.StateFile))
	if err != nil {
		t.Fatal(err)
	}
	s := open()
	wrong := added
	wrong.Key = c.Authorities[0].Key
	if err := s.Add(wrong); err != nil {
		t.Fatal(err)
	}
	var faults *setting.FaultError
	if err := s.Step(t.Context(), "added", lifecycle.Prepare, lifecycle.Terms{Now: noon}, LoadOptions{Now: noon}); !errors.As(err, &faults) {
		t.Errorf("another's key: %v", err)
	}
	s.Close()
	if after, err := os.ReadFile(string(c.StateFile)); err != nil || string(after) != string(before) {
		t.Errorf("something was written: %v, %s", err, after)
	}
	s = open()
	if err := s.Add(added); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(added); err == nil {
		t.Error("a name is used twice")
	}
	if err := s.Step(t.Context(), "added", lifecycle.Prepare, lifecycle.Terms{Now: noon}, LoadOptions{Now: noon}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open()
	defer s.Close()
	if err := s.Step(t.Context(), "added", lifecycle.Publish, lifecycle.Terms{Now: noon}, LoadOptions{Now: noon}); err != nil {
		t.Fatal(err)
	}
	all := s.Section.All()
	if last := all[len(all)-1]; last.Name != "added" || last.State != lifecycle.Published || !reflect.DeepEqual(last.Config, added.Config) {
		t.Errorf("the last is %+v", last)
	}
}

// TestSwappedChainIsSeenAtStart: what clients were told of is on record, so that a chain
// file which another takes the place of while no service runs is seen by the next start.
func TestSwappedChainIsSeenAtStart(t *testing.T) {
	t.Parallel()
	var all []*lineage
	c := threeAuthorities(t, func(active, published, retired *lineage) { all = []*lineage{active, published, retired} })
	c.StateFile = setting.Path(filepath.Join(t.TempDir(), "state.json"))
	for i := range c.Authorities { // as an older Mayfly wrote them
		c.States = append(c.States, NamedConfig{Name: c.Authorities[i].Name, Record: c.Authorities[i].Record})
		c.Authorities[i].Record = lifecycle.Record{}
	}
	c.States = c.States[:len(c.States)-1] // "new" has no state
	if err := statefile.Create(string(c.StateFile), newStateDocument(c.States)); err != nil {
		t.Fatal(err)
	}
	now := noon.Add(2 * day)
	load := func() string {
		t.Helper()
		var err error
		if c.States, err = ReadStates(string(c.StateFile)); err != nil {
			t.Fatal(err)
		}
		all, err := LoadSet(t.Context(), c, LoadOptions{Now: now, Lifetime: testLeaf})
		if err != nil {
			return err.Error()
		}
		all.Active.Close()
		return ""
	}
	step := func(name string, action lifecycle.Action) error {
		t.Helper()
		s, err := OpenStore(c)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.Step(t.Context(), name, action, lifecycle.Terms{Now: now, Propagation: day, Again: true}, LoadOptions{Now: now, Lifetime: testLeaf})
	}
	swap := func(i int) (back func()) {
		file := string(c.Authorities[i].Chain)
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		renewed := newLineage(t)
		renewed.key = all[i].key
		other, err := os.ReadFile(string(renewed.write(t).Chain))
		if err != nil {
			t.Fatal(err)
		}
		write := func(b []byte) {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(other)
		return func() { write(old) }
	}
	back := swap(2)
	if got := load(); got != "" {
		t.Errorf("a file without certificates says of a swapped chain: %s", got)
	}
	back()
	if err := step("retired", lifecycle.Retire); err != nil { // any step writes
		t.Fatal(err)
	}
	if got := load(); got != "" {
		t.Errorf("nothing is swapped: %s", got)
	}
	for i, kept := range c.States {
		if kept.Listed() != (len(kept.Certificate) == 64) {
			t.Errorf("%s has the certificate %q", kept.Name, kept.Certificate)
		}
		if !kept.Listed() {
			continue
		}
		back := swap(i)
		if got, want := load(), setting.Index("ca.authorities", i)+".chain: "; !strings.Contains(got, want) || !strings.Contains(got, "clients were told to trust "+kept.Name) {
			t.Errorf("the chain of %s is swapped: %q", kept.Name, got)
		}
		back()
	}
	defer swap(1)()
	if err := step("published", lifecycle.Activate); err == nil || !strings.Contains(err.Error(), "clients were told to trust published") {
		t.Errorf("activated with another's certificate: %v", err)
	}
	if err := step("published", lifecycle.Distrust); err != nil {
		t.Errorf("what is swapped can't be distrusted: %v", err)
	}
	if got := load(); got != "" {
		t.Errorf("what clients aren't told of any more: %s", got)
	}
}

func FuzzStateFile(f *testing.F) {
	for _, all := range [][]NamedConfig{states(), states()[:2]} {
		b, err := statefile.Format(newStateDocument(all), "/srv")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":1,"authorities":[{"name":"a","state":"active","activated":"2026-01-01T00:00:00.1Z"}]}`))
	f.Add([]byte(`{"version":2,"authorities":[{"name":"\u2028\/","mode":"true","key":"file:../k","signing_quota":-1,"passphrase":{"env":"{"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d, twice stateDocument
		if statefile.Parse(b, "/srv", stateVersion, &d) != nil || d.check() != nil {
			return
		}
		again, err := statefile.Format(newStateDocument(d.Authorities), "/srv")
		if err != nil {
			t.Fatalf("read, but can't be written: %v", err)
		}
		if err := statefile.Parse(again, "/srv", stateVersion, &twice); err != nil {
			t.Fatalf("%q is written as %q, which can't be read: %v", b, again, err)
		}
		if third, err := statefile.Format(newStateDocument(twice.Authorities), "/srv"); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%q is written as %q and then as %q, %v", b, again, third, err)
		}
		records := (&Section{States: d.Authorities}).records()
		var f setting.Faults
		lifecycle.Check("", records, day, &f)
		lifecycle.CheckTimes("", records, noon, &f)
	})
}
