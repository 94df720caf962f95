// Package vault opens, makes and seals with keys in the transit engine of
// HashiCorp Vault or OpenBao.
package vault

import (
	"cmp"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Backend keeps keys in a transit engine.
func Backend() *kms.Backend {
	return &kms.Backend{
		Name: "vault", Title: "Vault transit", URISchemes: []string{"hashivault", "openbao"}, Parse: parse,
		Credentials: []kms.Credential{kms.CredentialEnv, kms.CredentialFile, kms.CredentialWorkload, kms.CredentialCLI},
		CheckAccess: checkAccess,
	}
}

func checkAccess(a *kms.Access, path string, f *setting.Faults) {
	path = setting.Join(path, "vault")
	f.When(a.Credential == kms.CredentialFile && a.Vault.TokenFile == "", setting.Join(path, "token_file"), "required with `credential: file`")
	f.When(a.Vault.AuthMount != "" && !mountForm.MatchString(a.Vault.AuthMount), setting.Join(path, "auth_mount"), "%q isn't the path of a mount", a.Vault.AuthMount)
	f.When(strings.ContainsAny(a.Vault.Namespace, "\r\n"), setting.Join(path, "namespace"), "has a line break")
}

// rights are capabilities of a policy.
func (r *reference) rights() kms.Rights {
	const read = "its policy lacks `read` on %[1]s/keys/%[2]s and `update` on %[1]s/"
	return kms.Rights{
		Signing: fmt.Sprintf(read+"sign/%[2]s", r.mount, r.name),
		Sealing: fmt.Sprintf(read+"decrypt/%[2]s, and on %[1]s/encrypt/%[2]s to make a sealed key,", r.mount, r.name),
	}
}

// keyInfo is what GET MOUNT/keys/NAME tells.
type keyInfo struct {
	Type    string `json:"type"`
	Signing *bool  `json:"supports_signing"`
	Latest  int    `json:"latest_version"`
	// MinEncryption is the least version that signs. 0 means the latest alone, which
	// Vault applies only where no version is asked for.
	MinEncryption int `json:"min_encryption_version"`
	// Keys are by version: one with its public half, or the time when it was made of
	// a key that has none.
	Keys map[string]json.RawMessage `json:"keys"`
}

// SigningKey reads the key and pins its version.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	info, err := c.read(ctx)
	if err != nil {
		return key, err
	}
	pinned := *c.ref
	pinned.version = cmp.Or(pinned.version, info.Latest)
	public, err := info.public(pinned.version)
	return kms.SigningKey{
		Name: pinned.String(), Public: public, Supports: schemeName,
		Sign: func(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
			return c.sign(ctx, pinned.version, scheme, digest)
		},
		Describe: func(ctx context.Context) error {
			info, err := c.read(ctx)
			if err != nil {
				return err
			}
			if info.MinEncryption > pinned.version {
				return kms.Unusable("version %d may no longer sign: min_encryption_version is %d", pinned.version, info.MinEncryption)
			}
			_, err = info.public(pinned.version)
			return err
		},
	}, err
}

// schemeName is a signature scheme as "HASH" for ECDSA and "HASH PADDING" for RSA,
// in Vault's names.
func schemeName(s kms.SignatureScheme) string {
	name := "sha2-" + strconv.Itoa(8*s.Hash.Size())
	switch {
	case s.PSS:
		return name + " pss"
	case s.Key.Bits() > 0:
		return name + " pkcs1v15"
	default:
		return name
	}
}

// public is the public key of a version.
func (k *keyInfo) public(version int) (crypto.PublicKey, error) {
	if k.Signing != nil && !*k.Signing {
		return nil, kms.Unusable("a key of type %q doesn't sign: make one of type ecdsa-p256 or rsa-3072, say", kms.OneLine(k.Type))
	}
	raw, ok := k.Keys[strconv.Itoa(version)]
	if !ok {
		return nil, kms.Unusable("version %d isn't there: the latest is %d", version, k.Latest)
	}
	var held struct {
		PublicKey string `json:"public_key"` // PEM
	}
	_ = json.Unmarshal(raw, &held) // what isn't one has no public key, as found next
	block, rest := pem.Decode([]byte(held.PublicKey))
	if block == nil || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, kms.Unusable("a key of type %q isn't one to sign certificates with: make one of type ecdsa-p256 or rsa-3072, say", kms.OneLine(k.Type))
	}
	return kms.ParsePublic(block.Bytes)
}

// signRequest is the request of POST MOUNT/sign/NAME.
type signRequest struct {
	Input      []byte `json:"input"` // base64, as encoding/json writes it
	Prehashed  bool   `json:"prehashed"`
	Hash       string `json:"hash_algorithm"`
	Version    int    `json:"key_version"`
	Algorithm  string `json:"signature_algorithm,omitempty"`
	SaltLength string `json:"salt_length,omitempty"`
	Marshaling string `json:"marshaling_algorithm,omitempty"`
}

