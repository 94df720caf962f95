// Package gcp opens, makes and seals with keys in Google Cloud KMS and Cloud HSM.
package gcp

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
	gcpkms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Backend keeps keys in Google Cloud KMS or Cloud HSM.
func Backend() *kms.Backend {
	return &kms.Backend{
		Name: "gcp", Title: "Google Cloud KMS", URISchemes: []string{"gcpkms"}, Claims: claims, Parse: parse,
		Credentials: []kms.Credential{kms.CredentialEnv, kms.CredentialWorkload, kms.CredentialManaged, kms.CredentialCLI},
	}
}

// rights are the predefined roles of Cloud KMS.
func rights() kms.Rights {
	return kms.Rights{
		Signing: "grant roles/cloudkms.signerVerifier and roles/cloudkms.viewer",
		Sealing: "grant roles/cloudkms.cryptoKeyDecrypter and roles/cloudkms.viewer, and cryptoKeyEncrypter to make a sealed key,",
	}
}

// algorithms are the algorithms of key versions that sign certificates, each with
// the one scheme it has.
var algorithms = map[kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm]kms.SignatureScheme{
	kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256:        {Key: kms.ECDSAP256, Hash: crypto.SHA256},
	kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384:        {Key: kms.ECDSAP384, Hash: crypto.SHA384},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256: {Key: kms.RSA2048, Hash: crypto.SHA256},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256: {Key: kms.RSA3072, Hash: crypto.SHA256},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256: {Key: kms.RSA4096, Hash: crypto.SHA256},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA512: {Key: kms.RSA4096, Hash: crypto.SHA512},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256:   {Key: kms.RSA2048, Hash: crypto.SHA256, PSS: true},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_3072_SHA256:   {Key: kms.RSA3072, Hash: crypto.SHA256, PSS: true},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_4096_SHA256:   {Key: kms.RSA4096, Hash: crypto.SHA256, PSS: true},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_4096_SHA512:   {Key: kms.RSA4096, Hash: crypto.SHA512, PSS: true},
}

// client reaches one key over REST: gRPC would hide in which step a call failed,
// and keep a connection that hangs for longer than one attempt.
type client struct {
	*kms.Service

	ref        *reference
	endpoint   string
	authorized *http.Client // adds tokens
	api        *gcpkms.KeyManagementClient
}

// Client is for Google's own endpoint unless another is set.
func (r *reference) Client(_ context.Context, o kms.Options) (kms.Client, error) {
	c := &client{ref: r, endpoint: strings.TrimSuffix(cmp.Or(o.Access.Endpoint, "https://cloudkms.googleapis.com"), "/")}
	if err := kms.CheckEndpoint(c.endpoint); err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	at, err := url.Parse(c.endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	c.Service, err = o.NewService(at.Host, rights(), classify)
	return c, err
}

// Authenticate makes the client of the library.
func (c *client) Authenticate(ctx context.Context, o kms.Options) error {
	var principal string
	credential, _, err := kms.Chosen(o, nil, func(name kms.Credential) (found *auth.Credentials, _ string, err error) {
		found, principal, err = c.credential(ctx, o)
		return found, string(name) + ": " + principal, err
	})
	if err != nil {
		return err
	}
	authorized := *c.HTTP
	if err := httptransport.AddAuthorizationMiddleware(&authorized, credential); err != nil {
		return err
	}
	c.authorized = &authorized
	if c.api, err = c.rest(ctx, c.authorized); err != nil {
		return err
	}
	return c.Identify(ctx, o, c.ref, string(o.Access.Credential), func(ctx context.Context) ([]slog.Attr, error) {
		_, err := credential.Token(ctx)
		return []slog.Attr{slog.String("principal", principal)}, err
	})
}

// rest is a client of Google's over h. ctx is for credentials that the library
// would find by itself.
func (c *client) rest(ctx context.Context, h *http.Client) (*gcpkms.KeyManagementClient, error) {
	api, err := gcpkms.NewKeyManagementRESTClient(ctx, option.WithHTTPClient(h), option.WithEndpoint(c.endpoint))
	if err != nil {
		return nil, fmt.Errorf("making the client: %w", err)
	}
	*api.CallOptions = gcpkms.KeyManagementCallOptions{} // no retries but ours
	return api, nil
}

// within is a client whose requests end with ctx, for the methods that lists come
// from: the library makes their requests without the caller's context.
func (c *client) within(ctx context.Context) (*gcpkms.KeyManagementClient, error) {
	bound := *c.authorized
	bound.Transport = boundTransport{ctx, c.authorized.Transport}
	return c.rest(ctx, &bound)
}

// boundTransport sends requests within one context.
type boundTransport struct {
	ctx  context.Context
	base http.RoundTripper
}

func (t boundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.base.RoundTrip(r.WithContext(t.ctx))
}

// classify says what Google's errors mean.
func classify(err error, rights string) (kms.Classified, bool) {
	if errors.Is(err, errDamaged) {
		return kms.Classified{Outcome: kms.OutcomeWrong, Retry: true, Text: errDamaged.Error()}, true
	}
	if c, ok := classifyToken(err); ok {
		return c, true
	}
	var said *apierror.APIError
	if !errors.As(err, &said) || said.HTTPCode() <= 0 {
		return kms.Classified{}, false
	}
	outcome, text := kms.OutcomeOf(said.HTTPCode()), textOf(said)
	switch {
	case said.HTTPCode() == http.StatusUnauthorized:
		text = "the credential isn't accepted: " + text
	case outcome == kms.OutcomeDenied:
		text = "permission denied: " + rights + " on the key: " + text
	case said.HTTPCode() == http.StatusNotFound:
		text = "there is no such key: " + text
	case outcome == kms.OutcomeThrottled:
		text = "a quota is used up: " + text
	case outcome == kms.OutcomeOther: // 400 FAILED_PRECONDITION: disabled, destroyed
		outcome = kms.OutcomeUnusable
	}
	return outcome.Text(text), true
}

// textOf is what Google says is wrong.
func textOf(said *apierror.APIError) string {
	if plain, ok := errors.AsType[*googleapi.Error](error(said)); ok && plain.Message != "" {
		return kms.OneLine(plain.Message)
	}
	return kms.OneLine(strings.TrimSpace(said.Error()))
}
