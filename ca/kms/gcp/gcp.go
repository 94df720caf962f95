// Package gcp opens, makes and seals with keys in Google Cloud KMS and Cloud HSM.
package gcp

import (
	"cmp"
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
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
var rights = kms.Rights{
	Signing: "grant roles/cloudkms.signerVerifier and roles/cloudkms.viewer",
	Sealing: "grant roles/cloudkms.cryptoKeyDecrypter and roles/cloudkms.viewer, and cryptoKeyEncrypter to make a sealed key,",
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
	at, err := kms.ParseEndpoint(cmp.Or(o.Access.Endpoint, "https://cloudkms.googleapis.com"))
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	c := &client{ref: r, endpoint: at.String()}
	c.Service, err = o.NewService(at.Host, rights, classify)
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
	said, ok := errors.AsType[*apierror.APIError](err)
	if !ok || said.HTTPCode() <= 0 {
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

// SigningKey pins the newest enabled version, where none is named, and reads its
// public key.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	pinned := *c.ref
	if pinned.version == "" {
		if pinned.version, err = c.newest(ctx); err != nil {
			return key, err
		}
	}
	name := pinned.resource()
	describe := func(ctx context.Context) error {
		v, err := c.api.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: name})
		if err != nil {
			return err
		}
		return checkEnabled(v)
	}
	if err := describe(ctx); err != nil {
		return key, err
	}
	k, err := c.api.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: name})
	if err != nil {
		return key, err
	}
	block, _ := pem.Decode([]byte(k.GetPem()))
	if block == nil || k.GetName() != name || !intact([]byte(k.GetPem()), k.GetPemCrc32C()) {
		return key, errDamaged
	}
	offered, ok := algorithms[k.GetAlgorithm()]
	if !ok {
		return key, kms.Unusable("a key of algorithm %v isn't one to sign certificates with: make one of EC_SIGN_P256_SHA256, say", k.GetAlgorithm())
	}
	public, err := kms.ParsePublic(block.Bytes)
	return kms.SigningKey{
		Name: pinned.String(), Detail: offered.String(), Public: public, Describe: describe,
		Supports: func(s kms.SignatureScheme) string {
			if s == offered {
				return s.String()
			}
			return ""
		},
		Sign: func(ctx context.Context, _ string, digest []byte) ([]byte, error) { return c.sign(ctx, name, digest) },
	}, err
}

// newest is the number of the newest version that is enabled. Keys that sign
// have no primary version.
func (c *client) newest(ctx context.Context) (string, error) {
	const most = 1000 // more than anybody has, and an end
	api, err := c.within(ctx)
	if err != nil {
		return "", err
	}
	newest := 0
	all := api.ListCryptoKeyVersions(ctx, &kmspb.ListCryptoKeyVersionsRequest{Parent: c.ref.keyName(), Filter: "state=ENABLED"})
	for range most {
		v, err := all.Next()
		switch {
		case errors.Is(err, iterator.Done) && newest == 0:
			return "", kms.Unusable("has no enabled version: enable one, or make a new one")
		case errors.Is(err, iterator.Done):
			return strconv.Itoa(newest), nil
		case err != nil:
			return "", err
		}
		n, err := strconv.Atoi(v.GetName()[strings.LastIndexByte(v.GetName(), '/')+1:])
		if err == nil && v.GetState() == kmspb.CryptoKeyVersion_ENABLED {
			newest = max(newest, n)
		}
	}
	return "", kms.Unusable("has too many versions to look through: name one")
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

// SealingKey finds the key. Cloud KMS finds the version that sealed by itself, so
// none is pinned.
func (c *client) SealingKey(ctx context.Context) (key kms.SealingKey, err error) {
	if c.ref.version != "" {
		return key, kms.Unusable("a key that seals is named without a version, which Cloud KMS finds by itself: leave it out")
	}
	found, err := c.api.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: c.ref.keyName()})
	if err != nil {
		return key, err
	}
	if found.GetPurpose() != kmspb.CryptoKey_ENCRYPT_DECRYPT {
		return key, kms.Unusable("its purpose is %v: make one of the purpose ENCRYPT_DECRYPT", found.GetPurpose())
	}
	return kms.SealingKey{Name: c.ref.String(), Detail: found.GetPurpose().String(), Seal: c.encrypt, Unseal: c.decrypt}, nil
}

