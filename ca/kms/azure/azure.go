// Package azure opens, makes and seals with keys in Azure Key Vault and Managed HSM.
package azure

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

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
