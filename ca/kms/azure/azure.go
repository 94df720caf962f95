// Package azure opens, makes and seals with keys in Azure Key Vault and Managed HSM.
package azure

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Backend keeps keys in Azure Key Vault and Managed HSM.
func Backend() *kms.Backend {
	return &kms.Backend{
		Name: "azure", Title: "Azure Key Vault", URISchemes: []string{"azurekms"}, Claims: claims, Parse: parse,
		Credentials: []kms.Credential{kms.CredentialEnv, kms.CredentialWorkload, kms.CredentialManaged, kms.CredentialCLI, kms.CredentialAuto},
	}
}

// rights are key permissions, and a role that has them.
var rights = kms.Rights{
	Signing: "allow it get and sign (Key Vault Crypto User)",
	Sealing: "allow it get and unwrapKey, and wrapKey to make a sealed key (Key Vault Crypto User)",
	Making:  "allow it get and create (Key Vault Crypto Officer)",
}

// schemeName is the name of RFC 7518 §3.1 for a signature scheme; "" for one that
// it doesn't have.
func schemeName(s kms.SignatureScheme) string {
	kind := "RS"
	switch {
	case s.Key.Curve() != nil && s.Hash != s.Key.Hash():
		return ""
	case s.Key.Curve() != nil:
		kind = "ES"
	case s.PSS:
		kind = "PS"
	}
	return kind + strconv.Itoa(8*s.Hash.Size())
}

// client reaches one version of one key.
type client struct {
	*kms.Service

	ref reference // of a version, once the key is found
	api *azkeys.Client
}

// Client has the vault's own name, whatever the endpoint is.
func (r reference) Client(_ context.Context, o kms.Options) (kms.Client, error) {
	service, err := o.NewService(r.host, rights, classify)
	if err != nil {
		return nil, err
	}
	return &client{Service: service, ref: r}, redial(service.HTTP, r.host, o.Access.Endpoint)
}

// Authenticate makes the client of the SDK.
func (c *client) Authenticate(ctx context.Context, o kms.Options) error {
	options := policy.ClientOptions{
		Transport: c.HTTP,
		Retry:     policy.RetryOptions{MaxRetries: -1}, // Call has the one budget
		Telemetry: policy.TelemetryOptions{Disabled: true},
		Cloud:     authority(c.ref.place, o),
	}
	credential, source, err := kms.Chosen(o, firstSetUp, func(name kms.Credential) (azcore.TokenCredential, string, error) {
		return named(name, o, options)
	})
	if err != nil {
		return err
	}
	if c.api, err = azkeys.NewClient("https://"+c.ref.host, credential, &azkeys.ClientOptions{ClientOptions: options}); err != nil {
		return err
	}
	return c.Identify(ctx, o, c.ref, source, func(ctx context.Context) ([]slog.Attr, error) {
		token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{c.ref.place.scope}})
		if err != nil {
			return nil, fmt.Errorf("the credential gives no token: %w", err)
		}
		return principal(token.Token), nil
	})
}

// redial sends what is for the vault's host to the endpoint, under the vault's
// own name: TLS and the SDK's check of the vault's challenge stay as they are.
func redial(client *http.Client, host, endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" {
		return errors.New("the endpoint must be https://HOST[:PORT]: Azure's SDK sends no token elsewhere")
	}
	t, ok := client.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("the transport is a %T", client.Transport)
	}
	dial, vault, there := t.DialContext, net.JoinHostPort(host, "443"), net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443"))
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == vault {
			address = there
		}
		return dial(ctx, network, address)
	}
	return nil
}

// aadsts is Entra's own code of what is wrong with a credential.
var aadsts = regexp.MustCompile(`AADSTS[0-9]+`)

// classify says what the answers of the vault and of Entra mean. The SDK's own
// texts are pages long, so they aren't used.
func classify(err error, rights string) (kms.Classified, bool) {
	if failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		if failed.RawResponse == nil { // without an answer it is the network's
			return kms.Classified{}, false
		}
		return classifyToken(failed), true
	}
	if answered, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return classifyAnswer(answered, rights), true
	}
	return kms.Classified{}, false
}

func classifyToken(failed *azidentity.AuthenticationFailedError) kms.Classified {
	status := failed.RawResponse.StatusCode
	outcome := kms.OutcomeOf(status)
	if outcome != kms.OutcomeThrottled && outcome != kms.OutcomeUnavailable {
		outcome = kms.OutcomeDenied
	}
	return outcome.Text(fmt.Sprintf("the credential is refused (HTTP %d %s)", status, aadsts.FindString(failed.Error())))
}

// refusals are what the statuses mean that vault and HSM have in common: Key Vault
// REST reference, "Authentication, requests and responses".
var refusals = map[int]string{
	http.StatusUnauthorized:    "the vault doesn't take the token: check the tenant",
	http.StatusForbidden:       "the principal may not, or the key or the network is barred: ",
	http.StatusNotFound:        "there is no such key or version in this vault",
	http.StatusConflict:        "the key is deleted: recover it",
	http.StatusTooManyRequests: "the vault's quota is used up",
}