// Unsealer is r, which names no version.
func (r *reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(*reference)
	return r, ok && *p == *r
}

// encrypt has a checksum of everything that is sent and comes back.
func (c *client) encrypt(ctx context.Context, secret []byte, about string) ([]byte, error) {
	out, err := c.api.Encrypt(ctx, &kmspb.EncryptRequest{
		Name: c.ref.keyName(), Plaintext: secret, AdditionalAuthenticatedData: []byte(about),
		PlaintextCrc32C: wrapperspb.Int64(crc32c(secret)), AdditionalAuthenticatedDataCrc32C: wrapperspb.Int64(crc32c([]byte(about))),
	})
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(out.GetName(), c.ref.keyName()+"/") || !out.GetVerifiedPlaintextCrc32C() || !out.GetVerifiedAdditionalAuthenticatedDataCrc32C() ||
		!intact(out.GetCiphertext(), out.GetCiphertextCrc32C()) {
		return nil, errDamaged
	}
	return out.GetCiphertext(), nil
}

func (c *client) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	out, err := c.api.Decrypt(ctx, &kmspb.DecryptRequest{
		Name: c.ref.keyName(), Ciphertext: sealed, AdditionalAuthenticatedData: []byte(about),
		CiphertextCrc32C: wrapperspb.Int64(crc32c(sealed)), AdditionalAuthenticatedDataCrc32C: wrapperspb.Int64(crc32c([]byte(about))),
	})
	said, _ := errors.AsType[*apierror.APIError](err)
	switch {
	case said != nil && said.HTTPCode() == http.StatusBadRequest && strings.Contains(strings.ToLower(said.Error()), "decryption failed"):
		return nil, kms.NotSealed(errors.New(textOf(said)))
	case err != nil:
		return nil, err
	case !intact(out.GetPlaintext(), out.GetPlaintextCrc32C()):
		return nil, errDamaged
	}
	return out.GetPlaintext(), nil
}

// algorithmFor is the algorithm of keys that certificates are signed with; 0 for none.
func algorithmFor(a kms.Algorithm) kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm {
	for algorithm, offered := range algorithms {
		if offered == (kms.SignatureScheme{Key: a, Hash: a.Hash()}) {
			return algorithm
		}
	}
	return 0
}

// Make makes a key in Cloud HSM, in a key ring that is there already: rings can
// never be deleted, and so are nothing to be made by the way.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	switch {
	case c.ref.version != "":
		return "", errors.New("a new key has no version yet: leave /cryptoKeyVersions out")
	case algorithmFor(a) == 0:
		return "", fmt.Errorf("%s has no keys of %s", Backend().Title, a)
	}
	err := c.Once(ctx, kms.OperationMake, func(ctx context.Context) error {
		_, err := c.api.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{
			Parent: c.ref.ring, CryptoKeyId: c.ref.key,
			CryptoKey: &kmspb.CryptoKey{
				Purpose:         kmspb.CryptoKey_ASYMMETRIC_SIGN,
				VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithmFor(a), ProtectionLevel: kmspb.ProtectionLevel_HSM},
			},
		})
		return err
	})
	if said, ok := errors.AsType[*apierror.APIError](err); ok && said.HTTPCode() == http.StatusConflict {
		err = kms.ErrKeyExists
	}
	if err != nil {
		return "", err
	}
	pinned := *c.ref
	pinned.version = "1"
	if err := c.await(ctx, pinned.resource()); err != nil {
		return "", fmt.Errorf("version 1 was made, but isn't ready: %w", err)
	}
	return pinned.String(), nil
}

// await waits until an HSM has made a version.
func (c *client) await(ctx context.Context, name string) error {
	for {
		var state kmspb.CryptoKeyVersion_CryptoKeyVersionState
		err := c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
			v, err := c.api.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: name})
			state = v.GetState()
			return err
		})
		switch {
		case err != nil:
			return err
		case state == kmspb.CryptoKeyVersion_ENABLED:
			return nil
		case state != kmspb.CryptoKeyVersion_PENDING_GENERATION:
			return fmt.Errorf("its state is %v", state)
		case !kms.Pause(ctx, 3): // as before a last attempt
			return fmt.Errorf("it is still being made: open it later: %w", kms.ErrOpenTimeout)
		}
	}
}
