package vault

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	// maxAnswer bounds an answer: a key of hundreds of versions shows a public key
	// for each.
	maxAnswer = 4 << 20
)

// client reaches one key.
type client struct {
	*kms.Service

	ref       *reference
	base      *url.URL
	namespace string
	token     tokenSource
}

// Client finds out where Vault is, from the configuration or its own variables.
func (r *reference) Client(_ context.Context, o kms.Options) (kms.Client, error) {
	endpoint := cmp.Or(o.Access.Endpoint, o.FirstSet("VAULT_ADDR", "BAO_ADDR"))
	if endpoint == "" {
		return nil, errors.New("where is Vault? set endpoint, or VAULT_ADDR")
	}
	base, err := kms.ParseEndpoint(endpoint)
	if err != nil {
		return nil, err
	}
	o.Access.CAFile = cmp.Or(o.Access.CAFile, setting.Path(o.Getenv("VAULT_CACERT")))
	c := &client{ref: r, base: base, namespace: cmp.Or(o.Access.Vault.Namespace, o.Getenv("VAULT_NAMESPACE"))}
	c.Service, err = o.NewService(base.Host, r.rights(), c.classify)
	return c, err
}

// Authenticate sets up the credential that is named, and asks whose it is.
func (c *client) Authenticate(ctx context.Context, o kms.Options) error {
	token, source, err := kms.Chosen(o, nil, func(name kms.Credential) (tokenSource, string, error) { return c.named(name, o) })
	if err != nil {
		return err
	}
	c.token = token
	return c.Identify(ctx, o, c.ref, source, func(ctx context.Context) ([]slog.Attr, error) {
		var who struct {
			Name     string   `json:"display_name"`
			Policies []string `json:"policies"`
			Accessor string   `json:"accessor"`
		}
		err := c.do(ctx, http.MethodGet, "auth/token/lookup-self", nil, &who)
		if refusedWith(err, http.StatusForbidden) {
			who.Name, err = "a token that may not look itself up", nil // or a wrong one: reading the key tells
		}
		principal := fmt.Sprintf("%s, policies %v", kms.OneLine(who.Name), kms.OneLine(strings.Join(who.Policies, " ")))
		return []slog.Attr{slog.String("principal", principal), slog.String("accessor", kms.OneLine(who.Accessor))}, err
	})
}

// tokenSource is the present token; with fresh, one that is had now.
type tokenSource func(ctx context.Context, fresh bool) (string, error)

// named is the credential of a name.
func (c *client) named(name kms.Credential, o kms.Options) (_ tokenSource, source string, err error) {
	vault := o.Access.Vault
	switch name {
	case kms.CredentialEnv:
		for _, name := range []string{"VAULT_TOKEN", "BAO_TOKEN"} {
			if token := strings.TrimSpace(o.Getenv(name)); token != "" {
				return func(context.Context, bool) (string, error) { return token, nil }, name, nil
			}
		}
		return nil, "", errors.New("VAULT_TOKEN isn't set")
	case kms.CredentialFile:
		if vault.TokenFile == "" {
			return nil, "", errors.New("set vault.token_file")
		}
		return tokenFile(string(vault.TokenFile)), string(vault.TokenFile), nil
	case kms.CredentialCLI:
		home := o.Getenv("HOME")
		if home == "" {
			return nil, "", errors.New("HOME isn't set")
		}
		path := filepath.Join(home, ".vault-token")
		return tokenFile(path), path, nil
	default:
		if vault.Role == "" {
			return nil, "", errors.New("set vault.role to the role of Vault's Kubernetes login")
		}
		l := &login{
			client: c, mount: cmp.Or(vault.AuthMount, "kubernetes"), role: vault.Role,
			file: string(cmp.Or(vault.TokenFile, serviceAccount)), turn: make(chan struct{}, 1),
		}
		return l.token, fmt.Sprintf("Kubernetes login at auth/%s, role %s", l.mount, l.role), nil
	}
}

// tokenFile reads a token anew for each call: whoever renews it replaces the file.
func tokenFile(path string) tokenSource {
	return func(context.Context, bool) (string, error) { return readToken(path, secretfile.Read) }
}

func readToken(path string, read func(string) ([]byte, error)) (string, error) {
	b, err := read(path)
	token := strings.TrimSpace(string(b))
	switch {
	case err != nil:
		return "", fmt.Errorf("token file: %w", err)
	case token == "":
		return "", fmt.Errorf("token file %s: is empty", path)
	case strings.ContainsAny(token, "\r\n"):
		return "", fmt.Errorf("token file %s: has more than one line", path)
	}
	return token, nil
}

// login is a token from Vault's Kubernetes login, had again before it expires.
type login struct {
	client      *client
	mount, role string
	file        string

	turn  chan struct{} // held by who logs in or looks at what follows
	value string
	renew time.Time // zero: it doesn't expire
}

