// Package aws opens, makes and seals with keys in AWS KMS.
package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Backend keeps keys in AWS KMS.
func Backend() *kms.Backend {
	return &kms.Backend{
		Name: "aws", Title: "AWS KMS", URISchemes: []string{"awskms"}, Claims: claims, Parse: parse,
		Credentials: []kms.Credential{kms.CredentialEnv, kms.CredentialWorkload, kms.CredentialManaged, kms.CredentialProfile, kms.CredentialAuto},
	}
}

// rights are of IAM: KMS developer guide, "Actions, resources and condition keys".
var rights = kms.Rights{
	Signing: "allow it kms:DescribeKey, kms:GetPublicKey and kms:Sign",
	Sealing: "allow it kms:DescribeKey and kms:Decrypt, and kms:Encrypt to make a sealed key",
	Making:  "allow it kms:DescribeKey, kms:CreateKey and kms:CreateAlias",
}

// specs are the kinds of key that sign here: KMS developer guide, "Key spec reference".
var specs = map[types.KeySpec]kms.Algorithm{
	types.KeySpecEccNistP256: kms.ECDSAP256,
	types.KeySpecEccNistP384: kms.ECDSAP384,
	types.KeySpecEccNistP521: kms.ECDSAP521,
	types.KeySpecRsa2048:     kms.RSA2048,
	types.KeySpecRsa3072:     kms.RSA3072,
	types.KeySpecRsa4096:     kms.RSA4096,
}

// schemeName is AWS's name of a signature scheme.
func schemeName(s kms.SignatureScheme) string {
	padding := "RSASSA_PKCS1_V1_5"
	switch {
	case s.Key.Curve() != nil:
		padding = "ECDSA"
	case s.PSS:
		padding = "RSASSA_PSS"
	}
	return padding + "_SHA_" + strconv.Itoa(8*s.Hash.Size())
}

// client reaches one key.
type client struct {
	*kms.Service

	ref    reference
	region string
	api    *awskms.Client
	id     string // the key's ARN once it is known: an alias may be pointed elsewhere
}

// Client needs the key's region.
func (r reference) Client(ctx context.Context, o kms.Options) (kms.Client, error) {
	c := &client{ref: r, id: r.id, region: cmp.Or(r.region, o.Access.Region, o.FirstSet("AWS_REGION", "AWS_DEFAULT_REGION"))}
	if !regionForm.MatchString(c.region) {
		return nil, fmt.Errorf("in which region? Set it (region %q isn't one), or name the key by its ARN", kms.Abridged(c.region))
	}
	endpoint, err := awskms.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, awskms.EndpointParameters{
		Region: aws.String(c.region), Endpoint: optional(o.Access.Endpoint), UseFIPS: aws.Bool(false), UseDualStack: aws.Bool(false),
	})
	if err != nil {
		return nil, fmt.Errorf("region %s: %w", c.region, err)
	}
	c.Service, err = o.NewService(endpoint.URI.Host, rights, classify)
	return c, err
}

// optional is nil for "".
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Authenticate makes the client of the SDK.
func (c *client) Authenticate(ctx context.Context, o kms.Options) error {
	provider, source, err := kms.Chosen(o, firstSetUp, func(name kms.Credential) (aws.CredentialsProvider, string, error) {
		return named(ctx, name, o, c.region, c.HTTP)
	})
	if err != nil {
		return err
	}
	provider = aws.NewCredentialsCache(provider)
	c.api = awskms.New(awskms.Options{
		Region: c.region, BaseEndpoint: optional(o.Access.Endpoint), HTTPClient: c.HTTP,
		Credentials: provider, Retryer: aws.NopRetryer{}, // Call has the one budget
	})
	return c.Identify(ctx, o, c.ref, source, func(ctx context.Context) ([]slog.Attr, error) {
		if _, err := provider.Retrieve(ctx); err != nil {
			return nil, &tokenError{err}
		}
		return []slog.Attr{slog.String("principal", c.principal(ctx, newSTS(o, c.region, c.HTTP, provider)))}, nil
	})
}

// identityTimeout is how long STS may take to say whose a credential is: that is
// for the log alone, and the time for the key goes with it.
const identityTimeout = 3 * time.Second

// principal is whose credential it is. Where STS can't be reached, as behind a
// private endpoint for KMS alone, the key is used all the same: AWS itself says
// who may.
func (c *client) principal(ctx context.Context, api *sts.Client) string {
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	who, err := api.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		c.Logger.WarnContext(ctx, "STS didn't say whose the credential of a key is", slog.String("key", c.id), slog.String("error", kms.OneLine(err.Error())))
		return "unknown: STS didn't say"
	}
	return aws.ToString(who.Arn)
}

func newSTS(o kms.Options, region string, client aws.HTTPClient, provider aws.CredentialsProvider) *sts.Client {
	return sts.New(sts.Options{
		Region: region, BaseEndpoint: optional(o.Access.IdentityEndpoint), HTTPClient: client, Credentials: provider, Retryer: aws.NopRetryer{},
	})
}

