//go:build conformance

package kms_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// TestMotoConformance runs the suite against moto, which internal/tools/conformance/kms.sh
// starts, with keys that are made there by their aliases.
func TestMotoConformance(t *testing.T) {
	endpoint := os.Getenv("MAYFLY_MOTO")
	if endpoint == "" {
		t.Fatal("MAYFLY_MOTO is not set: run internal/tools/conformance/kms.sh")
	}
	o := kms.Options{
		Access: kms.Access{Credential: kms.CredentialEnv, Region: "eu-central-1", Endpoint: endpoint, IdentityEndpoint: endpoint},
		Getenv: kmstest.Environment("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", "secret"),
	}
	runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
		alias := "alias/" + strings.ToLower(string(a))
		arn, err := keystore.Generate(t.Context(), alias, a, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keystore.Generate(t.Context(), alias, a, o); !errors.Is(err, kms.ErrKeyExists) {
			t.Errorf("made again: %v; want ErrKeyExists", err)
		}
		if got, ok := opened(t, alias, o).(interface{ String() string }); !ok || got.String() != arn {
			t.Errorf("the alias opens %v; want %s", got, arn)
		}
		return opened(t, arn, o)
	})
}
