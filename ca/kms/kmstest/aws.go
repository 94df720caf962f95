package kmstest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
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
)

// AWSSpecs are AWS's names of the kinds of key.
var AWSSpecs = map[kms.Algorithm]string{
	kms.ECDSAP256: "ECC_NIST_P256", kms.ECDSAP384: "ECC_NIST_P384", kms.ECDSAP521: "ECC_NIST_P521",
	kms.RSA2048: "RSA_2048", kms.RSA3072: "RSA_3072", kms.RSA4096: "RSA_4096",
}

// aws speaks the wire protocols of AWS KMS and STS.
type aws struct {
	*Cloud
	aliases map[string]string // to names of keys
}

// NewAWS is a stand-in for AWS KMS, with STS.
func NewAWS(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	c := &aws{Cloud: newCloud(t), aliases: make(map[string]string)}
	c.start(c, nil)
	c.Add(awsID, key)
	return &StandIn{
		Cloud: c.Cloud, protocol: c, Ref: awsPrefix + awsID, Pinned: awsPrefix + awsID, Name: awsID,
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
	}
}

func (c *aws) operation(r *http.Request) string {
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		return strings.TrimPrefix(target, "TrentService.")
	}
	return r.FormValue("Action") // STS speaks AWS's query protocol
}

func (c *aws) refuse(w http.ResponseWriter, f Fault) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(f.Status)
	fmt.Fprintf(w, `{"__type":%q,"message":"as the test says"}`, f.Code)
}

func (c *aws) answer(w http.ResponseWriter, r *http.Request, operation string, body []byte, f Fault) {
	switch operation {
	case "AssumeRoleWithWebIdentity":
		c.assume(w, r)
		return
	case "GetCallerIdentity":
		fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::111122223333:user/ca</Arn><UserId>AIDA</UserId><Account>111122223333</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
		return
	}
	var in awsRequest
	if err := json.Unmarshal(body, &in); err != nil {
		c.t.Errorf("%s: %v", operation, err)
	}
	switch operation {
	case "CreateKey":
		c.create(w, in)
		return
	case "CreateAlias":
		c.alias(w, in)
		return
	}
	name, found := c.find(in.KeyID)
	if !found {
		c.refuse(w, Fault{Status: 400, Code: "NotFoundException"})
		return
	}
	v, _ := c.at(name, 1)
	arn := awsPrefix + name
	var out any
	switch operation {
	case "DescribeKey":
		out = map[string]any{"KeyMetadata": awsMetadata(name, algorithmOf(c.t, v.Key), v.Disabled)}
	case "GetPublicKey":
		spki, err := x509.MarshalPKIXPublicKey(v.Key.Public())
		if err != nil {
			c.t.Error(err)
		}
		out = map[string]any{"PublicKey": spki, "SigningAlgorithms": awsAlgorithms(algorithmOf(c.t, v.Key)), "KeyUsage": "SIGN_VERIFY"}
	case "Sign":
		if in.KeyID != arn || in.MessageType != "DIGEST" {
			c.t.Errorf("signature by %q of type %q; want the pinned ARN and DIGEST", in.KeyID, in.MessageType)
		}
		if v.Disabled {
			c.refuse(w, Fault{Status: 400, Code: "DisabledException"})
			return
		}
		sig, err := c.signature(f, v.Key, in.Message, awsSigns(in.SigningAlgorithm))
		if err != nil {
			c.t.Error(err)
		}
		out = map[string]any{"Signature": sig, "KeyId": arn}
	default:
		c.t.Errorf("%s isn't expected", operation)
	}
	_ = json.NewEncoder(w).Encode(out) // the client may have gone
}

// assume is STS's answer to a web identity.
func (c *aws) assume(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("WebIdentityToken") != "service-account" || r.FormValue("RoleArn") != "arn:aws:iam::111122223333:role/ca" {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized</Message></Error></ErrorResponse>`)
		return
	}
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, Secret)
}

// awsRequest holds the members of all requests.
type awsRequest struct {
	KeyID            string `json:"KeyId"`
	KeySpec          string
	KeyUsage         string
	AliasName        string
	TargetKeyID      string `json:"TargetKeyId"`
	Message          []byte
	MessageType      string
	SigningAlgorithm string
}

// find is the name of the key of an id, ARN or alias.
func (c *aws) find(id string) (string, bool) {
	if i := strings.LastIndex(id, "alias/"); i >= 0 {
		c.mu.Lock()
		id = c.aliases[id[i:]]
		c.mu.Unlock()
	}
	name := strings.TrimPrefix(id, awsPrefix)
	return name, len(c.versions(name)) > 0
}

// Alias points an alias of a stand-in of AWS KMS at its key.
func (s *StandIn) Alias(alias string) {
	c, ok := s.protocol.(*aws)
	if !ok {
		s.t.Fatal("only AWS KMS has aliases")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aliases[alias] = s.Name
}

func (c *aws) create(w http.ResponseWriter, in awsRequest) {
	for a, spec := range AWSSpecs {
		if spec != in.KeySpec || in.KeyUsage != "SIGN_VERIFY" {
			continue
		}
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails
		text := hex.EncodeToString(id)
		name := text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
		c.Add(name, Key(c.t, a))
		_ = json.NewEncoder(w).Encode(map[string]any{"KeyMetadata": awsMetadata(name, a, false)})
		return
	}
	c.refuse(w, Fault{Status: 400, Code: "ValidationException"})
}

func (c *aws) alias(w http.ResponseWriter, in awsRequest) {
	name, found := c.find(in.TargetKeyID)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !found:
		c.refuse(w, Fault{Status: 400, Code: "NotFoundException"})
	case c.aliases[in.AliasName] != "":
		c.refuse(w, Fault{Status: 400, Code: "AlreadyExistsException"})
	default:
		c.aliases[in.AliasName] = name
		fmt.Fprint(w, "{}")
	}
}

func awsMetadata(name string, a kms.Algorithm, disabled bool) map[string]any {
	state := "Enabled"
	if disabled {
		state = "Disabled"
	}
	return map[string]any{"Arn": awsPrefix + name, "KeyId": name, "KeySpec": AWSSpecs[a], "KeyUsage": "SIGN_VERIFY", "KeyState": state}
}

// awsSigns is what a signing algorithm's name means.
func awsSigns(name string) crypto.SignerOpts {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[name[len(name)-3:]]
	return pssOr(strings.HasPrefix(name, "RSASSA_PSS"), hash)
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