// token is the present token; with fresh, one that is had now.
func (l *login) token(ctx context.Context, fresh bool) (string, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if !fresh && l.value != "" && (l.renew.IsZero() || l.client.Now().Before(l.renew)) {
		return l.value, nil
	}
	jwt, err := readToken(l.file, kms.ReadPlatformFile)
	if err != nil {
		return "", err
	}
	var out struct {
		Auth struct {
			Token string `json:"client_token"`
			Lease int64  `json:"lease_duration"` // seconds; 0 doesn't expire
		} `json:"auth"`
	}
	if err := l.client.send(ctx, http.MethodPost, "auth/"+l.mount+"/login", "", map[string]string{"role": l.role, "jwt": jwt}, &out); err != nil {
		return "", err
	}
	if out.Auth.Token == "" {
		return "", errors.New("the login gave no token")
	}
	l.value, l.renew = out.Auth.Token, time.Time{}
	if out.Auth.Lease > 0 { // at two thirds of its life
		l.renew = l.client.Now().Add(time.Duration(out.Auth.Lease) * time.Second * 2 / 3)
	}
	return l.value, nil
}

// do sends one request with the token and decodes `data` of its answer into out.
// A token that a login gave and Vault refuses is replaced once.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	envelope := struct {
		Data any `json:"data"`
	}{out}
	token, err := c.token(ctx, false)
	if err != nil {
		return err
	}
	err = c.send(ctx, method, path, token, in, &envelope)
	if !refusedWith(err, http.StatusForbidden) {
		return err
	}
	again, freshErr := c.token(ctx, true)
	if freshErr != nil {
		return freshErr
	}
	if again == token {
		return err
	}
	return c.send(ctx, method, path, again, in, &envelope)
}

// send is one request and its answer.
func (c *client) send(ctx context.Context, method, path, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding a request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath("v1", path).String(), body)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	request.Header.Set("X-Vault-Request", "true")
	if token != "" {
		request.Header.Set("X-Vault-Token", token)
	}
	if c.namespace != "" {
		request.Header.Set("X-Vault-Namespace", c.namespace)
	}
	answer, err := bounded.Do(c.HTTP, request, maxAnswer)
	if errors.Is(err, bounded.ErrTooLong) {
		return &refusal{status: http.StatusBadGateway, Texts: []string{"an answer too large to be read"}}
	}
	if err != nil {
		return err
	}
	return decode(answer.StatusCode, answer.Body, out)
}

// decode reads an answer.
func decode(status int, answer []byte, out any) error {
	if status/100 != 2 {
		said := &refusal{status: status}
		_ = json.Unmarshal(answer, said) // a proxy's page says nothing
		return said
	}
	if len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return &refusal{status: http.StatusBadGateway, Texts: []string{"the answer isn't Vault's: check the endpoint"}}
	}
	return nil
}

// refusal is a refusal by Vault, in its own words.
type refusal struct {
	status int
	Texts  []string `json:"errors"`
}

func (e *refusal) Error() string {
	return kms.OneLine(fmt.Sprintf("HTTP %d: %s", e.status, strings.Join(e.Texts, "; ")))
}

// refusedWith reports whether Vault refused with the status.
func refusedWith(err error, status int) bool {
	said, ok := errors.AsType[*refusal](err)
	return ok && said.status == status
}

// classify says what Vault's refusals mean.
func (c *client) classify(err error, rights string) (kms.Classified, bool) {
	said, ok := errors.AsType[*refusal](err)
	if !ok {
		return kms.Classified{}, false
	}
	text := strings.ToLower(strings.Join(said.Texts, " "))
	noKey := fmt.Sprintf("there is no key %s in a transit engine at %s (in this namespace)", c.ref.name, c.ref.mount)
	outcome := kms.OutcomeOf(said.status)
	switch {
	case strings.Contains(text, "less than the minimum encryption key version"): // with HTTP 500
		return kms.OutcomeUnusable.Text("this version of the key may no longer sign, since min_encryption_version was raised: lower it, or move to a newer version"), true
	case said.status == http.StatusForbidden:
		return outcome.Text("permission denied, which Vault says of both: the token is wrong or has expired, or " + rights + " (in the right namespace)"), true
	case said.status == http.StatusNotFound && strings.Contains(text, "no handler for route"):
		return outcome.Text(noKey + ": nothing is mounted there; vault secrets enable -path=" + c.ref.mount + " transit"), true
	case said.status == http.StatusNotFound:
		return outcome.Text(noKey), true
	case outcome == kms.OutcomeThrottled:
		return outcome.Text("a rate limit quota is used up (HTTP 429)"), true
	case said.status == http.StatusServiceUnavailable && strings.Contains(text, "sealed"):
		return outcome.Text("Vault is sealed: unseal it"), true
	case said.status == http.StatusPreconditionFailed: // a standby that hasn't caught up
		outcome = kms.OutcomeUnavailable
	case outcome != kms.OutcomeUnavailable:
		outcome = kms.OutcomeUnusable
	}
	return outcome.Text(said.Error()), true
}
