package kms

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// awsBackend keeps keys in AWS KMS.
var awsBackend = &backend{
	name: "aws", title: "AWS KMS", schemes: []string{"awskms"}, claims: claimsAWS, parse: parseAWS,
	credentials: []Credential{CredentialEnv, CredentialWorkload, CredentialManaged, CredentialProfile, CredentialAuto},
}

// awsSpecs are the kinds of key that sign here: KMS developer guide, "Key spec reference".
var awsSpecs = map[types.KeySpec]Algorithm{
	types.KeySpecEccNistP256: ECDSAP256,
	types.KeySpecEccNistP384: ECDSAP384,
	types.KeySpecEccNistP521: ECDSAP521,
	types.KeySpecRsa2048:     RSA2048,
	types.KeySpecRsa3072:     RSA3072,
	types.KeySpecRsa4096:     RSA4096,
}

// awsSchemes are AWS's names for what a key of an algorithm signs.
func awsSchemes(key Algorithm) map[scheme]string {
	switch key {
	case ECDSAP256:
		return map[scheme]string{{key, crypto.SHA256, false}: string(types.SigningAlgorithmSpecEcdsaSha256)}
	case ECDSAP384:
		return map[scheme]string{{key, crypto.SHA384, false}: string(types.SigningAlgorithmSpecEcdsaSha384)}
	case ECDSAP521:
		return map[scheme]string{{key, crypto.SHA512, false}: string(types.SigningAlgorithmSpecEcdsaSha512)}
	default:
		return map[scheme]string{
			{key, crypto.SHA256, false}: string(types.SigningAlgorithmSpecRsassaPkcs1V15Sha256),
			{key, crypto.SHA384, false}: string(types.SigningAlgorithmSpecRsassaPkcs1V15Sha384),
			{key, crypto.SHA512, false}: string(types.SigningAlgorithmSpecRsassaPkcs1V15Sha512),
			{key, crypto.SHA256, true}:  string(types.SigningAlgorithmSpecRsassaPssSha256),
			{key, crypto.SHA384, true}:  string(types.SigningAlgorithmSpecRsassaPssSha384),
			{key, crypto.SHA512, true}:  string(types.SigningAlgorithmSpecRsassaPssSha512),
		}
	}
}

// awsKey is one key and the client that reaches it.
type awsKey struct {
	remote

	api *kms.Client
	id  string // the key's ARN once it is known: an alias may be pointed elsewhere
}

// openAWS names the credential, finds the key and pins it by its ARN.
func openAWS(ctx context.Context, r awsReference, o Options) (Signer, error) {
	k, err := connectAWS(ctx, r, o, judgeAWS)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	err = o.step("key", func() (string, error) {
		err := k.call(ctx, operationKey, k.find)
		return k.name, err
	})
	if err != nil {
		Close(k)
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	return k, nil
}

// connectAWS makes the client of a key, with the credential that is named.
func connectAWS(ctx context.Context, r awsReference, o Options, judge func(error) (verdict, bool)) (*awsKey, error) {
	k := &awsKey{id: r.id}
	region, host, err := awsPlace(ctx, r, o)
	if err != nil {
		return nil, err
	}
	if k.service, err = newService(awsBackend, host, o, judge); err != nil {
		return nil, err
	}
	if err := k.connect(ctx, region, o); err != nil {
		Close(k)
		return nil, err
	}
	return k, nil
}

// awsPlace is the key's region, and the host that errors name.
func awsPlace(ctx context.Context, r awsReference, o Options) (region, host string, err error) {
	region = r.region
	for _, other := range []string{o.Access.Region, o.Getenv("AWS_REGION"), o.Getenv("AWS_DEFAULT_REGION")} {
		if region == "" {
			region = other
		}
	}
	if !awsRegion.MatchString(region) {
		return "", "", fmt.Errorf("in which region? Set it (region %q isn't one), or name the key by its ARN", abridged(region))
	}
	endpoint, err := kms.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, kms.EndpointParameters{
		Region: aws.String(region), Endpoint: optional(o.Access.Endpoint), UseFIPS: aws.Bool(false), UseDualStack: aws.Bool(false),
	})
	if err != nil {
		return "", "", fmt.Errorf("region %s: %w", region, err)
	}
	return region, endpoint.URI.Host, nil
}

