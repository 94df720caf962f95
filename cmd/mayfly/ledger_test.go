package main

import (
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
)

// TestLedgerLocksConfiguration: of two commands on states in the configuration
// itself the second is refused, as both would write what they make of one reading.
func TestLedgerLocksConfiguration(t *testing.T) {
	t.Parallel()
	_, made := shardedCA(t)
	c, err := config.Load(made)
	if err != nil {
		t.Fatal(err)
	}
	c.CA.Authorities = []authority.NamedConfig{{Name: "old", Config: c.CA.Authority, Record: lifecycle.Record{State: lifecycle.Active}}}
	c.CA.Authority = authority.Config{}
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mayfly.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := openLedger(file); err == nil {
		second.close()
		t.Error("two commands change one configuration")
	}
	first.close()
	third, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	third.close()
}
