package kms_test

import (
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestCredentialHalfSet: only what is named is looked at, and half of it is an
// error, never a reason to take another.
func TestCredentialHalfSet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		vendor     string
		credential kms.Credential
		env        []string
		want       string
	}{
		{"aws", kms.CredentialEnv, []string{"AWS_ACCESS_KEY_ID", "AKIA"}, "half of it is set: AWS_SECRET_ACCESS_KEY is missing"},
		{"aws", kms.CredentialEnv, []string{"AWS_SECRET_ACCESS_KEY", kmstest.Secret}, "half of it is set: AWS_ACCESS_KEY_ID is missing"},
		{"aws", kms.CredentialAuto, []string{"AWS_ACCESS_KEY_ID", "AKIA"}, "credential env: half of it is set: AWS_SECRET_ACCESS_KEY is missing"},
		{"aws", kms.CredentialWorkload, []string{"AWS_ROLE_ARN", "arn:aws:iam::1:role/x"}, "half of it is set: AWS_WEB_IDENTITY_TOKEN_FILE is missing"},
		{"aws", kms.CredentialWorkload, []string{"AWS_ACCESS_KEY_ID", "AKIA", "AWS_SECRET_ACCESS_KEY", "x"}, "none is mounted here"},
		{"aws", kms.CredentialWorkload, []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/x"}, "names example.com over http: https is expected"},
		{"aws", kms.CredentialManaged, []string{"AWS_EC2_METADATA_DISABLED", "true"}, "AWS_EC2_METADATA_DISABLED is true"},
		{"aws", kms.CredentialProfile, []string{"AWS_CONFIG_FILE", "/nowhere/config", "AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials"}, "profile default: "},
		{"aws", kms.CredentialCLI, nil, `AWS KMS has no credential "cli"`},
		{"azure", kms.CredentialEnv, []string{"AZURE_TENANT_ID", "t", "AZURE_CLIENT_ID", "c"}, "half of it is set: AZURE_CLIENT_SECRET is missing"},
		{"azure", kms.CredentialAuto, []string{"AZURE_TENANT_ID", "t", "AZURE_CLIENT_ID", "c"}, "credential env: half of it is set"},
		{"azure", kms.CredentialEnv, []string{"AZURE_CLIENT_SECRET", kmstest.Secret, "AZURE_CLIENT_CERTIFICATE_PATH", "/x"}, "are both set: keep one"},
		{"azure", kms.CredentialWorkload, []string{"AZURE_TENANT_ID", "t", "AZURE_CLIENT_ID", "c"}, "AZURE_FEDERATED_TOKEN_FILE is missing"},
		{"azure", kms.CredentialProfile, nil, `Azure Key Vault has no credential "profile"`},
	} {
		s := standIn(t, tt.vendor, kms.ECDSAP256)
		s.Options.Access.Credential, s.Options.Getenv = tt.credential, kmstest.Environment(tt.env...)
		_, err := keystore.Open(t.Context(), s.Ref, s.Options)
		wantError(t, err, tt.want)
	}
}

func TestAccessCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		key    setting.KeyRef
		access kms.Access
		want   string
	}{
		{"file:key.pem", kms.Access{}, ""},
		{"alias/x", kms.Access{Credential: kms.CredentialEnv}, ""},
		{"alias/x", kms.Access{}, "a.credential: required for a key in AWS KMS: one of env, workload"},
		{"alias/x", kms.Access{Credential: "password"}, `a.credential: "password" is unknown`},
		{"alias/x", kms.Access{Credential: kms.CredentialEnv, Profile: "p"}, "a.profile: belongs to"},
		{"alias/x", kms.Access{Credential: kms.CredentialEnv, Endpoint: "http://example.com"}, "a.endpoint: must be https"},
		{"file:key.pem", kms.Access{Credential: kms.CredentialEnv}, "a.credential: a file takes no credential"},
		{"alias/x", kms.Access{Credential: kms.CredentialEnv, Replicas: []kms.Replica{{Key: "nokey"}}}, "a.replicas[0].key: "},
	} {
		var f setting.Faults
		keystore.CheckAccess(&tt.access, "a", tt.key, &f)
		if tt.want == "" {
			if err := f.Err(); err != nil {
				t.Errorf("%s: %v", tt.key, err)
			}
			continue
		}
		wantError(t, f.Err(), tt.want)
	}
}
