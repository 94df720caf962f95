package kms

import (
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
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const gcpEndpoint = "https://cloudkms.googleapis.com"

// gcp is the client of one key, over REST: gRPC would hide in which step a call
// failed, and keep a connection that hangs for longer than one attempt.
type gcp struct {
	service
	key        *gcpReference
	authorized *http.Client // adds tokens
	endpoint   string
	client     *gcpkms.KeyManagementClient
}

// gcpAlgorithms are the algorithms of key versions that sign certificates, each
// with the one scheme it has.
var gcpAlgorithms = map[kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm]scheme{
	kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256:        {ECDSAP256, crypto.SHA256, false},
	kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384:        {ECDSAP384, crypto.SHA384, false},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256: {RSA2048, crypto.SHA256, false},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256: {RSA3072, crypto.SHA256, false},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256: {RSA4096, crypto.SHA256, false},
	kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA512: {RSA4096, crypto.SHA512, false},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256:   {RSA2048, crypto.SHA256, true},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_3072_SHA256:   {RSA3072, crypto.SHA256, true},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_4096_SHA256:   {RSA4096, crypto.SHA256, true},
	kmspb.CryptoKeyVersion_RSA_SIGN_PSS_4096_SHA512:   {RSA4096, crypto.SHA512, true},
}

// open authenticates, pins the version and reads its public key.
func (r *gcpReference) open(ctx context.Context, o Options) (Signer, error) {
	g, err := newGCP(ctx, r, o)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	signer := &remote{service: g.service, algorithms: make(map[scheme]string)}
	pinned := *r
	err = o.step("key", func() (string, error) {
		if pinned.version == "" {
			if pinned.version, err = g.newest(ctx); err != nil {
				return "", err
			}
		}
		signer.name = pinned.String()
		var offered scheme
		if signer.public, offered, err = g.public(ctx, pinned.resource()); err != nil {
			return "", err
		}
		signer.key = offered.key
		signer.algorithms[offered] = offered.String()
		return fmt.Sprintf("%s, %v", &pinned, offered), nil
	})
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	signer.sign = func(ctx context.Context, _ string, digest []byte) ([]byte, error) {
		return g.sign(ctx, pinned.resource(), digest)
	}
	signer.describe = func(ctx context.Context) error {
		v, err := g.client.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: pinned.resource()})
		if err != nil {
			return err
		}
		return gcpEnabled(v)
	}
	return signer, nil
}

// newGCP makes the client, with the credential that is named.
func newGCP(ctx context.Context, r *gcpReference, o Options) (*gcp, error) {
	endpoint := gcpEndpoint
	if o.Access.Endpoint != "" {
		if err := endpointFault(o.Access.Endpoint); err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		endpoint = strings.TrimSuffix(o.Access.Endpoint, "/")
	}
	at, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	g := &gcp{key: r}
	if g.service, err = newService(gcpBackend, at.Host, o, g.judge); err != nil {
		return nil, err
	}
	g.endpoint = endpoint
	if g.authorized, err = g.authenticate(ctx, o); err != nil {
		return nil, err
	}
	g.client, err = g.rest(ctx, g.authorized)
	return g, err
}

// rest is a client of Google's over c. ctx is for credentials that the library
// would find by itself.
func (g *gcp) rest(ctx context.Context, c *http.Client) (*gcpkms.KeyManagementClient, error) {
	client, err := gcpkms.NewKeyManagementRESTClient(ctx, option.WithHTTPClient(c), option.WithEndpoint(g.endpoint))
	if err != nil {
		return nil, fmt.Errorf("making the client: %w", err)
	}
	*client.CallOptions = gcpkms.KeyManagementCallOptions{} // no retries but ours
	return client, nil
}

