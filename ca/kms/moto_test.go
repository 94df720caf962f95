//go:build conformance

package kms_test

import (
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// TestMotoConformance runs the suite against moto, which internal/conformance/kms.sh starts.
func TestMotoConformance(t *testing.T) {
	endpoint := os.Getenv("MAYFLY_MOTO")
	if endpoint == "" {
		t.Fatal("MAYFLY_MOTO is not set: run internal/conformance/kms.sh")
	}
	api := awskms.New(awskms.Options{
		Region: "eu-central-1", BaseEndpoint: &endpoint,
		Credentials: awscredentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "secret", ""),
	})
	kmstest.Run(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
		made, err := api.CreateKey(t.Context(), &awskms.CreateKeyInput{
			KeySpec: types.KeySpec(kmstest.AWSSpecs[a]), KeyUsage: types.KeyUsageTypeSignVerify,
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := kms.Open(t.Context(), aws.ToString(made.KeyMetadata.Arn), kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: endpoint, IdentityEndpoint: endpoint},
			Getenv: kmstest.Environment("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", "secret"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { kms.Close(s) })
		return s
	})
}
