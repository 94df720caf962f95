package kms_test

import (
	"crypto"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// twoRegions are two stand-ins of one key, the second as the first's replica.
func twoRegions(t *testing.T) (first, second *standIn, log *lockedLog) {
	t.Helper()
	first, second, log = newAWS(t, kms.ECDSAP256), newAWS(t, kms.ECDSAP256), new(lockedLog)
	first.options.Logger = log.logger()
	first.options.Access.Replicas = []kms.Replica{{Key: setting.KeyRef(second.ref), Endpoint: second.options.Access.Endpoint}}
	return first, second, log
}

func sign(t *testing.T, s kms.Signer) error {
	t.Helper()
	_, err := s.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256)
	return err
}

func TestFailover(t *testing.T) {
	t.Parallel()
	first, second, log := twoRegions(t)
	signer := first.open(t)
	before := second.count("Sign")
	if err := sign(t, signer); err != nil || second.count("Sign") != before {
		t.Fatalf("the first replica isn't the first: %v", err)
	}
	for what, f := range map[string]fault{"denied": first.codes["denied"], "corrupted": {corrupt: true}, "another key": {other: true}} {
		first.always("Sign", f)
		if err := sign(t, signer); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !strings.Contains(log.String(), "a replica of the key failed; the next is used") {
		t.Errorf("the log doesn't say so:\n%s", log.String())
	}
	second.always("Sign", second.codes["denied"])
	if err := sign(t, signer); err == nil {
		t.Error("signed by none")
	}
	first.breaks(nil)
	if err := sign(t, signer); err != nil {
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
	first.breaks(func(string, int) fault { return fault{drop: true} })
	signer := first.open(t)
	if !strings.Contains(log.String(), "can't be reached") {
		t.Errorf("the log doesn't say so:\n%s", log.String())
	}
	first.breaks(nil)
	second.breaks(func(string, int) fault { return fault{drop: true} })
	if err := sign(t, signer); err != nil {
		t.Errorf("the first wasn't opened when it was needed: %v", err)
	}
}

func TestReplicaOfAnotherKey(t *testing.T) {
	t.Parallel()
	first, second, _ := twoRegions(t)
	second.change(func() { second.key = testKey(t, kms.RSA2048) })
	second.algorithm = kms.RSA2048
	_, err := kms.Open(t.Context(), first.ref, first.options)
	wantError(t, err, "is another key than its replicas")
}

func TestReplicaThatCannotWork(t *testing.T) {
	t.Parallel()
	first, second, _ := twoRegions(t)
	second.always("DescribeKey", second.codes["denied"])
	_, err := kms.Open(t.Context(), first.ref, first.options)
	wantError(t, err, "the principal may not")
}