func classifyAnswer(answered *azcore.ResponseError, rights string) kms.Classified {
	outcome := kms.OutcomeOf(answered.StatusCode)
	text := refusals[answered.StatusCode]
	switch {
	case answered.StatusCode == http.StatusForbidden:
		text += rights
	case outcome == kms.OutcomeUnavailable:
		text = "the vault failed within itself"
	case text == "":
		text = "the vault refused"
	}
	text += fmt.Sprintf(" (HTTP %d", answered.StatusCode)
	if code := codeOf(answered); code != "" {
		text += ", " + code
	}
	return outcome.Text(text + ")")
}

// answeredWith reports whether the vault answered with the status.
func answeredWith(err error, status int) bool {
	answered, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && answered.StatusCode == status
}

// codeOf is the innermost code of an answer, such as ForbiddenByRbac, and the
// first of its message.
func codeOf(answered *azcore.ResponseError) string {
	var body struct {
		Error struct {
			Message string `json:"message"`
			Inner   struct {
				Code string `json:"code"`
			} `json:"innererror"`
		} `json:"error"`
	}
	if answered.RawResponse != nil {
		b, _ := runtime.Payload(answered.RawResponse) // the SDK has read it already
		_ = json.Unmarshal(b, &body)                  // a proxy's page says nothing
	}
	code := cmp.Or(body.Error.Inner.Code, answered.ErrorCode)
	if body.Error.Message != "" {
		code += ": " + kms.OneLine(body.Error.Message)
	}
	return code
}

// SigningKey fetches the key and pins its version.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	found, err := c.find(ctx, azkeys.KeyOperationSign)
	if err != nil {
		return key, err
	}
	public, err := publicKey(found)
	if err != nil {
		return key, kms.Unusable("%w", err)
	}
	return kms.SigningKey{Name: c.ref.String(), Public: public, Supports: schemeName, Describe: c.describe, Sign: c.sign}, nil
}

// find fetches a key that may do that now, and pins its version.
func (c *client) find(ctx context.Context, wanted azkeys.KeyOperation) (*azkeys.JSONWebKey, error) {
	found, err := c.api.GetKey(ctx, c.ref.name, c.ref.version, nil)
	if err != nil {
		return nil, err
	}
	k, a, now := found.Key, found.Attributes, c.Now()
	if k == nil || k.KID == nil || k.Kty == nil {
		return nil, errors.New("its description is empty")
	}
	if a == nil {
		a = new(azkeys.KeyAttributes)
	}
	switch version := k.KID.Version(); {
	case len(k.KeyOps) > 0 && !slices.ContainsFunc(k.KeyOps, func(o *azkeys.KeyOperation) bool { return o != nil && *o == wanted }):
		return nil, kms.Unusable("its permitted operations lack %s: allow it", wanted)
	case a.Enabled != nil && !*a.Enabled:
		return nil, kms.Unusable("it is disabled: enable it")
	case a.Expires != nil && !now.Before(*a.Expires):
		return nil, kms.Unusable("it expired on %s", a.Expires.UTC().Format(time.DateOnly))
	case a.NotBefore != nil && now.Before(*a.NotBefore):
		return nil, kms.Unusable("it isn't active before %s", a.NotBefore.UTC().Format(time.DateOnly))
	case !versionForm.MatchString(version):
		return nil, fmt.Errorf("the vault names no version of the key (%q)", kms.OneLine(string(*k.KID)))
	case c.ref.version == "":
		c.ref.version = version
	}
	return k, nil
}

func (c *client) describe(ctx context.Context) error {
	_, err := c.find(ctx, azkeys.KeyOperationSign)
	return err
}

// sign makes DER of the r‖s that Azure answers with for ECDSA (RFC 7518 §3.4).
func (c *client) sign(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	name := azkeys.SignatureAlgorithm(scheme)
	answer, err := c.api.Sign(ctx, c.ref.name, c.ref.version, azkeys.SignParameters{Algorithm: &name, Value: digest}, nil)
	if err != nil || !strings.HasPrefix(scheme, "ES") {
		return answer.Result, err
	}
	sig, err := kms.ECDSASignature(answer.Result)
	if err != nil {
		return nil, kms.WrongSignature(err)
	}
	return sig, nil
}

// publicKey reads a JSON Web Key (RFC 7518 §6). The HSM kinds have the same members.
func publicKey(k *azkeys.JSONWebKey) (crypto.PublicKey, error) {
	switch *k.Kty {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		e := new(big.Int).SetBytes(k.E)
		if len(k.N) == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
			return nil, errors.New("its RSA public key can't be read")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(k.N), E: int(e.Int64())}, nil
	case azkeys.KeyTypeEC, azkeys.KeyTypeECHSM:
		for _, a := range kms.Algorithms() {
			curve := a.Curve()
			if curve == nil || k.Crv == nil || string(*k.Crv) != curve.Params().Name {
				continue
			}
			size := (curve.Params().BitSize + 7) / 8
			x, y := new(big.Int).SetBytes(k.X), new(big.Int).SetBytes(k.Y)
			if x.BitLen() > 8*size || y.BitLen() > 8*size {
				return nil, errors.New("its public key isn't on its curve")
			}
			point := append([]byte{4}, append(x.FillBytes(make([]byte, size)), y.FillBytes(make([]byte, size))...)...) // SEC 1 §2.3.3
			return ecdsa.ParseUncompressedPublicKey(curve, point)
		}
		return nil, errors.New("its curve isn't supported: use P-256, P-384 or P-521")
	default:
		return nil, fmt.Errorf("a key of type %s doesn't sign here: use EC or RSA", *k.Kty)
	}
}

