package aws_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// TestAliasIsPinned: an alias that is pointed elsewhere under a running CA
// changes nothing, since the key's ARN is used: the stand-in fails the test for
// a signature by anything else.
func TestAliasIsPinned(t *testing.T) {
	t.Parallel()
	s := kmstest.NewAWS(t, kmstest.Key(t, kms.ECDSAP256))
	s.Alias("alias/issuing", s.Name)
	s.Ref, s.Options.Access.Region = "alias/issuing", "eu-central-1"
	if got := fmt.Sprint(s.Open(t)); got != s.Pinned {
		t.Errorf("pinned to %s", got)
	}
}

func TestNeedsARegion(t *testing.T) {
	t.Parallel()
	s := kmstest.NewAWS(t, kmstest.Key(t, kms.ECDSAP256))
	_, err := keystore.Open(t.Context(), "alias/issuing", s.Options)
	if want := "key awskms:alias/issuing: in which region? Set it"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
}
