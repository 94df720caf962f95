// Package aws opens, makes and seals with keys in AWS KMS.
package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
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
func rights() kms.Rights {
	return kms.Rights{
		Signing: "allow it kms:DescribeKey, kms:GetPublicKey and kms:Sign",
		Sealing: "allow it kms:DescribeKey and kms:Decrypt, and kms:Encrypt to make a sealed key",
		Making:  "allow it kms:DescribeKey, kms:CreateKey and kms:CreateAlias",
	}
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
	c.Service, err = o.NewService(endpoint.URI.Host, rights(), classify)
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
		c.Logger.WarnContext(ctx, "STS didn't say whose the credential of a key is", slog.String("key", c.id), slog.Any("error", err))
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
	var token *tokenError
	switch {
	case errors.As(err, &api):
		c, known := codes[api.ErrorCode()]
		switch {
		case !known && api.ErrorFault() == smithy.FaultServer:
			c = kms.OutcomeUnavailable.Text("the service refused")
		case !known:
			c = kms.OutcomeOther.Text("the service refused")
		case api.ErrorCode() == codeDenied:
			c.Text += ": " + rights
		}
		c.Text += " (" + api.ErrorCode()
		if m := api.ErrorMessage(); m != "" {
			c.Text += ": " + m
		}
		c.Text += ")"
		return c, true
	case errors.As(err, &token):
		if urlError := (*url.Error)(nil); errors.As(err, &urlError) {
			return kms.Classified{}, false // the network's
		}
		return kms.OutcomeDenied.Text(token.Error()), true
	default:
		return kms.Classified{}, false
	}
}

// says reports whether AWS answered with the code.
func says(err error, code string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == code
}
