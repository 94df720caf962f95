package kms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
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
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// azureBackend keeps keys in Azure Key Vault and Managed HSM.
var azureBackend = &backend{
	name: "azure", title: "Azure Key Vault", schemes: []string{"azurekms"}, claims: claimsAzure, parse: parseAzure,
	credentials: []Credential{CredentialEnv, CredentialWorkload, CredentialManaged, CredentialCLI, CredentialAuto},
}

// azureSchemes are the names of RFC 7518 §3.1 for what a key of an algorithm signs.
func azureSchemes(key Algorithm) map[scheme]string {
	switch key {
	case ECDSAP256:
		return map[scheme]string{{key, crypto.SHA256, false}: "ES256"}
	case ECDSAP384:
		return map[scheme]string{{key, crypto.SHA384, false}: "ES384"}
	case ECDSAP521:
		return map[scheme]string{{key, crypto.SHA512, false}: "ES512"}
	default:
		return map[scheme]string{
			{key, crypto.SHA256, false}: "RS256", {key, crypto.SHA384, false}: "RS384", {key, crypto.SHA512, false}: "RS512",
			{key, crypto.SHA256, true}: "PS256", {key, crypto.SHA384, true}: "PS384", {key, crypto.SHA512, true}: "PS512",
		}
	}
}

// azureKey is one version of one key and the client that reaches it.
type azureKey struct {
	remote

	api           *azkeys.Client
	host          string
	keyName, vers string
}

// openAzure names the credential, finds the key and pins its version.
func openAzure(ctx context.Context, r azureReference, o Options) (Signer, error) {
	k, err := connectAzure(ctx, r, o, judgeAzure)
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

// connectAzure makes the client of a key, with the credential that is named.
func connectAzure(ctx context.Context, r azureReference, o Options, judge func(error) (verdict, bool)) (*azureKey, error) {
	k := &azureKey{host: r.host, keyName: r.name, vers: r.version}
	var err error
	if k.service, err = newService(azureBackend, r.host, o, judge); err != nil {
		return nil, err
	}
	if err := k.connect(ctx, r, o); err != nil {
		Close(k)
		return nil, err
	}
	return k, nil
}

func (k *azureKey) connect(ctx context.Context, r azureReference, o Options) error {
	if err := redial(k.client, r.host, o.Access.Endpoint); err != nil {
		return err
	}
	client := policy.ClientOptions{
		Transport: k.client,
		Retry:     policy.RetryOptions{MaxRetries: -1}, // k.call has the one budget
		Telemetry: policy.TelemetryOptions{Disabled: true},
		Cloud:     azureCloud(r.place, o),
	}
	var credential *azureCredential
	err := o.step("credential", func() (string, error) {
		var err error
		if credential, err = newAzureCredential(o, client); err != nil {
			return "", err
		}
		return credential.source, nil
	})
	if err != nil {
		return err
	}
	if k.api, err = azkeys.NewClient("https://"+r.host, credential, &azkeys.ClientOptions{ClientOptions: client}); err != nil {
		return err
	}
	return k.identify(ctx, r, credential, o)
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
	port := u.Port()
	if port == "" {
		port = "443"
	}
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
func (k *azureKey) identify(ctx context.Context, r azureReference, credential *azureCredential, o Options) error {
	var who azurePrincipal
	err := o.step("token", func() (string, error) {
		err := k.call(ctx, operationIdentity, func(ctx context.Context) error {
			token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{r.place.scope}})
			if err != nil {
				return &tokenError{err}
			}
			who = azurePrincipalOf(token.Token)
			return nil
		})
		return who.String(), err
	})
	if err != nil {
		return err
	}
	k.logger.InfoContext(ctx, "credential of a key", slog.String("key", r.String()), slog.String("credential", credential.source),
		slog.String("tenant", who.Tenant), slog.String("object", who.Object), slog.String("app", who.App))
	return nil
}