// sign asks for one signature by a version of the key.
func (c *client) sign(ctx context.Context, version int, scheme string, digest []byte) ([]byte, error) {
	hash, padding, isRSA := strings.Cut(scheme, " ")
	in := signRequest{Input: digest, Prehashed: true, Hash: hash, Version: version}
	if isRSA {
		in.Algorithm = padding
		if padding == "pss" {
			in.SaltLength = "hash"
		}
	} else {
		in.Marshaling = "asn1"
	}
	var out struct {
		Signature string `json:"signature"`
	}
	if err := c.do(ctx, http.MethodPost, c.ref.path("sign"), in, &out); err != nil {
		return nil, err
	}
	text, ok := strings.CutPrefix(out.Signature, "vault:v"+strconv.Itoa(version)+":")
	if !ok {
		return nil, kms.WrongSignature(fmt.Errorf("it isn't by version %d", version))
	}
	sig, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		err = kms.WrongSignature(err)
	}
	return sig, err
}

// read asks for the key once.
func (c *client) read(ctx context.Context) (*keyInfo, error) {
	info := new(keyInfo)
	return info, c.do(ctx, http.MethodGet, c.ref.path("keys"), nil, info)
}

// Make makes a key that isn't exportable. Vault answers the making of a key that
// exists as if it had been made, so it is asked first.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	if c.ref.version > 0 {
		return "", errors.New("a new key has no version yet: leave ?version out")
	}
	describe := func(ctx context.Context) error {
		_, err := c.read(ctx)
		return err
	}
	err := c.Absent(ctx, describe, func(err error) bool {
		said, ok := errors.AsType[*refusal](err)
		return ok && said.status == http.StatusNotFound && len(said.Texts) == 0
	})
	if err != nil {
		return "", err
	}
	in := map[string]any{"type": strings.ToLower(string(a)), "exportable": false, "allow_plaintext_backup": false}
	err = c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		return c.do(ctx, http.MethodPost, c.ref.path("keys"), in, nil)
	})
	pinned := *c.ref
	pinned.version = 1
	return pinned.String(), err
}

// aeads are the types of transit keys that authenticate additional data.
var aeads = []string{"aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}

// SealingKey finds the key. Vault writes the version into what it encrypts; a
// version in the reference is the one to seal with.
func (c *client) SealingKey(ctx context.Context) (key kms.SealingKey, err error) {
	info, err := c.read(ctx)
	if err != nil {
		return key, err
	}
	if !slices.Contains(aeads, info.Type) {
		return key, kms.Unusable("a key of type %q doesn't seal: make one of type %s", kms.OneLine(info.Type), aeads[0])
	}
	pinned := *c.ref
	pinned.version = cmp.Or(pinned.version, info.Latest)
	return kms.SealingKey{
		Name: pinned.String(), Detail: info.Type,
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
	if refusedWith(err, http.StatusBadRequest) {
		err = kms.NotSealed(err)
	}
	return out.Plaintext, err
}

// reference is a key of a transit engine.
type reference struct {
	mount, name string
	version     int // 0 is the latest at Open
}

// The names that Vault takes: framework.GenericNameRegex for keys, and path
// segments of the same letters for mounts.
var (
	nameForm  = regexp.MustCompile(`^\w([\w.-]*\w)?$`)
	mountForm = regexp.MustCompile(`^\w([\w.-]*\w)?(/\w([\w.-]*\w)?)*$`)
)

const form = "write hashivault://MOUNT/keys/NAME, with ?version=N for another than the latest"

// parse reads `//MOUNT/keys/NAME[?version=N]`; `//NAME` alone is a key of
// the mount `transit`, as Vault's own default is.
func parse(rest string, _ kms.Access) (kms.Reference, error) {
	path, query, asked := strings.Cut(rest, "?")
	path, ok := strings.CutPrefix(path, "//")
	if !ok || path == "" {
		return nil, errors.New("names no key: " + form)
	}
	r := &reference{mount: "transit", name: path}
	if i := strings.LastIndex(path, "/keys/"); i >= 0 {
		r.mount, r.name = path[:i], path[i+len("/keys/"):]
	} else if strings.Contains(path, "/") {
		return nil, errors.New("has no /keys/ between mount and name: " + form)
	}
	switch {
	case !mountForm.MatchString(r.mount):
		return nil, fmt.Errorf("%q isn't the path of a mount: %s", kms.Abridged(r.mount), form)
	case !nameForm.MatchString(r.name):
		return nil, fmt.Errorf("%q isn't a key's name: letters, digits, _ . and - between them", kms.Abridged(r.name))
	case !asked:
		return r, nil
	}
	number, ok := strings.CutPrefix(query, "version=")
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil || n < 1 || strconv.FormatInt(n, 10) != number {
		return nil, fmt.Errorf("%q isn't version=N, N from 1", kms.Abridged(query))
	}
	r.version = int(n)
	return r, nil
}

func (r *reference) String() string {
	s := "hashivault://" + r.mount + "/keys/" + r.name
	if r.version > 0 {
		s += "?version=" + strconv.Itoa(r.version)
	}
	return s
}

// path is where an operation on the key is.
func (r *reference) path(operation string) string { return r.mount + "/" + operation + "/" + r.name }
