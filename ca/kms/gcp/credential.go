package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	gcpauth "cloud.google.com/go/auth/credentials"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/api/googleapi"
)

// gcpScope is all that a token may be used for.
const gcpScope = "https://www.googleapis.com/auth/cloudkms"

// gcpTypes are the types of credential file that each credential stands for.
var gcpTypes = map[Credential][]gcpauth.CredType{
	CredentialEnv:      {gcpauth.ServiceAccount, gcpauth.ImpersonatedServiceAccount},
	CredentialWorkload: {gcpauth.ExternalAccount},
	CredentialCLI:      {gcpauth.AuthorizedUser, gcpauth.ImpersonatedServiceAccount, gcpauth.ExternalAccountAuthorizedUser},
}

// authenticate is the HTTP client that adds tokens of the credential that is named.
func (g *gcp) authenticate(ctx context.Context, o Options) (*http.Client, error) {
	authorized := *g.service.client
	err := o.step("credential", func() (string, error) {
		provider, principal, err := g.credential(ctx, o)
		if err != nil {
			return "", err
		}
		err = g.call(ctx, operationIdentity, func(ctx context.Context) error {
			_, err := provider.Token(ctx)
			return err
		})
		if err != nil {
			return "", err
		}
		authorized.Transport = &gcpTransport{base: g.service.client.Transport, tokens: provider}
		g.logger.InfoContext(ctx, "credential for a key", slog.String("key", g.key.String()),
			slog.String("source", string(o.Access.Credential)), slog.String("principal", principal))
		return string(o.Access.Credential) + ": " + principal, nil
	})
	return &authorized, err
}

// credential finds what the configuration names, and nothing else.
func (g *gcp) credential(ctx context.Context, o Options) (auth.TokenProvider, string, error) {
	if o.Access.Credential == CredentialManaged {
		return g.managed(ctx, o)
	}
	path := o.Getenv("GOOGLE_APPLICATION_CREDENTIALS")
	if o.Access.Credential == CredentialCLI {
		folder := o.Getenv("CLOUDSDK_CONFIG")
		if folder == "" && o.Getenv("HOME") != "" {
			folder = filepath.Join(o.Getenv("HOME"), ".config", "gcloud")
		}
		path = filepath.Join(folder, "application_default_credentials.json")
	} else if path == "" {
		return nil, "", fmt.Errorf("credential %s: GOOGLE_APPLICATION_CREDENTIALS isn't set", o.Access.Credential)
	}
	b, err := readBounded(path)
	if err != nil {
		return nil, "", fmt.Errorf("credential %s: %w", o.Access.Credential, err)
	}
	var said struct {
		Type          gcpauth.CredType `json:"type"`
		Email         string           `json:"client_email"`
		Impersonation string           `json:"service_account_impersonation_url"`
		Audience      string           `json:"audience"`
		ClientID      string           `json:"client_id"`
	}
	if json.Unmarshal(b, &said) != nil {
		return nil, "", fmt.Errorf("credential %s: %s isn't a credential file of Google's", o.Access.Credential, path)
	}
	if accepted := gcpTypes[o.Access.Credential]; !slices.Contains(accepted, said.Type) {
		return nil, "", fmt.Errorf("credential %s: %s is of type %q, which isn't one of %v", o.Access.Credential, path, oneLine(string(said.Type)), accepted)
	}
	found, err := gcpauth.NewCredentialsFromJSON(said.Type, b, &gcpauth.DetectOptions{
		Scopes: []string{gcpScope}, Client: g.service.client, UseSelfSignedJWT: true, DisableAsyncRefresh: true,
	})
	if err != nil {
		return nil, "", fmt.Errorf("credential %s: %s can't be used: %w", o.Access.Credential, path, err)
	}
	principal := said.Email
	for _, other := range []string{said.Impersonation, said.Audience, said.ClientID} {
		if principal == "" {
			principal = other
		}
	}
	return found, oneLine(principal), nil
}

// managed is the machine's own credential, or that of a pod on GKE, from the
// metadata address.
func (g *gcp) managed(ctx context.Context, o Options) (auth.TokenProvider, string, error) {
	host := o.Getenv("GCE_METADATA_HOST") // Google's own variable
	if host == "" {
		host = "metadata.google.internal"
	}
	account := "default"
	if o.Access.Identity != "" {
		account = o.Access.Identity
	}
	m := &gcpMetadata{client: g.service.client, base: "http://" + host + "/computeMetadata/v1/instance/service-accounts/" + url.PathEscape(account) + "/", now: o.Now}
	var email []byte
	err := g.call(ctx, operationIdentity, func(ctx context.Context) (err error) {
		email, err = m.get(ctx, "email")
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return auth.NewCachedTokenProvider(m, &auth.CachedTokenProviderOptions{DisableAsyncRefresh: true}), oneLine(string(email)), nil
}

// gcpMetadata gets tokens from the metadata server.
type gcpMetadata struct {
	client *http.Client
	base   string
	now    func() time.Time
}

func (m *gcpMetadata) Token(ctx context.Context) (*auth.Token, error) {
	b, err := m.get(ctx, "token?scopes="+url.QueryEscape(gcpScope))
	if err != nil {
		return nil, err
	}
	var said struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_in"` // seconds
	}
	if err := json.Unmarshal(b, &said); err != nil || said.Token == "" {
		return nil, errors.New("the metadata server gave no token")
	}
	return &auth.Token{Value: said.Token, Type: "Bearer", Expiry: m.now().Add(time.Duration(said.Expires) * time.Second)}, nil
}

func (m *gcpMetadata) get(ctx context.Context, what string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.base+what, nil)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	request.Header.Set("Metadata-Flavor", "Google")
	response, err := m.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode != http.StatusOK:
		return nil, &gcpTokenError{response.StatusCode}
	case response.Header.Get("Metadata-Flavor") != "Google":
		return nil, errors.New("what answers at the metadata address isn't Google's metadata server")
	}
	return b, nil
}

// gcpTokenError is a refusal by the metadata server.
type gcpTokenError struct{ status int }

func (e *gcpTokenError) Error() string { return fmt.Sprintf("HTTP %d", e.status) }

// gcpTransport adds a token to each request, within the request's time.
type gcpTransport struct {
	base   http.RoundTripper
	tokens auth.TokenProvider
}

func (t *gcpTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := t.tokens.Token(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // RoundTrip's duty
		}
		return nil, fmt.Errorf("token: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token.Value)
	return t.base.RoundTrip(r)
}

// gcpTokenVerdict is for what went wrong with a token.
func gcpTokenVerdict(err error) (verdict, bool) {
	var refused *auth.Error
	var metadata *gcpTokenError
	var status int
	switch {
	case errors.As(err, &metadata):
		status = metadata.status
	case errors.As(err, &refused) && refused.Response != nil:
		status = refused.Response.StatusCode
	default:
		return verdict{}, false
	}
	if status >= 500 || status == http.StatusTooManyRequests {
		return verdict{outcomeUnavailable, true, fmt.Sprintf("no token: HTTP %d", status)}, true
	}
	return verdict{outcomeDenied, false, fmt.Sprintf("the credential gets no token: HTTP %d: check the account, and that it isn't disabled or its key deleted", status)}, true
}

// gcpText is what Google says is wrong.
func gcpText(said *apierror.APIError) string {
	var plain *googleapi.Error
	if errors.As(error(said), &plain) && plain.Message != "" {
		return oneLine(plain.Message)
	}
	return oneLine(strings.TrimSpace(said.Error()))
}