// tokenError is a credential that gives no token.
type tokenError struct{ cause error }

func (e *tokenError) Error() string { return "the credential gives no token: " + e.cause.Error() }

func (e *tokenError) Unwrap() error { return e.cause }

// codeDenied is the code of a principal that lacks a right.
const codeDenied = "AccessDeniedException"

// codes says what AWS's error codes mean: KMS API reference, "Common errors" and
// those of each action. Several are generic, so codes are matched.
var codes = map[string]kms.Classified{
	codeDenied:                    kms.OutcomeDenied.Text("the principal may not"),
	"AccessDenied":                kms.OutcomeDenied.Text("the principal may not"),
	"UnrecognizedClientException": kms.OutcomeDenied.Text("AWS doesn't know the credential: check it"),
	"InvalidClientTokenId":        kms.OutcomeDenied.Text("AWS doesn't know the credential: check it"),
	"InvalidSignatureException":   kms.OutcomeDenied.Text("the credential's secret doesn't fit its id, or the clock is off"),
	"SignatureDoesNotMatch":       kms.OutcomeDenied.Text("the credential's secret doesn't fit its id, or the clock is off"),
	"ExpiredTokenException":       kms.OutcomeDenied.Text("the credential has expired"),
	"ExpiredToken":                kms.OutcomeDenied.Text("the credential has expired"),
	"NotFoundException":           kms.OutcomeUnusable.Text("there is no such key in this region and account"),
	"DisabledException":           kms.OutcomeUnusable.Text("the key is disabled: enable it"),
	"KMSInvalidStateException":    kms.OutcomeUnusable.Text("the key's state doesn't let it be used: enable it, or cancel its deletion"),
	"InvalidKeyUsageException":    kms.OutcomeUnusable.Text("the key's usage isn't for that"),
	"KeyUnavailableException":     kms.OutcomeUnavailable.Text("the key isn't available at the moment"),
	"DependencyTimeoutException":  kms.OutcomeUnavailable.Text("the service timed out within itself"),
	"KMSInternalException":        kms.OutcomeUnavailable.Text("the service failed within itself"),
	"InternalFailure":             kms.OutcomeUnavailable.Text("the service failed within itself"),
	"ServiceUnavailable":          kms.OutcomeUnavailable.Text("the service isn't available"),
	"ThrottlingException":         kms.OutcomeThrottled.Text("the request quota is used up"),
	"Throttling":                  kms.OutcomeThrottled.Text("the request quota is used up"),
	"LimitExceededException":      kms.OutcomeThrottled.Text("a quota is used up"),
}

// classify says what AWS's errors mean. KMS repeats its input in some messages:
// package kms bounds the text.
func classify(err error, rights string) (kms.Classified, bool) {
	var api smithy.APIError
	if !errors.As(err, &api) {
		token, ok := errors.AsType[*tokenError](err)
		if _, network := errors.AsType[*url.Error](err); !ok || network {
			return kms.Classified{}, false
		}
		return kms.OutcomeDenied.Text(token.Error()), true
	}
	code, message := api.ErrorCode(), api.ErrorMessage()
	c, known := codes[code]
	switch {
	case !known && api.ErrorFault() == smithy.FaultServer:
		c = kms.OutcomeUnavailable.Text("the service refused")
	case !known:
		c = kms.OutcomeOther.Text("the service refused")
	case code == codeDenied:
		c.Text += ": " + rights
	}
	if message != "" {
		code += ": " + message
	}
	c.Text += " (" + code + ")"
	return c, true
}

// says reports whether AWS answered with the code.
func says(err error, code string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == code
}

// SigningKey describes the key and fetches its public key. It pins the key by its ARN.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	found, err := c.metadata(ctx, types.KeyUsageTypeSignVerify)
	if err != nil {
		return key, err
	}
	if specs[found.KeySpec] == "" {
		return key, kms.Unusable("its key spec %s isn't supported: use ECC_NIST_P256, P384 or P521, or RSA_2048, 3072 or 4096", found.KeySpec)
	}
	c.id = *found.Arn
	answer, err := c.api.GetPublicKey(ctx, &awskms.GetPublicKeyInput{KeyId: &c.id})
	if err != nil {
		return key, err
	}
	public, err := kms.ParsePublic(answer.PublicKey)
	return kms.SigningKey{
		Name: c.id, Public: public, Sign: c.sign, Describe: c.describe,
		Supports: func(s kms.SignatureScheme) string {
			if name := schemeName(s); slices.Contains(answer.SigningAlgorithms, types.SigningAlgorithmSpec(name)) {
				return name
			}
			return ""
		},
	}, err
}

