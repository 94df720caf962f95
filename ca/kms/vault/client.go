package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// CredentialFile is a token in a file that something else keeps fresh, such as
// Vault Agent. It is read again for every call.
const CredentialFile Credential = "file"

// VaultAccess is what only HashiCorp Vault and OpenBao have.
type VaultAccess struct {
	// Namespace is the namespace that the transit engine is mounted in; if
	// empty, VAULT_NAMESPACE.
	Namespace string `yaml:"namespace,omitempty"`
	// TokenFile holds Vault's token for `credential: file`. With `credential:
	// workload` it is where Kubernetes mounts the service account's token; if
	// empty, /var/run/secrets/kubernetes.io/serviceaccount/token.
	TokenFile setting.Path `yaml:"token_file,omitempty"`
	// Role is the role of Vault's Kubernetes login, for `credential: workload`.
	Role string `yaml:"role,omitempty"`
	// AuthMount is the path that Vault's Kubernetes login is mounted at; `kubernetes` if empty.
	AuthMount string `yaml:"auth_mount,omitempty"`
}

// check adds the faults of a with a credential.
func (a *VaultAccess) check(path string, c Credential, f *setting.Faults) {
	if c == CredentialFile && a.TokenFile == "" {
		f.Add(setting.Join(path, "token_file"), "required with `credential: file`")
	}
	if a.AuthMount != "" && !vaultMount.MatchString(a.AuthMount) {
		f.Add(setting.Join(path, "auth_mount"), "%q isn't the path of a mount", a.AuthMount)
	}
	if strings.ContainsAny(a.Namespace, "\r\n") {
		f.Add(setting.Join(path, "namespace"), "has a line break")
	}
}

const (
	vaultServiceAccount = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	// maxCredential bounds a file with a token or key of ours, and maxVaultAnswer
	// an answer: a key of hundreds of versions shows a public key for each.
	maxCredential  = 64 << 10
	maxVaultAnswer = 4 << 20
)

// vault is the client of one key.
type vault struct {
	service
	key       *vaultReference
	base      *url.URL
	namespace string
	token     func(ctx context.Context, fresh bool) (string, error)
}

func newVault(r *vaultReference, o Options) (*vault, error) {
	base, err := vaultEndpoint(o)
	if err != nil {
		return nil, err
	}
	if o.Access.CAFile == "" {
		o.Access.CAFile = setting.Path(o.Getenv("VAULT_CACERT"))
	}
	v := &vault{key: r, base: base, namespace: o.Access.Vault.Namespace}
	if v.namespace == "" {
		v.namespace = o.Getenv("VAULT_NAMESPACE")
	}
	if v.service, err = newService(vaultBackend, base.Host, o, v.judge); err != nil {
		return nil, err
	}
	return v, nil
}

// authenticate sets up the credential that is named, and asks whose it is.
func (v *vault) authenticate(ctx context.Context, o Options) error {
	return o.step("credential", func() (string, error) {
		source, err := v.credential(o)
		if err != nil {
			return "", err
		}
		var who struct {
			Name     string   `json:"display_name"`
			Policies []string `json:"policies"`
			Accessor string   `json:"accessor"`
		}
		err = v.call(ctx, operationIdentity, func(ctx context.Context) error {
			return v.do(ctx, http.MethodGet, "auth/token/lookup-self", nil, &who)
		})
		var said *vaultError
		switch {
		case errors.As(err, &said) && said.status == http.StatusForbidden:
			who.Name = "a token that may not look itself up" // or a wrong one: reading the key tells
		case err != nil:
			return "", err
		}
		principal := fmt.Sprintf("%s, policies %v", oneLine(who.Name), oneLine(strings.Join(who.Policies, " ")))
		v.logger.InfoContext(ctx, "credential for a key", slog.String("key", v.key.String()), slog.String("source", source),
			slog.String("principal", principal), slog.String("accessor", oneLine(who.Accessor)))
		return source + ": " + principal, nil
	})
}

