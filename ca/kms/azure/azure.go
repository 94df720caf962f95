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
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
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
func rights() kms.Rights {
	return kms.Rights{
		Signing: "allow it get and sign (Key Vault Crypto User)",
		Sealing: "allow it get and unwrapKey, and wrapKey to make a sealed key (Key Vault Crypto User)",
		Making:  "allow it get and create (Key Vault Crypto Officer)",
	}
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
	service, err := o.NewService(r.host, rights(), classify)
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
	var credential *credential
	err := o.Step("credential", func() (string, error) {
		var err error
		if credential, err = newCredential(o, options); err != nil {
			return "", err
		}
		return credential.source, nil
	})
	if err != nil {
		return err
	}
	if c.api, err = azkeys.NewClient("https://"+c.ref.host, credential, &azkeys.ClientOptions{ClientOptions: options}); err != nil {
		return err
	}
	return c.identify(ctx, credential, o)
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
	port := cmp.Or(u.Port(), "443")
	t, ok := client.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("the transport is a %T", client.Transport)
	}
	dial, vault, there := t.DialContext, net.JoinHostPort(host, "443"), net.JoinHostPort(u.Hostname(), port)
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == vault {
			address = there
		}
		return dial(ctx, network, address)
	}
	return nil
}

// identify fetches a token, and logs whose it is.
func (c *client) identify(ctx context.Context, credential *credential, o kms.Options) error {
	var who principal
	err := o.Step("token", func() (string, error) {
		err := c.Call(ctx, kms.OperationIdentity, func(ctx context.Context) error {
			token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{c.ref.place.scope}})
			if err != nil {
				return fmt.Errorf("the credential gives no token: %w", err)
			}
			who = principalOf(token.Token)
			return nil
		})
		return who.String(), err
	})
	if err != nil {
		return err
	}
	c.Logger.InfoContext(ctx, "credential of a key", slog.String("key", c.ref.String()), slog.String("credential", credential.source),
		slog.String("tenant", who.Tenant), slog.String("object", who.Object), slog.String("app", who.App))
	return nil
}

// SigningKey fetches the key and pins its version.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	err = c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		found, err := c.find(ctx, azkeys.KeyOperationSign)
		if err != nil {
			return err
		}
		if err := c.pin(found); err != nil {
			return err
		}
		public, err := publicKey(found.Key)
		if err != nil {
			return kms.Unusable("%w", err)
		}
		algorithm, err := kms.AlgorithmOf(public)
		if err != nil {
			return kms.Unusable("%w", err)
		}
		key = kms.SigningKey{Name: c.ref.String(), Public: public, Algorithm: algorithm, Supports: schemeName, Describe: c.describe, Sign: c.sign}
		if _, ok := public.(*ecdsa.PublicKey); ok {
			key.Sign = c.signECDSA
		}
		return nil
	})
	return key, err
}

// pin keeps the version that was found.
func (c *client) pin(found azkeys.GetKeyResponse) error {
	version := found.Key.KID.Version()
	if !versionForm.MatchString(version) {
		return fmt.Errorf("the vault names no version of the key (%q)", kms.OneLine(string(*found.Key.KID)))
	}
	c.ref.version = version
	return nil
}

// find fetches the description of a key that may do that now.
func (c *client) find(ctx context.Context, wanted azkeys.KeyOperation) (azkeys.GetKeyResponse, error) {
	found, err := c.api.GetKey(ctx, c.ref.name, c.ref.version, nil)
	if err != nil {
		return found, err
	}
	if found.Key == nil || found.Key.KID == nil || found.Key.Kty == nil {
		return found, errors.New("its description is empty")
	}
	if len(found.Key.KeyOps) > 0 && !slices.ContainsFunc(found.Key.KeyOps, func(o *azkeys.KeyOperation) bool { return o != nil && *o == wanted }) {
		return found, kms.Unusable("its permitted operations lack %s: allow it", wanted)
	}
	if a := found.Attributes; a != nil {
		now := c.Now()
		switch {
		case a.Enabled != nil && !*a.Enabled:
			return found, kms.Unusable("it is disabled: enable it")
		case a.Expires != nil && !now.Before(*a.Expires):
			return found, kms.Unusable("it expired on %s", a.Expires.UTC().Format(time.DateOnly))
		case a.NotBefore != nil && now.Before(*a.NotBefore):
			return found, kms.Unusable("it isn't active before %s", a.NotBefore.UTC().Format(time.DateOnly))
		}
	}
	return found, nil
}

