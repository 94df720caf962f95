package kmstest

import (
	"crypto"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
)

// Secret is what the stand-ins' credentials keep secret: no text may hold it.
const Secret = "do-not-log-me"

// StandIn is one vendor's service in this process, with one key in it that signs
// and two that seal.
type StandIn struct {
	*Cloud

	protocol protocol
	sealing  Sealing

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
	signer, err := keystore.Open(t.Context(), s.Ref, s.Options)
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

// Sealing is a stand-in, seen by the keys in it that seal.
type Sealing struct {
	*StandIn

	Ref, Other    string // two keys that seal
	Pinned        string // what Ref is pinned to
	Authenticates bool   // what a secret is about
	Denied        string // what to allow, in the error
	Unseal        string // the operation that decrypts, as Count names it
}

// Sealings are the stand-ins that every test of sealing runs with.
var Sealings = map[string]func(t testing.TB) *Sealing{
	"aws": sealing(NewAWS), "azure": sealing(NewAzure), "azure hsm": sealing(newManagedHSM), "gcp": sealing(NewGCP), "vault": sealing(NewVault),
}

func sealing(start func(t testing.TB, key crypto.Signer) *StandIn) func(t testing.TB) *Sealing {
	return func(t testing.TB) *Sealing {
		t.Helper()
		s := start(t, Key(t, kms.ECDSAP256))
		s.sealing.StandIn = s
		return &s.sealing
	}
}

// Environment is a Getenv of these variables alone: name, value, name, value…
func Environment(pairs ...string) func(string) string {
	all := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return all[name] }
}
