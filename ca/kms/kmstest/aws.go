package kmstest

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

const (
	awsPrefix = "arn:aws:kms:eu-central-1:111122223333:key/"
	awsID     = "1234abcd-12ab-34cd-56ef-1234567890ab"
	// The keys that seal.
	awsSealing = "aaaaaaaa-12ab-34cd-56ef-1234567890ab"
	awsOther   = "bbbbbbbb-12ab-34cd-56ef-1234567890ab"
)

// aws speaks the wire protocols of AWS KMS and STS.
type aws struct{ *Cloud }

// NewAWS is a stand-in for AWS KMS, with STS. Like the others it makes no keys: tests Add them.
func NewAWS(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	c := &aws{newCloud(t)}
	c.start(c, nil)
	c.Alias("alias/sealing", awsSealing)
	c.Add(awsID, key)
	c.Add(awsSealing, nil)
	c.Add(awsOther, nil)
	return &StandIn{
		Cloud: c.Cloud, Ref: awsPrefix + awsID, Pinned: awsPrefix + awsID, Name: awsID,
		Host: strings.TrimPrefix(c.URL, "http://"), Get: "DescribeKey", Sign: "Sign",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: c.URL, IdentityEndpoint: c.URL},
			Getenv: Environment("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", Secret),
		},
		Codes: map[string]Fault{
			"throttled": {Status: 400, Code: "ThrottlingException"},
			"denied":    {Status: 400, Code: "AccessDeniedException"},
			"disabled":  {Status: 400, Code: "DisabledException"},
			"deleted":   {Status: 400, Code: "KMSInvalidStateException"},
			"internal":  {Status: 500, Code: "KMSInternalException"},
		},
		sealing: Sealing{
			Ref: awsPrefix + awsSealing, Pinned: awsPrefix + awsSealing, Other: awsPrefix + awsOther, Authenticates: true, Unseal: "Decrypt",
			Denied: "allow it kms:DescribeKey and kms:Decrypt, and kms:Encrypt to make a sealed key",
		},
	}
}

func (c *aws) operation(r *http.Request) string {
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		return strings.TrimPrefix(target, "TrentService.")
	}
	return r.FormValue("Action") // STS speaks AWS's query protocol
}

func (c *aws) refuse(w http.ResponseWriter, f Fault) {
	w.WriteHeader(f.Status)
	fmt.Fprintf(w, `{"__type":%q,"message":"as the test says"}`, f.Code)
}

func (c *aws) answer(q request) (any, error) {
	if q.operation == "GetCallerIdentity" {
		return `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::111122223333:user/ca</Arn><UserId>AIDA</UserId><Account>111122223333</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, nil
	}
	var in awsRequest
	if err := json.Unmarshal(q.body, &in); err != nil {
		return nil, err
	}
	name, found := c.find(in.KeyID)
	if !found {
		return nil, awsFault("NotFoundException")
	}
	v, _ := c.at(name, 1)
	if q.operation != "DescribeKey" && q.operation != "GetPublicKey" {
		if in.KeyID != awsPrefix+name {
			c.t.Errorf("%s by %q; want the pinned ARN", q.operation, in.KeyID)
		}
		if v.Disabled {
			return nil, awsFault("DisabledException")
		}
	}
	return c.use(v, name, in, q)
}

func awsFault(code string) Fault { return Fault{Status: http.StatusBadRequest, Code: code} }

// use does what is asked of a key.
func (c *aws) use(v Version, name string, in awsRequest, q request) (any, error) {
	about, err := json.Marshal(in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	switch q.operation {
	case "DescribeKey":
		return map[string]any{"KeyMetadata": c.metadata(name, v)}, nil
	case "GetPublicKey":
		spki, err := x509.MarshalPKIXPublicKey(v.Key.Public())
		return map[string]any{"PublicKey": spki, "SigningAlgorithms": awsAlgorithms(algorithmOf(c.t, v.Key)), "KeyUsage": "SIGN_VERIFY"}, err
	case "Sign":
		if in.MessageType != "DIGEST" {
			c.t.Errorf("signature of type %q; want DIGEST", in.MessageType)
		}
		sig, err := c.signature(q.fault, v.Key, in.Message, signerOpts(strings.HasPrefix(in.SigningAlgorithm, "RSASSA_PSS"), in.SigningAlgorithm))
		return map[string]any{"Signature": sig}, err
	case "Encrypt":
		return map[string]any{"CiphertextBlob": c.seal(name, in.Plaintext, about)}, nil
	case "Decrypt":
		plain, err := c.unseal(name, in.CiphertextBlob, about)
		if err != nil {
			err = awsFault("InvalidCiphertextException")
		}
		return map[string]any{"Plaintext": plain}, err
	default:
		return nil, fmt.Errorf("%s isn't expected", q.operation)
	}
}

// awsRequest holds the members of all requests.
type awsRequest struct {
	KeyID            string `json:"KeyId"`
	Message          []byte
	MessageType      string
	SigningAlgorithm string

	Plaintext, CiphertextBlob []byte
	EncryptionContext         map[string]string
}

// find is the name of the key of an id, ARN or alias.
func (c *aws) find(id string) (string, bool) {
	if i := strings.LastIndex(id, "alias/"); i >= 0 {
		id = c.named(id[i:])
	}
	name := strings.TrimPrefix(id, awsPrefix)
	return name, len(c.Versions(name)) > 0
}

func (c *aws) metadata(name string, v Version) map[string]any {
	usage, spec, state := "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", "Enabled"
	if v.Key != nil {
		usage, spec = "SIGN_VERIFY", awsSpec(algorithmOf(c.t, v.Key))
	}
	if v.Disabled {
		state = "Disabled"
	}
	return map[string]any{"Arn": awsPrefix + name, "KeyId": name, "KeySpec": spec, "KeyUsage": usage, "KeyState": state}
}

// awsSpec is AWS's name of a kind of key.
func awsSpec(a kms.Algorithm) string {
	if curve := a.Curve(); curve != nil {
		return "ECC_NIST_" + strings.Replace(curve.Params().Name, "-", "", 1)
	}
	return fmt.Sprintf("RSA_%d", a.Bits())
}

func awsAlgorithms(a kms.Algorithm) []string {
	if a.Curve() != nil {
		return []string{fmt.Sprintf("ECDSA_SHA_%d", 8*a.Hash().Size())}
	}
	return []string{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
}
