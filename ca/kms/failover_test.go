package kms_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// twoRegions are two stand-ins of one key, the second as the first's replica.
func twoRegions(t *testing.T) (first, second *kmstest.StandIn, log *lockedLog) {
	t.Helper()
	first, second, log = standIn(t, "aws", kms.ECDSAP256), standIn(t, "aws", kms.ECDSAP256), new(lockedLog)
	first.Options.Logger = log.logger()
	first.Options.Access.Replicas = []kms.Replica{{Key: setting.KeyRef(second.Ref), Endpoint: second.Options.Access.Endpoint}}
	return first, second, log
}

func TestFailover(t *testing.T) {
	t.Parallel()
	first, second, log := twoRegions(t)
	signer := first.Open(t)
	before := second.Count("Sign")
	if _, err := sign(t, t.Context(), signer); err != nil || second.Count("Sign") != before {
		t.Fatalf("the first replica isn't the first: %v", err)
	}
	for what, f := range map[string]kmstest.Fault{"denied": first.Codes["denied"], "corrupted": {Corrupt: true}, "another key": {Other: true}} {
		first.Always(f, "Sign")
		if _, err := sign(t, t.Context(), signer); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !strings.Contains(log.String(), "a replica of the key failed; the next is used") {
		t.Errorf("the log doesn't say so:\n%s", log.String())
	}
	second.Always(second.Codes["denied"], "Sign")
	if _, err := sign(t, t.Context(), signer); err == nil {
		t.Error("signed by none")
	}
	first.Mend()
	if _, err := sign(t, t.Context(), signer); err != nil {
		t.Errorf("not recovered: %v", err)
	}
	healthy, ok := signer.(kms.Healthy)
	if !ok {
		t.Fatal("has no Health")
	}
	if err := healthy.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestReplicaDownAtOpen: one region's outage doesn't keep a CA from starting,
// and the replica is taken in when it is back.
func TestReplicaDownAtOpen(t *testing.T) {
	t.Parallel()
	first, second, log := twoRegions(t)
	first.Always(kmstest.Fault{Drop: true})
	signer := first.Open(t)
	if !strings.Contains(log.String(), "can't be reached") {
		t.Errorf("the log doesn't say so:\n%s", log.String())
	}
	first.Mend()
	second.Always(kmstest.Fault{Drop: true})
	if _, err := sign(t, t.Context(), signer); err != nil {
		t.Errorf("the first wasn't opened when it was needed: %v", err)
	}
}

func TestReplicaOfAnotherKey(t *testing.T) {
	t.Parallel()
	first, second, _ := twoRegions(t)
	second.Change(second.Name, 1, func(v *kmstest.Version) { v.Key = kmstest.Key(t, kms.RSA2048) })
	_, err := keystore.Open(t.Context(), first.Ref, first.Options)
	wantError(t, err, "is another key than its replicas")
}

func TestReplicaThatCannotWork(t *testing.T) {
	t.Parallel()
	first, second, _ := twoRegions(t)
	second.Always(second.Codes["denied"], "DescribeKey")
	_, err := keystore.Open(t.Context(), first.Ref, first.Options)
	wantError(t, err, "the principal may not")
}

// TestLater: only a key that can't be reached is opened later. One that is refused,
// disabled, deleted or signs wrongly ends the start.
func TestLater(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		s.Options.Later, s.Options.Public = true, s.Open(t).Public()
		refused := func(name string) {
			t.Helper()
			if _, err := keystore.Open(t.Context(), s.Ref, s.Options); err == nil {
				t.Errorf("%s: opened", name)
			}
			s.Mend()
		}
		for _, code := range []string{"denied", "disabled", "deleted"} {
			s.Always(s.Codes[code], s.Sign)
			refused(code)
		}
		s.Always(s.Codes["denied"], s.Get)
		refused("its description denied")
		s.Always(kmstest.Fault{Corrupt: true}, s.Sign)
		refused("corrupted")
		s.Always(kmstest.Fault{Other: true}, s.Sign)
		refused("signs with another key")
		s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = true })
		refused("disabled")
		s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = false })
		restore := s.Remove(s.Name)
		refused("no key")
		restore()
		s.Always(kmstest.Fault{Drop: true})
		signer := s.Open(t)
		if _, err := sign(t, t.Context(), signer); err == nil {
			t.Error("signed by a key that can't be reached")
		}
		s.Mend()
		if _, err := sign(t, t.Context(), signer); err != nil {
			t.Errorf("not opened when it was needed: %v", err)
		}
	})
}

// hung is a key on this machine in a library that hangs.
type hung struct{}

func (hung) String() string { return "hung:" }

func (hung) Open(ctx context.Context, _ kms.Options) (kms.Signer, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hung) Generate(context.Context, kms.Algorithm, kms.Options) (string, error) { return "", nil }

// TestLaterIsNoTokenThatHangs: each further Open would leave one more call in its library.
func TestLaterIsNoTokenThatHangs(t *testing.T) {
	t.Parallel()
	public := kmstest.Key(t, kms.ECDSAP256).Public()
	synctest.Test(t, func(t *testing.T) {
		all := kms.Registry{{URISchemes: []string{"hung"}, Parse: func(string, kms.Access) (kms.Reference, error) { return hung{}, nil }}}
		_, err := all.Open(t.Context(), "hung:", kms.Options{Later: true, Public: public})
		wantError(t, err, context.DeadlineExceeded.Error())
	})
}
