package kms_test

import (
	"fmt"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// TestAWSAliasIsPinned: an alias that is pointed elsewhere under a running CA
// changes nothing, since the key's ARN is used: the stand-in fails the test for
// a signature by anything else.
func TestAWSAliasIsPinned(t *testing.T) {
	t.Parallel()
	s := standIn(t, "aws", kms.ECDSAP256)
	s.Alias("alias/issuing")
	s.Ref, s.Options.Access.Region = "alias/issuing", "eu-central-1"
	if got := fmt.Sprint(s.Open(t)); got != s.Pinned {
		t.Errorf("pinned to %s", got)
	}
}

func TestAWSNeedsARegion(t *testing.T) {
	t.Parallel()
	s := standIn(t, "aws", kms.ECDSAP256)
	_, err := kms.Open(t.Context(), "alias/issuing", s.Options)
	wantError(t, err, "key awskms:alias/issuing: in which region? Set it")
}
