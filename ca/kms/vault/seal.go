package vault

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// aeads are the types of transit keys that authenticate additional data.
var aeads = []string{"aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}

// SealingKey finds the key. Vault writes the version into what it encrypts; a
// version in the reference is the one to seal with.
func (c *client) SealingKey(ctx context.Context) (kms.SealingKey, error) {
	info, err := c.read(ctx)
	if err != nil {
		return kms.SealingKey{}, err
	}
	if !slices.Contains(aeads, info.Type) {
		return kms.SealingKey{}, fmt.Errorf("a key of type %q doesn't seal: make one of type %s", kms.OneLine(info.Type), aeads[0])
	}
	pinned := *c.ref
	pinned.version = cmp.Or(pinned.version, info.Latest)
	return kms.SealingKey{
		Name: pinned.String(), Detail: fmt.Sprintf("%s, %s", &pinned, info.Type),
		Seal: func(ctx context.Context, secret []byte, about string) ([]byte, error) {
			return c.encrypt(ctx, pinned.version, secret, about)
		},
		Unseal: c.decrypt,
	}, nil
}

// Unsealer is the version that sealed, where r leaves it open.
func (r *reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(*reference)
	if !ok || p.mount != r.mount || p.name != r.name || r.version != 0 && p.version != r.version {
		return nil, false
	}
	return p, true
}

// cryptRequest is the body of encrypt and decrypt: transit API, "Encrypt data".
type cryptRequest struct {
	Plaintext  []byte `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
	About      []byte `json:"associated_data"`
	Version    int    `json:"key_version,omitempty"`
}

func (c *client) encrypt(ctx context.Context, version int, secret []byte, about string) ([]byte, error) {
	var out cryptRequest
	in := cryptRequest{Plaintext: secret, About: []byte(about), Version: version}
	if err := c.do(ctx, http.MethodPost, c.ref.path("encrypt"), in, &out); err != nil {
		return nil, err
	}
	if text, ok := strings.CutPrefix(out.Ciphertext, "vault:v"+strconv.Itoa(version)+":"); !ok {
		return nil, kms.NotSealed(fmt.Errorf("it isn't by version %d", version))
	} else if _, err := base64.StdEncoding.DecodeString(text); err != nil {
		return nil, kms.NotSealed(err)
	}
	return []byte(out.Ciphertext), nil
}

func (c *client) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	var out cryptRequest
	err := c.do(ctx, http.MethodPost, c.ref.path("decrypt"), cryptRequest{Ciphertext: string(sealed), About: []byte(about)}, &out)
	var said *refusal
	if errors.As(err, &said) && said.status == http.StatusBadRequest {
		return nil, kms.NotSealed(said)
	}
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}
