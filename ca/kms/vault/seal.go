package kms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// vaultAEADs are the types of transit keys that authenticate additional data.
var vaultAEADs = []string{"aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}

// openSealer authenticates and finds the key. Vault writes the version into what
// it encrypts; a version in the reference is the one to seal with.
func (r *vaultReference) openSealer(ctx context.Context, o Options) (Sealer, error) {
	v, err := newVault(r, o)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	v.service.judge = r.rights().judge(v.service.judge)
	if err := v.authenticate(ctx, o); err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	pinned := *r
	err = o.step("key", func() (string, error) {
		var key struct { // of a symmetric key, `keys` are times and not what vaultKey reads
			Type   string `json:"type"`
			Latest int    `json:"latest_version"`
		}
		err := v.call(ctx, operationKey, func(ctx context.Context) error {
			return v.do(ctx, http.MethodGet, r.mount+"/keys/"+r.name, nil, &key)
		})
		if err != nil {
			return "", err
		}
		if !slices.Contains(vaultAEADs, key.Type) {
			return "", fmt.Errorf("a key of type %q doesn't seal: make one of type %s", oneLine(key.Type), vaultAEADs[0])
		}
		if pinned.version == 0 {
			pinned.version = key.Latest
		}
		return fmt.Sprintf("%s, %s", &pinned, key.Type), nil
	})
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	return &remoteSealer{
		service: v.service, name: pinned.String(),
		seal: func(ctx context.Context, secret []byte, about string) ([]byte, error) {
			return v.encrypt(ctx, pinned.version, secret, about)
		},
		unseal: v.decrypt,
	}, nil
}

// sealedBy is the version that sealed, where r leaves it open.
func (r *vaultReference) sealedBy(pinned reference) (sealing, bool) {
	p, ok := pinned.(*vaultReference)
	if !ok || p.mount != r.mount || p.name != r.name || r.version != 0 && p.version != r.version {
		return nil, false
	}
	return p, true
}

// vaultCrypt is the body of encrypt and decrypt: transit API, "Encrypt data".
type vaultCrypt struct {
	Plaintext  []byte `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
	About      []byte `json:"associated_data"`
	Version    int    `json:"key_version,omitempty"`
}

func (v *vault) encrypt(ctx context.Context, version int, secret []byte, about string) ([]byte, error) {
	var out vaultCrypt
	in := vaultCrypt{Plaintext: secret, About: []byte(about), Version: version}
	if err := v.do(ctx, http.MethodPost, v.key.mount+"/encrypt/"+v.key.name, in, &out); err != nil {
		return nil, err
	}
	if text, ok := strings.CutPrefix(out.Ciphertext, "vault:v"+strconv.Itoa(version)+":"); !ok {
		return nil, &sealedError{fmt.Errorf("it isn't by version %d", version)}
	} else if _, err := base64.StdEncoding.DecodeString(text); err != nil {
		return nil, &sealedError{err}
	}
	return []byte(out.Ciphertext), nil
}

func (v *vault) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	var out vaultCrypt
	err := v.do(ctx, http.MethodPost, v.key.mount+"/decrypt/"+v.key.name, vaultCrypt{Ciphertext: string(sealed), About: []byte(about)}, &out)
	var said *vaultError
	if errors.As(err, &said) && said.status == http.StatusBadRequest {
		return nil, &sealedError{said}
	}
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}
