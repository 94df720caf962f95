package gcp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"cloud.google.com/go/auth"
	gcpauth "cloud.google.com/go/auth/credentials"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

// scope is all that a token may be used for.
const scope = "https://www.googleapis.com/auth/cloudkms"

// fileTypes are the types of credential file that each credential stands for.
var fileTypes = map[kms.Credential][]gcpauth.CredType{
	kms.CredentialEnv:      {gcpauth.ServiceAccount, gcpauth.ImpersonatedServiceAccount},
	kms.CredentialWorkload: {gcpauth.ExternalAccount},
	kms.CredentialCLI:      {gcpauth.AuthorizedUser, gcpauth.ImpersonatedServiceAccount, gcpauth.ExternalAccountAuthorizedUser},
}

// credential is what the configuration names, and nothing else, and whose it is.
func (c *client) credential(ctx context.Context, o kms.Options) (*auth.Credentials, string, error) {
	if o.Access.Credential == kms.CredentialManaged {
		return c.managed(ctx, o)
	}
	path := o.Getenv("GOOGLE_APPLICATION_CREDENTIALS")
	if o.Access.Credential == kms.CredentialCLI {
		folder := o.Getenv("CLOUDSDK_CONFIG")
		if folder == "" && o.Getenv("HOME") != "" {
			folder = filepath.Join(o.Getenv("HOME"), ".config", "gcloud")
		}
		path = filepath.Join(folder, "application_default_credentials.json")
	} else if path == "" {
		return nil, "", errors.New("GOOGLE_APPLICATION_CREDENTIALS isn't set")
	}
	read := secretfile.Read
	if o.Access.Credential == kms.CredentialWorkload { // says where the token is, and holds none
		read = kms.ReadPlatformFile
	}
	b, err := read(path)
	if err != nil {
		return nil, "", err
	}
	var said struct {
		Type          gcpauth.CredType `json:"type"`
		Email         string           `json:"client_email"`
		Impersonation string           `json:"service_account_impersonation_url"`
		Audience      string           `json:"audience"`
		ClientID      string           `json:"client_id"`
	}
	if json.Unmarshal(b, &said) != nil {
		return nil, "", fmt.Errorf("%s isn't a credential file of Google's", path)
	}
	if accepted := fileTypes[o.Access.Credential]; !slices.Contains(accepted, said.Type) {
		return nil, "", fmt.Errorf("%s is of type %q, which isn't one of %v", path, kms.OneLine(string(said.Type)), accepted)
	}
	found, err := gcpauth.NewCredentialsFromJSON(said.Type, b, &gcpauth.DetectOptions{
		Scopes: []string{scope}, Client: c.HTTP, UseSelfSignedJWT: true, DisableAsyncRefresh: true,
	})
	if err != nil {
		return nil, "", fmt.Errorf("%s can't be used: %w", path, err)
	}
	return found, kms.OneLine(cmp.Or(said.Email, said.Impersonation, said.Audience, said.ClientID)), nil
}

// managed is the machine's own credential, or that of a pod on GKE, from the
// metadata address.
func (c *client) managed(ctx context.Context, o kms.Options) (*auth.Credentials, string, error) {
	host := cmp.Or(o.Getenv("GCE_METADATA_HOST"), "metadata.google.internal") // Google's own variable
	account := cmp.Or(o.Access.Identity, "default")
	m := &metadata{client: c.HTTP, base: "http://" + host + "/computeMetadata/v1/instance/service-accounts/" + url.PathEscape(account) + "/", now: o.Now}
	var email []byte
	err := c.Call(ctx, kms.OperationIdentity, func(ctx context.Context) (err error) {
		email, err = m.get(ctx, "email")
		return err
	})
	cached := auth.NewCachedTokenProvider(m, &auth.CachedTokenProviderOptions{DisableAsyncRefresh: true})
	return auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: cached}), kms.OneLine(string(email)), err
}

// metadata gets tokens from the metadata server.
type metadata struct {
	client *http.Client
	base   string
	now    func() time.Time
}

func (m *metadata) Token(ctx context.Context) (*auth.Token, error) {
	b, err := m.get(ctx, "token?scopes="+url.QueryEscape(scope))
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

func (m *metadata) get(ctx context.Context, what string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.base+what, nil)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	request.Header.Set("Metadata-Flavor", "Google")
	answer, err := bounded.Do(m.client, request, 64<<10)
	switch {
	case answer == nil:
		return nil, err
	case answer.StatusCode != http.StatusOK:
		return nil, &auth.Error{Response: answer.Response, Body: answer.Body}
	case answer.Header.Get("Metadata-Flavor") != "Google":
		return nil, errors.New("what answers at the metadata address isn't Google's metadata server")
	}
	return answer.Body, err
}

// classifyToken is for what went wrong with a token.
func classifyToken(err error) (kms.Classified, bool) {
	refused, ok := errors.AsType[*auth.Error](err)
	if !ok || refused.Response == nil {
		return kms.Classified{}, false
	}
	status := refused.Response.StatusCode
	switch kms.OutcomeOf(status) {
	case kms.OutcomeUnavailable, kms.OutcomeThrottled:
		return kms.OutcomeUnavailable.Text(fmt.Sprintf("no token: HTTP %d", status)), true
	default:
		return kms.OutcomeDenied.Text(fmt.Sprintf("the credential gets no token: HTTP %d: check the account, and that it isn't disabled or its key deleted", status)), true
	}
}
