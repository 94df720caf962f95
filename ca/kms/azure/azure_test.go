package azure_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// TestCredentialRefused: Entra's code is in the error, the secret isn't.
func TestCredentialRefused(t *testing.T) {
	t.Parallel()
	s := kmstest.NewAzure(t, kmstest.Key(t, kms.ECDSAP256))
	s.Always(kmstest.Fault{Answer: func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided. Trace"}`)
	}}, "token")
	_, err := keystore.Open(t.Context(), s.Ref, s.Options)
	if want := "the credential is refused (HTTP 401 AADSTS7000215)"; err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), kmstest.Secret) {
		t.Errorf("%v; want %q and no secret", err, want)
	}
}