// credential sets v.token to what is named in the configuration.
func (v *vault) credential(o Options) (source string, err error) {
	switch o.Access.Credential {
	case CredentialEnv:
		for _, name := range []string{"VAULT_TOKEN", "BAO_TOKEN"} {
			if token := strings.TrimSpace(o.Getenv(name)); token != "" {
				v.token = func(context.Context, bool) (string, error) { return token, nil }
				return name, nil
			}
		}
		return "", errors.New("credential env: VAULT_TOKEN isn't set")
	case CredentialFile:
		if o.Access.Vault.TokenFile == "" {
			return "", errors.New("credential file: set vault.token_file")
		}
		v.token = tokenFile(string(o.Access.Vault.TokenFile))
		return string(o.Access.Vault.TokenFile), nil
	case CredentialCLI:
		home := o.Getenv("HOME")
		if home == "" {
			return "", errors.New("credential cli: HOME isn't set")
		}
		path := filepath.Join(home, ".vault-token")
		v.token = tokenFile(path)
		return path, nil
	default:
		if o.Access.Vault.Role == "" {
			return "", errors.New("credential workload: set vault.role to the role of Vault's Kubernetes login")
		}
		login := newVaultLogin(v, o)
		v.token = login.token
		return fmt.Sprintf("Kubernetes login at auth/%s, role %s", login.mount, login.role), nil
	}
}

// tokenFile reads a token anew for each call: whoever renews it replaces the file.
func tokenFile(path string) func(context.Context, bool) (string, error) {
	return func(context.Context, bool) (string, error) { return readToken(path) }
}

func readToken(path string) (string, error) {
	b, err := readBounded(path)
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

// readBounded reads a file of credentials.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err == nil && len(b) > maxCredential {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxCredential)
	}
	return b, err
}

// vaultLogin is a token from Vault's Kubernetes login, had again before it expires.
type vaultLogin struct {
	vault       *vault
	mount, role string
	file        string
	now         func() time.Time

	gate  chan struct{} // held by who logs in or looks at what follows
	value string
	renew time.Time // zero: it doesn't expire
}

func newVaultLogin(v *vault, o Options) *vaultLogin {
	l := &vaultLogin{vault: v, mount: o.Access.Vault.AuthMount, role: o.Access.Vault.Role, file: string(o.Access.Vault.TokenFile), now: o.Now, gate: make(chan struct{}, 1)}
	if l.mount == "" {
		l.mount = "kubernetes"
	}
	if l.file == "" {
		l.file = vaultServiceAccount
	}
	return l
}

// token is the present token; with fresh, one that is had now.
func (l *vaultLogin) token(ctx context.Context, fresh bool) (string, error) {
	select {
	case l.gate <- struct{}{}:
		defer func() { <-l.gate }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if !fresh && l.value != "" && (l.renew.IsZero() || l.now().Before(l.renew)) {
		return l.value, nil
	}
	jwt, err := readToken(l.file)
	if err != nil {
		return "", err
	}
	var out struct {
		Auth struct {
			Token string `json:"client_token"`
			Lease int64  `json:"lease_duration"` // seconds; 0 doesn't expire
		} `json:"auth"`
	}
	if err := l.vault.send(ctx, http.MethodPost, "auth/"+l.mount+"/login", "", map[string]string{"role": l.role, "jwt": jwt}, &out); err != nil {
		return "", err
	}
	if out.Auth.Token == "" {
		return "", errors.New("the login gave no token")
	}
	l.value, l.renew = out.Auth.Token, time.Time{}
	if out.Auth.Lease > 0 { // at two thirds of its life
		l.renew = l.now().Add(time.Duration(out.Auth.Lease) * time.Second * 2 / 3)
	}
	return l.value, nil
}

// do sends one request with the token and decodes `data` of its answer into out.
// A token that a login gave and Vault refuses is replaced once.
func (v *vault) do(ctx context.Context, method, path string, in, out any) error {
	envelope := struct {
		Data any `json:"data"`
	}{out}
	token, err := v.token(ctx, false)
	if err != nil {
		return err
	}
	err = v.send(ctx, method, path, token, in, &envelope)
	var said *vaultError
	if !errors.As(err, &said) || said.status != http.StatusForbidden {
		return err
	}
	again, freshErr := v.token(ctx, true)
	if freshErr != nil {
		return freshErr
	}
	if again == token {
		return err
	}
	return v.send(ctx, method, path, again, in, &envelope)
}

// send is one request and its answer.
func (v *vault) send(ctx context.Context, method, path, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding a request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, v.base.JoinPath("v1", path).String(), body)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	request.Header.Set("X-Vault-Request", "true")
	if token != "" {
		request.Header.Set("X-Vault-Token", token)
	}
	if v.namespace != "" {
		request.Header.Set("X-Vault-Namespace", v.namespace)
	}
	response, err := v.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxVaultAnswer+1))
	if err != nil {
		return err
	}
	return decodeVault(response.StatusCode, answer, out)
}