// optional is nil for "".
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (k *awsKey) connect(ctx context.Context, region string, o Options) error {
	var credential *awsCredential
	err := o.step("credential", func() (string, error) {
		var err error
		if credential, err = newAWSCredential(ctx, o, region, k.client); err != nil {
			return "", err
		}
		return credential.source, nil
	})
	if err != nil {
		return err
	}
	k.api = kms.New(kms.Options{
		Region: region, BaseEndpoint: optional(o.Access.Endpoint), HTTPClient: k.client,
		Credentials: credential.provider, Retryer: aws.NopRetryer{}, // k.call has the one budget
	})
	return k.identify(ctx, region, credential, o)
}

// identityTimeout is how long STS may take to say whose a credential is: that is
// for the log alone, and the time for the key goes with it.
const identityTimeout = 3 * time.Second

// identify logs whose credential it is. Where STS can't be reached, as behind a
// private endpoint for KMS alone, the key is used all the same: AWS itself says
// who may.
func (k *awsKey) identify(ctx context.Context, region string, credential *awsCredential, o Options) error {
	endpoint := o.Access.IdentityEndpoint
	api := sts.New(sts.Options{
		Region: region, BaseEndpoint: optional(endpoint), HTTPClient: k.client,
		Credentials: credential.provider, Retryer: aws.NopRetryer{},
	})
	var principal string
	err := o.step("identity", func() (string, error) {
		err := k.call(ctx, stepToken, func(ctx context.Context) error {
			if _, err := credential.provider.Retrieve(ctx); err != nil {
				return &tokenError{err}
			}
			return nil
		})
		if err != nil {
			return "", err
		}
		ctx, cancel := context.WithTimeout(ctx, identityTimeout)
		defer cancel()
		err = k.once(ctx, operationIdentity, func(ctx context.Context) error {
			who, err := api.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
			if err != nil {
				return err
			}
			principal = aws.ToString(who.Arn)
			return nil
		})
		return principal, err
	})
	var token *tokenError
	switch {
	case err == nil:
		k.logger.InfoContext(ctx, "credential of a key", slog.String("key", k.id),
			slog.String("credential", credential.source), slog.String("principal", principal))
	case errors.As(err, &token):
		return err
	default:
		k.logger.WarnContext(ctx, "credential of a key; STS didn't say whose", slog.String("key", k.id),
			slog.String("credential", credential.source), slog.Any("error", err))
	}
	return nil
}

// find describes the key and fetches its public key.
func (k *awsKey) find(ctx context.Context) error {
	found, err := k.metadata(ctx, types.KeyUsageTypeSignVerify)
	if err != nil {
		return err
	}
	algorithm, ok := awsSpecs[found.KeySpec]
	if !ok {
		return &unusableError{fmt.Sprintf("its key spec %s isn't supported: use ECC_NIST_P256, P384 or P521, or RSA_2048, 3072 or 4096", found.KeySpec)}
	}
	answer, err := k.api.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: found.Arn})
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(answer.PublicKey)
	if err != nil {
		return fmt.Errorf("its public key can't be read: %w", err)
	}
	if got, err := AlgorithmOf(public); err != nil || got != algorithm {
		return fmt.Errorf("its public key is %s, but its key spec %s", got, found.KeySpec)
	}
	k.algorithms = awsSchemes(algorithm)
	for s, name := range k.algorithms {
		if !slices.Contains(answer.SigningAlgorithms, types.SigningAlgorithmSpec(name)) {
			delete(k.algorithms, s)
		}
	}
	k.id = aws.ToString(found.Arn)
	k.name, k.public, k.key = k.id, public, algorithm
	k.remote.sign, k.describe = k.sign, k.stands
	return nil
}

// metadata is the description of a key that may be used that way now.
func (k *awsKey) metadata(ctx context.Context, usage types.KeyUsageType) (*types.KeyMetadata, error) {
	answer, err := k.api.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &k.id})
	if err != nil {
		return nil, err
	}
	switch found := answer.KeyMetadata; {
	case found == nil || found.Arn == nil:
		return nil, errors.New("its description is empty")
	case found.KeyUsage != usage:
		return nil, &unusableError{fmt.Sprintf("its usage is %s: make one of the usage %s", found.KeyUsage, usage)}
	case found.KeyState != types.KeyStateEnabled:
		return nil, &unusableError{fmt.Sprintf("its state is %s: enable it (or cancel its deletion)", found.KeyState)}
	default:
		return found, nil
	}
}