func (c *client) describe(ctx context.Context) error {
	_, err := c.find(ctx, azkeys.KeyOperationSign)
	return err
}

func (c *client) sign(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	name := azkeys.SignatureAlgorithm(scheme)
	answer, err := c.api.Sign(ctx, c.ref.name, c.ref.version, azkeys.SignParameters{Algorithm: &name, Value: digest}, nil)
	return answer.Result, err
}

// signECDSA makes DER of the r‖s that Azure answers with (RFC 7518 §3.4).
func (c *client) signECDSA(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	raw, err := c.sign(ctx, scheme, digest)
	if err != nil {
		return nil, err
	}
	sig, err := kms.ECDSASignature(raw)
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

// aadsts is Entra's own code of what is wrong with a credential.
var aadsts = regexp.MustCompile(`AADSTS[0-9]+`)

// classify says what the answers of the vault and of Entra mean. The SDK's own
// texts are pages long, so they aren't used.
func classify(err error, rights string) (kms.Classified, bool) {
	var failed *azidentity.AuthenticationFailedError
	var answered *azcore.ResponseError
	switch {
	case errors.As(err, &failed) && failed.RawResponse != nil: // without an answer it is the network's
		return classifyToken(failed), true
	case !errors.As(err, &failed) && errors.As(err, &answered):
		return classifyAnswer(answered, rights), true
	default:
		return kms.Classified{}, false
	}
}

func classifyToken(failed *azidentity.AuthenticationFailedError) kms.Classified {
	text := fmt.Sprintf("the credential is refused (HTTP %d %s)", failed.RawResponse.StatusCode, aadsts.FindString(failed.Error()))
	switch status := failed.RawResponse.StatusCode; {
	case status == http.StatusTooManyRequests:
		return kms.OutcomeThrottled.Text(text)
	case status >= http.StatusInternalServerError:
		return kms.OutcomeUnavailable.Text(text)
	default:
		return kms.OutcomeDenied.Text(text)
	}
}

// classifyAnswer goes by the status, which vault and HSM have in common: Key Vault
// REST reference, "Authentication, requests and responses".
func classifyAnswer(answered *azcore.ResponseError, rights string) kms.Classified {
	c := kms.OutcomeOther.Text("the vault refused")
	switch status := answered.StatusCode; {
	case status == http.StatusUnauthorized:
		c = kms.OutcomeDenied.Text("the vault doesn't take the token: check the tenant")
	case status == http.StatusForbidden:
		c = kms.OutcomeDenied.Text("the principal may not, or the key or the network is barred: " + rights)
	case status == http.StatusNotFound:
		c = kms.OutcomeUnusable.Text("there is no such key or version in this vault")
	case status == http.StatusConflict:
		c = kms.OutcomeUnusable.Text("the key is deleted: recover it")
	case status == http.StatusTooManyRequests:
		c = kms.OutcomeThrottled.Text("the vault's quota is used up")
	case status == http.StatusRequestTimeout, status >= http.StatusInternalServerError:
		c = kms.OutcomeUnavailable.Text("the vault failed within itself")
	}
	c.Text += fmt.Sprintf(" (HTTP %d", answered.StatusCode)
	if code := codeOf(answered); code != "" {
		c.Text += ", " + code
	}
	c.Text += ")"
	return c
}

// answeredWith reports whether the vault answered with the status.
func answeredWith(err error, status int) bool {
	var answered *azcore.ResponseError
	return errors.As(err, &answered) && answered.StatusCode == status
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
	code := answered.ErrorCode
	if b, err := payload(answered.RawResponse); err == nil && json.Unmarshal(b, &body) == nil {
		if body.Error.Inner.Code != "" {
			code = body.Error.Inner.Code
		}
		if body.Error.Message != "" {
			code += ": " + kms.OneLine(body.Error.Message)
		}
	}
	return code
}