// wraps are the algorithms that wrap a data key, by the type of the key: RFC 7518
// §4.1. RSA-OAEP-256 and AES key wrap (RFC 3394) authenticate no additional data:
// what a secret is about is not for the vault to know.
var wraps = map[azkeys.KeyType]azkeys.EncryptionAlgorithm{
	azkeys.KeyTypeRSA:    azkeys.EncryptionAlgorithmRSAOAEP256,
	azkeys.KeyTypeRSAHSM: azkeys.EncryptionAlgorithmRSAOAEP256,
	azkeys.KeyTypeOct:    azkeys.EncryptionAlgorithmA256KW,
	azkeys.KeyTypeOctHSM: azkeys.EncryptionAlgorithmA256KW,
}

// SealingKey finds the key and pins its version.
func (c *client) SealingKey(ctx context.Context) (key kms.SealingKey, err error) {
	found, err := c.find(ctx, azkeys.KeyOperationUnwrapKey)
	if err != nil {
		return key, err
	}
	wrap, ok := wraps[*found.Kty]
	if !ok {
		return key, kms.Unusable("a key of type %s doesn't seal: use RSA, or oct-HSM in a Managed HSM", *found.Kty)
	}
	return kms.SealingKey{
		Name: c.ref.String(), Detail: string(*found.Kty),
		Seal: func(ctx context.Context, secret []byte, _ string) ([]byte, error) {
			answer, err := c.api.WrapKey(ctx, c.ref.name, c.ref.version, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: secret}, nil)
			return answer.Result, err
		},
		Unseal: func(ctx context.Context, sealed []byte, _ string) ([]byte, error) {
			answer, err := c.api.UnwrapKey(ctx, c.ref.name, c.ref.version, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: sealed}, nil)
			if refused, ok := errors.AsType[*azcore.ResponseError](err); ok && refused.StatusCode == http.StatusBadRequest {
				err = kms.NotSealed(fmt.Errorf("HTTP 400, %s", codeOf(refused)))
			}
			return answer.Result, err
		},
	}, nil
}

// Unsealer is the version that sealed, where r leaves it open.
func (r reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(reference)
	if !ok || p.name != r.name || r.version != "" && p.version != r.version {
		return nil, false
	}
	if p.host != r.host && (p.place != r.place || r.version == "") { // one HSM has a host in each of its regions
		return nil, false
	}
	r.version = p.version
	return r, true
}

// Make makes a key that signs and verifies, and can't be exported. A vault makes
// a new version of a key that is there, so it is asked first.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	if c.ref.version != "" {
		return "", errors.New("a new key has no version yet: leave it out")
	}
	err := c.Absent(ctx, c.describe, func(err error) bool { return answeredWith(err, http.StatusNotFound) })
	if err != nil {
		return "", err
	}
	pinned := c.ref
	err = c.Once(ctx, kms.OperationMake, func(ctx context.Context) error {
		made, err := c.api.CreateKey(ctx, c.ref.name, parameters(a), nil)
		switch {
		case err != nil:
			return err
		case made.Key == nil || made.Key.KID == nil || !versionForm.MatchString(made.Key.KID.Version()):
			return errors.New("the answer doesn't name the new key's version")
		}
		pinned.version = made.Key.KID.Version()
		return nil
	})
	if failed := (*kms.CallError)(nil); answeredWith(err, http.StatusBadRequest) && errors.As(err, &failed) {
		failed.Text += ": keys are made in hardware, which needs a vault of the Premium tier or a managed HSM; make others with `az keyvault key create`"
	}
	return pinned.String(), err
}

// parameters are of a key of a kind that stays in hardware, which a vault of the
// Premium tier and a managed HSM have: RFC 7518 §6.1, and -HSM.
func parameters(a kms.Algorithm) azkeys.CreateKeyParameters {
	sign, verify := azkeys.KeyOperationSign, azkeys.KeyOperationVerify
	in := azkeys.CreateKeyParameters{KeyOps: []*azkeys.KeyOperation{&sign, &verify}}
	if c := a.Curve(); c != nil {
		in.Kty, in.Curve = new(azkeys.KeyTypeECHSM), new(azkeys.CurveName(c.Params().Name))
	} else {
		in.Kty, in.KeySize = new(azkeys.KeyTypeRSAHSM), new(int32(a.Bits()))
	}
	return in
}