// find fetches the key and pins its version.
func (k *azureKey) find(ctx context.Context) error {
	found, err := k.bundle(ctx, azkeys.KeyOperationSign)
	if err != nil {
		return err
	}
	if err := k.pin(found); err != nil {
		return err
	}
	public, err := azurePublic(found.Key)
	if err != nil {
		return &unusableError{err.Error()}
	}
	algorithm, err := AlgorithmOf(public)
	if err != nil {
		return &unusableError{err.Error()}
	}
	k.public, k.key, k.algorithms = public, algorithm, azureSchemes(algorithm)
	k.remote.sign, k.describe = k.sign, k.stands
	return nil
}

// pin keeps the version that was found.
func (k *azureKey) pin(found azkeys.GetKeyResponse) error {
	version := found.Key.KID.Version()
	if !azureVersion.MatchString(version) {
		return fmt.Errorf("the vault names no version of the key (%q)", oneLine(string(*found.Key.KID)))
	}
	k.vers = version
	k.name = "https://" + k.host + "/keys/" + k.keyName + "/" + k.vers
	return nil
}

// bundle is the description of a key that may do that now.
func (k *azureKey) bundle(ctx context.Context, operations ...azkeys.KeyOperation) (azkeys.GetKeyResponse, error) {
	found, err := k.api.GetKey(ctx, k.keyName, k.vers, nil)
	if err != nil {
		return found, err
	}
	if found.Key == nil || found.Key.KID == nil || found.Key.Kty == nil {
		return found, errors.New("its description is empty")
	}
	for _, wanted := range operations {
		if len(found.Key.KeyOps) > 0 && !slices.ContainsFunc(found.Key.KeyOps, func(o *azkeys.KeyOperation) bool { return o != nil && *o == wanted }) {
			return found, &unusableError{fmt.Sprintf("its permitted operations lack %s: allow it", wanted)}
		}
	}
	if a := found.Attributes; a != nil {
		now := k.now()
		switch {
		case a.Enabled != nil && !*a.Enabled:
			return found, &unusableError{"it is disabled: enable it"}
		case a.Expires != nil && !now.Before(*a.Expires):
			return found, &unusableError{fmt.Sprintf("it expired on %s", a.Expires.UTC().Format(time.DateOnly))}
		case a.NotBefore != nil && now.Before(*a.NotBefore):
			return found, &unusableError{fmt.Sprintf("it isn't active before %s", a.NotBefore.UTC().Format(time.DateOnly))}
		}
	}
	return found, nil
}

func (k *azureKey) stands(ctx context.Context) error {
	_, err := k.bundle(ctx, azkeys.KeyOperationSign)
	return err
}

func (k *azureKey) sign(ctx context.Context, algorithm string, digest []byte) ([]byte, error) {
	name := azkeys.SignatureAlgorithm(algorithm)
	answer, err := k.api.Sign(ctx, k.keyName, k.vers, azkeys.SignParameters{Algorithm: &name, Value: digest}, nil)
	if err != nil {
		return nil, err
	}
	if _, ok := k.public.(*ecdsa.PublicKey); !ok {
		return answer.Result, nil
	}
	return derOf(answer.Result)
}

// derOf makes the ECDSA-Sig-Value (RFC 3279 §2.2.3) of the r‖s that Azure
// answers with (RFC 7518 §3.4).
func derOf(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, &wrongError{fmt.Errorf("%d bytes aren't r and s", len(raw))}
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:len(raw)/2]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[len(raw)/2:]))
	})
	return b.Bytes()
}