// metadata is the description of a key that may be used that way now.
func (c *client) metadata(ctx context.Context, usage types.KeyUsageType) (*types.KeyMetadata, error) {
	answer, err := c.api.DescribeKey(ctx, &awskms.DescribeKeyInput{KeyId: &c.id})
	if err != nil {
		return nil, err
	}
	switch found := answer.KeyMetadata; {
	case found == nil || found.Arn == nil:
		return nil, errors.New("its description is empty")
	case found.KeyUsage != usage:
		return nil, kms.Unusable("its usage is %s: make one of the usage %s", found.KeyUsage, usage)
	case found.KeyState != types.KeyStateEnabled:
		return nil, kms.Unusable("its state is %s: enable it (or cancel its deletion)", found.KeyState)
	default:
		return found, nil
	}
}

func (c *client) describe(ctx context.Context) error {
	_, err := c.metadata(ctx, types.KeyUsageTypeSignVerify)
	return err
}

func (c *client) sign(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	answer, err := c.api.Sign(ctx, &awskms.SignInput{
		KeyId: &c.id, Message: digest, MessageType: types.MessageTypeDigest,
		SigningAlgorithm: types.SigningAlgorithmSpec(scheme),
	})
	if err != nil {
		return nil, err
	}
	return answer.Signature, nil
}

// contextName is the name under which AWS's encryption context holds what a
// secret is about: CloudTrail shows it, and a key policy can ask for it.
const contextName = "mayfly"

// SealingKey finds the key and pins it by its ARN.
func (c *client) SealingKey(ctx context.Context) (key kms.SealingKey, err error) {
	found, err := c.metadata(ctx, types.KeyUsageTypeEncryptDecrypt)
	if err != nil {
		return key, err
	}
	if found.KeySpec != types.KeySpecSymmetricDefault {
		return key, kms.Unusable("its key spec %s doesn't seal here: make one of SYMMETRIC_DEFAULT", found.KeySpec)
	}
	c.id = *found.Arn
	return kms.SealingKey{Name: c.id, Detail: string(found.KeySpec), Seal: c.encrypt, Unseal: c.decrypt}, nil
}

// Unsealer takes an ARN for the same key as the ARN of its replica in another
// region, and leaves an alias or id to what AWS says it is.
func (r reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(reference)
	if !ok {
		return nil, false
	}
	if !strings.HasPrefix(r.id, "arn:") || !strings.Contains(r.id, ":key/") {
		return r, true
	}
	return r, p.id == r.id || strings.Contains(r.id, ":key/mrk-") && regionless(p.id) == regionless(r.id)
}

// regionless is an ARN without its region: multi-Region keys have one id in all.
func regionless(arn string) string {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return ""
	}
	return m[1] + ":" + m[4] + ":" + m[5]
}

func (c *client) encrypt(ctx context.Context, secret []byte, about string) ([]byte, error) {
	answer, err := c.api.Encrypt(ctx, &awskms.EncryptInput{
		KeyId: &c.id, Plaintext: secret, EncryptionContext: map[string]string{contextName: about},
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	})
	if err != nil {
		return nil, err
	}
	return answer.CiphertextBlob, nil
}

func (c *client) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	answer, err := c.api.Decrypt(ctx, &awskms.DecryptInput{
		KeyId: &c.id, CiphertextBlob: sealed, EncryptionContext: map[string]string{contextName: about},
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	})
	switch {
	case says(err, "InvalidCiphertextException"), says(err, "IncorrectKeyException"):
		return nil, kms.NotSealed(err)
	case err != nil:
		return nil, err
	}
	return answer.Plaintext, nil
}

// alias is the alias that r names, "" for none.
func (r reference) alias() string {
	if at := strings.Index(r.id, "alias/"); at >= 0 {
		return r.id[at:]
	}
	return ""
}

// Make makes a key and an alias for it, and returns the key's ARN.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	if c.ref.alias() == "" {
		return "", errors.New("AWS chooses a new key's id: name an alias, alias/NAME")
	}
	err := c.Absent(ctx, c.describe, func(err error) bool { return says(err, "NotFoundException") })
	if err != nil {
		return "", err
	}
	arn, err := c.create(ctx, a)
	if err != nil {
		return "", err
	}
	err = c.Call(ctx, kms.OperationMake, func(ctx context.Context) error {
		_, err := c.api.CreateAlias(ctx, &awskms.CreateAliasInput{AliasName: aws.String(c.ref.alias()), TargetKeyId: &arn})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("%s was made, and has no alias: use it by that name, or schedule its deletion: %w", arn, err)
	}
	return arn, nil
}

// create makes a key, and gives its ARN.
func (c *client) create(ctx context.Context, a kms.Algorithm) (arn string, err error) {
	in := &awskms.CreateKeyInput{KeyUsage: types.KeyUsageTypeSignVerify}
	for spec, of := range specs {
		if of == a {
			in.KeySpec = spec
		}
	}
	err = c.Once(ctx, kms.OperationMake, func(ctx context.Context) error {
		made, err := c.api.CreateKey(ctx, in)
		if err != nil {
			return err
		}
		if made.KeyMetadata == nil || made.KeyMetadata.Arn == nil {
			return errors.New("the answer doesn't name the new key")
		}
		arn = *made.KeyMetadata.Arn
		return nil
	})
	return arn, err
}
