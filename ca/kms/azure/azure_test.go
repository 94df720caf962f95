package kms_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// TestAzureCredentialRefused: Entra's code is in the error, the secret isn't.
func TestAzureCredentialRefused(t *testing.T) {
	t.Parallel()
	s := standIn(t, "azure", kms.ECDSAP256)
	s.Always(kmstest.Fault{Answer: func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided. Trace"}`)
	}}, "token")
	_, err := kms.Open(t.Context(), s.Ref, s.Options)
	wantError(t, err, "the credential is refused (HTTP 401 AADSTS7000215)")
}

// TestUnversionedIsPinned: the stand-ins fail the test for a signature by
// another version than that which Open found, and a rotation under a running CA
// changes nothing.
func TestUnversionedIsPinned(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		if got := fmt.Sprint(signer); got != s.Pinned {
			t.Errorf("pinned to %s; want %s", got, s.Pinned)
		}
		s.Add(s.Name, kmstest.Key(t, kms.ECDSAP384))
		if err := kms.Try(t.Context(), signer); err != nil {
			t.Error(err)
		}
	})
}