// azurePublic reads a JSON Web Key (RFC 7518 §6). The HSM kinds have the same members.
func azurePublic(k *azkeys.JSONWebKey) (crypto.PublicKey, error) {
	switch *k.Kty {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		e := new(big.Int).SetBytes(k.E)
		if len(k.N) == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
			return nil, errors.New("its RSA public key can't be read")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(k.N), E: int(e.Int64())}, nil
	case azkeys.KeyTypeEC, azkeys.KeyTypeECHSM:
		curves := map[azkeys.CurveName]elliptic.Curve{
			azkeys.CurveNameP256: elliptic.P256(), azkeys.CurveNameP384: elliptic.P384(), azkeys.CurveNameP521: elliptic.P521(),
		}
		if k.Crv == nil || curves[*k.Crv] == nil {
			return nil, errors.New("its curve isn't supported: use P-256, P-384 or P-521")
		}
		curve := curves[*k.Crv]
		size := (curve.Params().BitSize + 7) / 8
		x, y := new(big.Int).SetBytes(k.X), new(big.Int).SetBytes(k.Y)
		if x.BitLen() > 8*size || y.BitLen() > 8*size {
			return nil, errors.New("its public key isn't on its curve")
		}
		point := append([]byte{4}, append(x.FillBytes(make([]byte, size)), y.FillBytes(make([]byte, size))...)...) // SEC 1 §2.3.3
		return ecdsa.ParseUncompressedPublicKey(curve, point)
	default:
		return nil, fmt.Errorf("a key of type %s doesn't sign here: use EC or RSA", *k.Kty)
	}
}

// aadsts is Entra's own code of what is wrong with a credential.
var aadsts = regexp.MustCompile(`AADSTS[0-9]+`)

// judgeAzure classifies what the vault or Entra answered. The SDK's own texts
// are pages long, so they aren't used.
func judgeAzure(err error) (verdict, bool) {
	var unusable *unusableError
	var failed *azidentity.AuthenticationFailedError
	var answered *azcore.ResponseError
	switch {
	case errors.As(err, &unusable):
		return verdict{outcomeUnusable, false, unusable.Error()}, true
	case errors.As(err, &failed):
		if failed.RawResponse == nil {
			return verdict{}, false // the network's
		}
		return azureTokenVerdict(failed), true
	case errors.As(err, &answered):
		return azureVerdict(answered), true
	default:
		return verdict{}, false
	}
}

func azureTokenVerdict(failed *azidentity.AuthenticationFailedError) verdict {
	text := fmt.Sprintf("the credential is refused (HTTP %d %s)", failed.RawResponse.StatusCode, aadsts.FindString(failed.Error()))
	switch status := failed.RawResponse.StatusCode; {
	case status == http.StatusTooManyRequests:
		return verdict{outcomeThrottled, true, text}
	case status >= http.StatusInternalServerError:
		return verdict{outcomeUnavailable, true, text}
	default:
		return verdict{outcomeDenied, false, text}
	}
}

// azureVerdict goes by the status, which vault and HSM have in common: Key Vault
// REST reference, "Authentication, requests and responses".
func azureVerdict(answered *azcore.ResponseError) verdict {
	v := verdict{outcome: outcomeOther, text: "the vault refused"}
	switch status := answered.StatusCode; {
	case status == http.StatusUnauthorized:
		v = verdict{outcomeDenied, false, "the vault doesn't take the token: check the tenant"}
	case status == http.StatusForbidden:
		v = verdict{outcomeDenied, false, "the principal may not, or the key or the network is barred: " + azureRights.signing}
	case status == http.StatusNotFound:
		v = verdict{outcomeUnusable, false, "there is no such key or version in this vault"}
	case status == http.StatusConflict:
		v = verdict{outcomeUnusable, false, "the key is deleted: recover it"}
	case status == http.StatusTooManyRequests:
		v = verdict{outcomeThrottled, true, "the vault's quota is used up"}
	case status == http.StatusRequestTimeout, status >= http.StatusInternalServerError:
		v = verdict{outcomeUnavailable, true, "the vault failed within itself"}
	}
	v.text += fmt.Sprintf(" (HTTP %d", answered.StatusCode)
	if code := azureCode(answered); code != "" {
		v.text += ", " + code
	}
	v.text += ")"
	return v
}

// azureCode is the innermost code of an answer, such as ForbiddenByRbac, and the
// first of its message.
func azureCode(answered *azcore.ResponseError) string {
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
			code += ": " + oneLine(body.Error.Message)
		}
	}
	return code
}