func (k *awsKey) stands(ctx context.Context) error {
	_, err := k.metadata(ctx, types.KeyUsageTypeSignVerify)
	return err
}

func (k *awsKey) sign(ctx context.Context, algorithm string, digest []byte) ([]byte, error) {
	answer, err := k.api.Sign(ctx, &kms.SignInput{
		KeyId: &k.id, Message: digest, MessageType: types.MessageTypeDigest,
		SigningAlgorithm: types.SigningAlgorithmSpec(algorithm),
	})
	if err != nil {
		return nil, err
	}
	return answer.Signature, nil
}

// awsVerdicts says what AWS's error codes mean: KMS API reference, "Common
// errors" and those of each action. Several are generic, so codes are matched.
var awsVerdicts = map[string]verdict{
	"AccessDeniedException":       {outcomeDenied, false, "the principal may not: " + awsRights.signing},
	"AccessDenied":                {outcomeDenied, false, "the principal may not"},
	"UnrecognizedClientException": {outcomeDenied, false, "AWS doesn't know the credential: check it"},
	"InvalidClientTokenId":        {outcomeDenied, false, "AWS doesn't know the credential: check it"},
	"InvalidSignatureException":   {outcomeDenied, false, "the credential's secret doesn't fit its id, or the clock is off"},
	"SignatureDoesNotMatch":       {outcomeDenied, false, "the credential's secret doesn't fit its id, or the clock is off"},
	"ExpiredTokenException":       {outcomeDenied, false, "the credential has expired"},
	"ExpiredToken":                {outcomeDenied, false, "the credential has expired"},
	"NotFoundException":           {outcomeUnusable, false, "there is no such key in this region and account"},
	"DisabledException":           {outcomeUnusable, false, "the key is disabled: enable it"},
	"KMSInvalidStateException":    {outcomeUnusable, false, "the key's state doesn't let it be used: enable it, or cancel its deletion"},
	"InvalidKeyUsageException":    {outcomeUnusable, false, "the key's usage isn't for that"},
	"KeyUnavailableException":     {outcomeUnavailable, true, "the key isn't available at the moment"},
	"DependencyTimeoutException":  {outcomeUnavailable, true, "the service timed out within itself"},
	"KMSInternalException":        {outcomeUnavailable, true, "the service failed within itself"},
	"InternalFailure":             {outcomeUnavailable, true, "the service failed within itself"},
	"ServiceUnavailable":          {outcomeUnavailable, true, "the service isn't available"},
	"ThrottlingException":         {outcomeThrottled, true, "the request quota is used up"},
	"Throttling":                  {outcomeThrottled, true, "the request quota is used up"},
	"LimitExceededException":      {outcomeThrottled, true, "a quota is used up"},
}

// judgeAWS classifies what AWS answered. KMS repeats its input in some messages,
// so the text is bounded by verdict.
func judgeAWS(err error) (verdict, bool) {
	var token *tokenError
	var unusable *unusableError
	var api smithy.APIError
	switch {
	case errors.As(err, &unusable):
		return verdict{outcomeUnusable, false, unusable.Error()}, true
	case errors.As(err, &api):
		v, known := awsVerdicts[api.ErrorCode()]
		if !known {
			v = verdict{outcome: outcomeOther, retry: api.ErrorFault() == smithy.FaultServer, text: "the service refused"}
			if v.retry {
				v.outcome = outcomeUnavailable
			}
		}
		v.text += " (" + api.ErrorCode()
		if m := api.ErrorMessage(); m != "" {
			v.text += ": " + m
		}
		v.text += ")"
		return v, true
	case errors.As(err, &token):
		if urlError := (*url.Error)(nil); errors.As(err, &urlError) {
			return verdict{}, false // the network's
		}
		return verdict{outcomeDenied, false, token.Error()}, true
	default:
		return verdict{}, false
	}
}
