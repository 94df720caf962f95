package kms_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

const awsARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// newAWS is a stand-in for AWS KMS and STS: their wire protocol over real keys.
func newAWS(t *testing.T, a kms.Algorithm) *standIn {
	t.Helper()
	c := newCloud(t, a)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveAWS(t, c, w, r) }))
	c.closing(t, server)
	return &standIn{
		cloud: c, ref: awsARN, host: strings.TrimPrefix(server.URL, "http://"), get: "DescribeKey", signing: "Sign",
		options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL},
			Getenv: environment("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", "do-not-log-me"),
		},
		codes: map[string]fault{
			"throttled": {status: 400, code: "ThrottlingException"},
			"denied":    {status: 400, code: "AccessDeniedException"},
			"disabled":  {status: 400, code: "DisabledException"},
			"deleted":   {status: 400, code: "KMSInvalidStateException"},
			"internal":  {status: 500, code: "KMSInternalException"},
		},
	}
}

var awsKeySpecs = map[kms.Algorithm]string{
	kms.ECDSAP256: "ECC_NIST_P256", kms.ECDSAP384: "ECC_NIST_P384", kms.ECDSAP521: "ECC_NIST_P521",
	kms.RSA2048: "RSA_2048", kms.RSA3072: "RSA_3072", kms.RSA4096: "RSA_4096",
}

// awsSigns is what a signing algorithm's name means.
func awsSigns(name string) crypto.SignerOpts {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[name[len(name)-3:]]
	if strings.HasPrefix(name, "RSASSA_PSS") {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

func awsAlgorithms(a kms.Algorithm) []string {
	if e, ok := map[kms.Algorithm]string{kms.ECDSAP256: "ECDSA_SHA_256", kms.ECDSAP384: "ECDSA_SHA_384", kms.ECDSAP521: "ECDSA_SHA_512"}[a]; ok {
		return []string{e}
	}
	return []string{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
}

func serveAWS(t *testing.T, c *cloud, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	target := r.Header.Get("X-Amz-Target")
	if target == "" { // STS speaks AWS's query protocol
		if _, ok := c.begin(r, "GetCallerIdentity"); ok {
			fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::111122223333:user/ca</Arn><UserId>AIDA</UserId><Account>111122223333</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
		}
		return
	}
	operation := strings.TrimPrefix(target, "TrentService.")
	f, ok := c.begin(r, operation)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if f.status != 0 {
		w.WriteHeader(f.status)
		fmt.Fprintf(w, `{"__type":%q,"message":"as the test says"}`, f.code)
		return
	}
	var in struct {
		KeyID            string `json:"KeyId"`
		Message          []byte
		MessageType      string
		SigningAlgorithm string
	}
	if err := json.Unmarshal(body, &in); err != nil {
		t.Errorf("%s: %v", operation, err)
	}
	var out any
	switch operation {
	case "DescribeKey":
		state := "Enabled"
		if !c.isEnabled() {
			state = "Disabled"
		}
		out = map[string]any{"KeyMetadata": map[string]any{"Arn": awsARN, "KeyId": in.KeyID, "KeySpec": awsKeySpecs[c.algorithm], "KeyUsage": "SIGN_VERIFY", "KeyState": state}}
	case "GetPublicKey":
		spki, err := x509.MarshalPKIXPublicKey(c.public())
		if err != nil {
			t.Error(err)
		}
		out = map[string]any{"PublicKey": spki, "SigningAlgorithms": awsAlgorithms(c.algorithm), "KeyUsage": "SIGN_VERIFY"}
	case "Sign":
		if in.KeyID != awsARN || in.MessageType != "DIGEST" {
			t.Errorf("signature by %q of type %q; want the pinned ARN and DIGEST", in.KeyID, in.MessageType)
		}
		sig, err := c.sign(f, in.Message, awsSigns(in.SigningAlgorithm))
		if err != nil {
			t.Error(err)
		}
		out = map[string]any{"Signature": sig, "KeyId": awsARN}
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		return // the client went away
	}
}

func (c *cloud) isEnabled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enabled
}

func (c *cloud) public() crypto.PublicKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.key.Public()
}

// TestAWSAliasIsPinned: an alias that is pointed elsewhere under a running CA
// changes nothing, since the key's ARN is used.
func TestAWSAliasIsPinned(t *testing.T) {
	t.Parallel()
	s := newAWS(t, kms.ECDSAP256)
	s.ref, s.options.Access.Region = "alias/issuing", "eu-central-1"
	signer := s.open(t) // the stand-in fails the test for a signature by anything but the ARN
	if got := fmt.Sprint(signer); got != awsARN {
		t.Errorf("pinned to %s", got)
	}
}

func TestAWSNeedsARegion(t *testing.T) {
	t.Parallel()
	s := newAWS(t, kms.ECDSAP256)
	_, err := kms.Open(t.Context(), "alias/issuing", s.options)
	wantError(t, err, "key awskms:alias/issuing: in which region? Set it")
}
