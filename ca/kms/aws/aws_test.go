package aws_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
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

// TestSTSDoesNotSay: the key is used all the same, and what STS says instead, which
// may repeat the request with its session token, isn't logged whole.
func TestSTSDoesNotSay(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := kmstest.NewAWS(t, kmstest.Key(t, kms.ECDSAP256))
	s.Options.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s.Always(kmstest.Fault{Answer: func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<ErrorResponse><Error><Type>Sender</Type><Code>SignatureDoesNotMatch</Code><Message>"+
			"The Canonical String for this request should have been "+strings.Repeat("x", 300)+kmstest.Secret+"</Message></Error></ErrorResponse>")
	}}, "GetCallerIdentity")
	s.Open(t)
	for _, want := range []string{"STS didn't say whose", "SignatureDoesNotMatch", "unknown: STS didn't say"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), kmstest.Secret) {
		t.Errorf("the log has a secret:\n%s", log.String())
	}
}