// within is a client whose requests end with ctx, for the methods that lists come
// from: the library makes their requests without the caller's context.
func (g *gcp) within(ctx context.Context) (*gcpkms.KeyManagementClient, error) {
	bound := *g.authorized
	bound.Transport = boundTransport{ctx, g.authorized.Transport}
	return g.rest(ctx, &bound)
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
func (g *gcp) newest(ctx context.Context) (version string, err error) {
	const most = 1000 // more than anybody has, and an end
	newest := 0
	err = g.call(ctx, operationKey, func(ctx context.Context) error {
		newest = 0
		client, err := g.within(ctx)
		if err != nil {
			return err
		}
		all := client.ListCryptoKeyVersions(ctx, &kmspb.ListCryptoKeyVersionsRequest{Parent: g.key.keyName(), Filter: "state=ENABLED"})
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
func (g *gcp) public(ctx context.Context, name string) (public crypto.PublicKey, offered scheme, err error) {
	err = g.call(ctx, operationKey, func(ctx context.Context) error {
		v, err := g.client.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: name})
		if err != nil {
			return err
		}
		if err := gcpEnabled(v); err != nil {
			return err
		}
		k, err := g.client.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: name})
		if err != nil {
			return err
		}
		if k.GetName() != name || k.GetPemCrc32C() == nil || k.GetPemCrc32C().GetValue() != crc32c([]byte(k.GetPem())) {
			return errGCPDamaged
		}
		var ok bool
		if offered, ok = gcpAlgorithms[k.GetAlgorithm()]; !ok {
			return &gcpUnusable{fmt.Sprintf("a key of algorithm %v isn't one to sign certificates with: make one of EC_SIGN_P256_SHA256, say", k.GetAlgorithm())}
		}
		block, _ := pem.Decode([]byte(k.GetPem()))
		if block == nil {
			return errGCPDamaged
		}
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
		return err
	})
	if err != nil {
		return nil, scheme{}, err
	}
	if a, err := AlgorithmOf(public); err != nil || a != offered.key {
		return nil, scheme{}, fmt.Errorf("the public key isn't of the key's algorithm, %v", offered)
	}
	return public, offered, nil
}

// sign asks for one signature, with a checksum of what is sent and of what comes back.
func (g *gcp) sign(ctx context.Context, name string, digest []byte) ([]byte, error) {
	in := &kmspb.AsymmetricSignRequest{Name: name, Digest: gcpDigest(digest), DigestCrc32C: wrapperspb.Int64(crc32c(digest))}
	out, err := g.client.AsymmetricSign(ctx, in)
	if err != nil {
		return nil, err
	}
	if out.GetName() != name || !out.GetVerifiedDigestCrc32C() ||
		out.GetSignatureCrc32C() == nil || out.GetSignatureCrc32C().GetValue() != crc32c(out.GetSignature()) {
		return nil, errGCPDamaged
	}
	return out.GetSignature(), nil
}

// gcpDigest is a digest by its length, which the scheme has fixed.
func gcpDigest(digest []byte) *kmspb.Digest {
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

// errGCPDamaged is an answer that was changed on the way; Google's advice is to
// ask again.
var errGCPDamaged = errors.New("a checksum (CRC32C) or name doesn't match: the request or the answer was damaged on the way")

// gcpUnusable is a key that can't be used as it is.
type gcpUnusable struct{ text string }

func (e *gcpUnusable) Error() string { return e.text }

// gcpEnabled is nil for a version that signs.
func gcpEnabled(v *kmspb.CryptoKeyVersion) error {
	switch v.GetState() {
	case kmspb.CryptoKeyVersion_ENABLED:
		return nil
	case kmspb.CryptoKeyVersion_DISABLED:
		return &gcpUnusable{"the version is disabled: enable it"}
	case kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:
		return &gcpUnusable{"the version is to be destroyed: restore and enable it, or name another"}
	default:
		return &gcpUnusable{fmt.Sprintf("the version can't sign: its state is %v", v.GetState())}
	}
}

// judge classifies Google's errors.
func (g *gcp) judge(err error) (verdict, bool) {
	var unusable *gcpUnusable
	switch {
	case errors.As(err, &unusable):
		return verdict{outcomeUnusable, false, unusable.text}, true
	case errors.Is(err, errGCPDamaged):
		return verdict{outcomeWrong, true, errGCPDamaged.Error()}, true
	}
	if v, ok := gcpTokenVerdict(err); ok {
		return v, true
	}
	var said *apierror.APIError
	if !errors.As(err, &said) || said.HTTPCode() <= 0 {
		return verdict{}, false
	}
	text := gcpText(said)
	switch code := said.HTTPCode(); {
	case code == http.StatusUnauthorized:
		return verdict{outcomeDenied, false, "the credential isn't accepted: " + text}, true
	case code == http.StatusForbidden:
		return verdict{outcomeDenied, false, "permission denied: " + gcpRights.signing + " on the key: " + text}, true
	case code == http.StatusNotFound:
		return verdict{outcomeUnusable, false, "there is no such key: " + text}, true
	case code == http.StatusTooManyRequests:
		return verdict{outcomeThrottled, true, "a quota is used up: " + text}, true
	case code >= 500:
		return verdict{outcomeUnavailable, true, text}, true
	default: // 400 FAILED_PRECONDITION: disabled, destroyed
		return verdict{outcomeUnusable, false, text}, true
	}
}
