// Package gcp opens, makes and seals with keys in Google Cloud KMS and Cloud HSM.
package gcp

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	gcpkms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/types/known/wrapperspb"

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
func (c *client) Authenticate(ctx context.Context, o kms.Options) (err error) {
	if c.authorized, err = c.authorize(ctx, o); err != nil {
		return err
	}
	c.api, err = c.rest(ctx, c.authorized)
	return err
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

// SigningKey pins the newest enabled version, where none is named, and reads its
// public key.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	pinned := *c.ref
	if pinned.version == "" {
		if pinned.version, err = c.newest(ctx); err != nil {
			return key, err
		}
	}
	public, offered, err := c.public(ctx, pinned.resource())
	if err != nil {
		return key, err
	}
	return kms.SigningKey{
		Name: pinned.String(), Detail: fmt.Sprintf("%s, %v", &pinned, offered), Public: public, Algorithm: offered.Key,
		Supports: func(s kms.SignatureScheme) string {
			if s == offered {
				return s.String()
			}
			return ""
		},
		Sign: func(ctx context.Context, _ string, digest []byte) ([]byte, error) {
			return c.sign(ctx, pinned.resource(), digest)
		},
		Describe: func(ctx context.Context) error {
			v, err := c.api.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: pinned.resource()})
			if err != nil {
				return err
			}
			return checkEnabled(v)
		},
	}, nil
}

// boundTransport sends requests within one context.
type boundTransport struct {
	ctx  context.Context
	base http.RoundTripper
}

func (t boundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.base.RoundTrip(r.WithContext(t.ctx))
}

// newest is the number of the newest version that is enabled. Keys that sign
// have no primary version.
func (c *client) newest(ctx context.Context) (version string, err error) {
	const most = 1000 // more than anybody has, and an end
	newest := 0
	err = c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		newest = 0
		api, err := c.within(ctx)
		if err != nil {
			return err
		}
		all := api.ListCryptoKeyVersions(ctx, &kmspb.ListCryptoKeyVersionsRequest{Parent: c.ref.keyName(), Filter: "state=ENABLED"})
		for range most {
			v, err := all.Next()
			if errors.Is(err, iterator.Done) {
				return nil
			}
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(v.GetName()[strings.LastIndexByte(v.GetName(), '/')+1:])
			if err == nil && n > newest && v.GetState() == kmspb.CryptoKeyVersion_ENABLED {
				newest = n
			}
		}
		return errors.New("has too many versions to look through: name one")
	})
	if err == nil && newest == 0 {
		err = errors.New("has no enabled version: enable one, or make a new one")
	}
	return strconv.Itoa(newest), err
}

// public is the public key of a version, and what it signs.
func (c *client) public(ctx context.Context, name string) (public crypto.PublicKey, offered kms.SignatureScheme, err error) {
	err = c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		v, err := c.api.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: name})
		if err != nil {
			return err
		}
		if err := checkEnabled(v); err != nil {
			return err
		}
		k, err := c.api.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: name})
		if err != nil {
			return err
		}
		if k.GetName() != name || !intact([]byte(k.GetPem()), k.GetPemCrc32C()) {
			return errDamaged
		}
		var ok bool
		if offered, ok = algorithms[k.GetAlgorithm()]; !ok {
			return kms.Unusable("a key of algorithm %v isn't one to sign certificates with: make one of EC_SIGN_P256_SHA256, say", k.GetAlgorithm())
		}
		block, _ := pem.Decode([]byte(k.GetPem()))
		if block == nil {
			return errDamaged
		}
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
		return err
	})
	if err != nil {
		return nil, kms.SignatureScheme{}, err
	}
	if a, err := kms.AlgorithmOf(public); err != nil || a != offered.Key {
		return nil, kms.SignatureScheme{}, fmt.Errorf("the public key isn't of the key's algorithm, %v", offered)
	}
	return public, offered, nil
}

// sign asks for one signature, with a checksum of what is sent and of what comes back.
func (c *client) sign(ctx context.Context, name string, digest []byte) ([]byte, error) {
	in := &kmspb.AsymmetricSignRequest{Name: name, Digest: digestOf(digest), DigestCrc32C: wrapperspb.Int64(crc32c(digest))}
	out, err := c.api.AsymmetricSign(ctx, in)
	if err != nil {
		return nil, err
	}
	if out.GetName() != name || !out.GetVerifiedDigestCrc32C() || !intact(out.GetSignature(), out.GetSignatureCrc32C()) {
		return nil, errDamaged
	}
	return out.GetSignature(), nil
}

// digestOf is a digest by its length, which the scheme has fixed.
func digestOf(digest []byte) *kmspb.Digest {
	switch len(digest) {
	case crypto.SHA384.Size():
		return &kmspb.Digest{Digest: &kmspb.Digest_Sha384{Sha384: digest}}
	case crypto.SHA512.Size():
		return &kmspb.Digest{Digest: &kmspb.Digest_Sha512{Sha512: digest}}
	default:
		return &kmspb.Digest{Digest: &kmspb.Digest_Sha256{Sha256: digest}}
	}
}

// crc32c is the checksum of all of the API: RFC 3720 §B.4.
func crc32c(b []byte) int64 { return int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }

// intact reports whether an answer's bytes have its checksum.
func intact(b []byte, sum *wrapperspb.Int64Value) bool {
	return sum != nil && sum.GetValue() == crc32c(b)
}

// errDamaged is an answer that was changed on the way; Google's advice is to
// ask again.
var errDamaged = errors.New("a checksum (CRC32C) or name doesn't match: the request or the answer was damaged on the way")

// checkEnabled is nil for a version that signs.
func checkEnabled(v *kmspb.CryptoKeyVersion) error {
	switch v.GetState() {
	case kmspb.CryptoKeyVersion_ENABLED:
		return nil
	case kmspb.CryptoKeyVersion_DISABLED:
		return kms.Unusable("the version is disabled: enable it")
	case kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:
		return kms.Unusable("the version is to be destroyed: restore and enable it, or name another")
	default:
		return kms.Unusable("the version can't sign: its state is %v", v.GetState())
	}
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
	text := textOf(said)
	switch code := said.HTTPCode(); {
	case code == http.StatusUnauthorized:
		return kms.OutcomeDenied.Text("the credential isn't accepted: " + text), true
	case code == http.StatusForbidden:
		return kms.OutcomeDenied.Text("permission denied: " + rights + " on the key: " + text), true
	case code == http.StatusNotFound:
		return kms.OutcomeUnusable.Text("there is no such key: " + text), true
	case code == http.StatusTooManyRequests:
		return kms.OutcomeThrottled.Text("a quota is used up: " + text), true
	case code >= 500:
		return kms.OutcomeUnavailable.Text(text), true
	default: // 400 FAILED_PRECONDITION: disabled, destroyed
		return kms.OutcomeUnusable.Text(text), true
	}
}

// textOf is what Google says is wrong.
func textOf(said *apierror.APIError) string {
	var plain *googleapi.Error
	if errors.As(error(said), &plain) && plain.Message != "" {
		return kms.OneLine(plain.Message)
	}
	return kms.OneLine(strings.TrimSpace(said.Error()))
}
