package kms_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// The credentials that a platform or a vendor's command line gives out, against
// stand-ins of who gives them: no vendor's own is here.

// written is a file with the text, or a program.
func written(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// hands is a server on this machine that gives out JSON.
func hands(t *testing.T, wanted func(r *http.Request) bool, what map[string]any) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !wanted(r) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(what) // the client may have gone
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// assumeRole is STS's answer to a web identity.
func assumeRole(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("WebIdentityToken") != "service-account" || r.FormValue("RoleArn") != "arn:aws:iam::111122223333:role/ca" {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized</Message></Error></ErrorResponse>`)
		return
	}
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, kmstest.Secret)
}

func TestCredentialSources(t *testing.T) { // not parallel: some SDKs read the process's environment
	expiry := time.Now().Add(time.Hour)
	token := "e30.eyJ0aWQiOiJ0Iiwib2lkIjoibyIsImFwcGlkIjoiYSJ9.s" // tenant t, object o, app a
	container := hands(t, func(r *http.Request) bool { return r.Header.Get("Authorization") == "pod-token" }, map[string]any{
		"AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": kmstest.Secret, "Token": "t", "Expiration": expiry.UTC().Format(time.RFC3339),
	})
	service := hands(t, func(r *http.Request) bool { return r.Header.Get("X-Identity-Header") == "header" }, map[string]any{
		"access_token": token, "expires_on": fmt.Sprint(expiry.Unix()), "resource": "https://vault.azure.net", "token_type": "Bearer",
	})
	federation := hands(t, func(r *http.Request) bool { return r.FormValue("subject_token") == "service-account" }, map[string]any{
		"access_token": kmstest.GCPToken, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": 3600,
	})
	jwt := written(t, "jwt", "service-account")
	process := written(t, "process", fmt.Sprintf("#!/bin/sh\necho '{\"Version\":1,\"AccessKeyId\":\"ASIAEXAMPLE\",\"SecretAccessKey\":%q}'\n", kmstest.Secret))
	profiles := written(t, "config", "[profile static]\naws_access_key_id=AKIAEXAMPLE\naws_secret_access_key="+kmstest.Secret+"\n[profile program]\ncredential_process="+process+"\n")
	az := written(t, "az", fmt.Sprintf("#!/bin/sh\necho '{\"accessToken\":%q,\"expiresOn\":%q,\"expires_on\":%d}'\n", token, expiry.Format("2006-01-02 15:04:05.000000"), expiry.Unix()))
	external := written(t, "external.json", fmt.Sprintf(`{"type":"external_account","audience":"//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x",
		"subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":%q,"credential_source":{"file":%q}}`, federation+"/v1/token", jwt))
	_, bundle := kmstest.Certificate(t, "kms.test")
	home := filepath.Dir(written(t, ".vault-token", kmstest.VaultToken))
	for _, tt := range []struct {
		name, vendor string
		credential   kms.Credential
		profile      string
		env          []string // for us
		process      []string // for the SDK
		logged       string
	}{
		{"web identity", "aws", kms.CredentialWorkload, "", []string{"AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/ca", "AWS_WEB_IDENTITY_TOKEN_FILE", jwt}, nil, "as arn:aws:iam::111122223333:role/ca"},
		{"container", "aws", kms.CredentialWorkload, "", []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI", container, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", written(t, "pod", "pod-token\n")}, nil, "container " + container},
		{"static", "aws", kms.CredentialProfile, "static", []string{"AWS_CONFIG_FILE", profiles, "AWS_SHARED_CREDENTIALS_FILE", os.DevNull}, []string{"AWS_CA_BUNDLE", string(bundle)}, "profile static"},
		{"a program", "aws", kms.CredentialProfile, "program", []string{"AWS_CONFIG_FILE", profiles, "AWS_SHARED_CREDENTIALS_FILE", os.DevNull}, nil, "profile program"},
		{"federated", "azure", kms.CredentialWorkload, "", []string{"AZURE_TENANT_ID", kmstest.AzureTenant, "AZURE_CLIENT_ID", "app", "AZURE_FEDERATED_TOKEN_FILE", jwt}, nil, "workload identity, app app"},
		{"App Service", "azure", kms.CredentialManaged, "", nil, []string{"IDENTITY_ENDPOINT", service, "IDENTITY_HEADER", "header"}, "the machine's own managed identity"},
		{"az", "azure", kms.CredentialCLI, "", nil, []string{"PATH", filepath.Dir(az) + ":/usr/bin:/bin"}, "who is logged in to az"},
		{"federation", "gcp", kms.CredentialWorkload, "", []string{"GOOGLE_APPLICATION_CREDENTIALS", external}, nil, "workload"},
		{"logged in", "vault", kms.CredentialCLI, "", []string{"HOME", home}, nil, ".vault-token"},
	} {
		t.Run(tt.vendor+"/"+tt.name, func(t *testing.T) {
			for i := 0; i+1 < len(tt.process); i += 2 {
				t.Setenv(tt.process[i], tt.process[i+1])
			}
			var log lockedLog
			s := standIn(t, tt.vendor, kms.ECDSAP256)
			s.Always(kmstest.Fault{Answer: assumeRole}, "AssumeRoleWithWebIdentity")
			s.Options.Access.Credential, s.Options.Access.Profile = tt.credential, tt.profile
			s.Options.Getenv, s.Options.Logger = kmstest.Environment(tt.env...), log.logger()
			if err := kms.Try(t.Context(), s.Open(t)); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), tt.logged) || strings.Contains(log.String(), kmstest.Secret) {
				t.Errorf("logged %s", log.String())
			}
		})
	}
}
