package kmstest

import (
	"crypto"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Secret is what the stand-ins' credentials keep secret: no text may hold it.
const Secret = "do-not-log-me"

// StandIn is one vendor's service in this process, with one key in it.
type StandIn struct {
	*Cloud

	protocol protocol

	Ref     string // unpinned: version or id aren't named
	Pinned  string // as Open pins it
	Name    string // of the key, in Cloud
	Options kms.Options
	Host    string // as errors name it

	Get, Sign string // the operations that describe the key and sign, as Count names them
	// Codes are the vendor's refusals by what they say: throttled, denied,
	// disabled, deleted, internal.
	Codes map[string]Fault
}

// Open opens the key, and closes it when the test ends.
func (s *StandIn) Open(t testing.TB) kms.Signer {
	t.Helper()
	signer, err := kms.Open(t.Context(), s.Ref, s.Options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(signer) })
	return signer
}

// Vendors are the stand-ins of every backend that is reached over a network, by
// the backend's name.
var Vendors = map[string]func(t testing.TB, key crypto.Signer) *StandIn{
	"aws": NewAWS, "azure": NewAzure, "gcp": NewGCP, "vault": NewVault,
}

// Environment is a Getenv of these variables alone: name, value, name, value…
func Environment(pairs ...string) func(string) string {
	all := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return all[name] }
}

// algorithmOf is the kind of a key that a test has made.
func algorithmOf(t testing.TB, key crypto.Signer) kms.Algorithm {
	a, err := kms.AlgorithmOf(key.Public())
	if err != nil {
		t.Error(err)
	}
	return a
}