// decodeVault reads an answer.
func decodeVault(status int, answer []byte, out any) error {
	if len(answer) > maxVaultAnswer {
		return &vaultError{status: http.StatusBadGateway, texts: []string{"an answer too large to be read"}}
	}
	if status < 200 || status > 299 {
		var said struct {
			Errors []string `json:"errors"`
		}
		_ = json.Unmarshal(answer, &said) // a proxy's page says nothing
		return &vaultError{status: status, texts: said.Errors}
	}
	if status == http.StatusNoContent || len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return &vaultError{status: http.StatusBadGateway, texts: []string{"the answer isn't Vault's: check the endpoint"}}
	}
	return nil
}

// vaultError is a refusal by Vault, in its own words.
type vaultError struct {
	status int
	texts  []string
}

func (e *vaultError) Error() string {
	return oneLine(fmt.Sprintf("HTTP %d: %s", e.status, strings.Join(e.texts, "; ")))
}

// judge classifies Vault's refusals.
func (v *vault) judge(err error) (verdict, bool) {
	var said *vaultError
	if !errors.As(err, &said) {
		return verdict{}, false
	}
	words := strings.ToLower(strings.Join(said.texts, " "))
	sealed := strings.Contains(words, "sealed")
	switch {
	case strings.Contains(words, "less than the minimum encryption key version"): // with HTTP 500
		return verdict{outcomeUnusable, false, "this version of the key may no longer sign, since min_encryption_version was raised: lower it, or move to a newer version"}, true
	case said.status == http.StatusForbidden:
		return verdict{outcomeDenied, false, "permission denied, which Vault says of both: the token is wrong or has expired, or " +
			v.key.rights().signing + " (in the right namespace)"}, true
	case said.status == http.StatusNotFound && strings.Contains(words, "no handler for route"):
		return verdict{outcomeUnusable, false, fmt.Sprintf("there is no key %s in a transit engine at %s (in this namespace): nothing is mounted there; vault secrets enable -path=%[2]s transit", v.key.name, v.key.mount)}, true
	case said.status == http.StatusNotFound:
		return verdict{outcomeUnusable, false, fmt.Sprintf("there is no key %s in a transit engine at %s (in this namespace)", v.key.name, v.key.mount)}, true
	case said.status == http.StatusTooManyRequests:
		return verdict{outcomeThrottled, true, "a rate limit quota is used up (HTTP 429)"}, true
	case said.status == http.StatusServiceUnavailable && sealed:
		return verdict{outcomeUnavailable, true, "Vault is sealed: unseal it"}, true
	case said.status >= 500, said.status == http.StatusPreconditionFailed: // 412: a standby that hasn't caught up
		return verdict{outcomeUnavailable, true, said.Error()}, true
	default:
		return verdict{outcomeUnusable, false, said.Error()}, true
	}
}
