package kms

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// vaultBackend keeps keys in the transit engine of HashiCorp Vault or OpenBao.
var vaultBackend = &backend{
	name: "vault", title: "Vault transit", schemes: []string{"hashivault", "openbao"}, parse: parseVault,
	credentials: []Credential{CredentialEnv, CredentialFile, CredentialWorkload, CredentialCLI},
}

// vaultReference is a key of a transit engine.
type vaultReference struct {
	mount, name string
	version     int // 0 is the latest at Open
}

// The names that Vault takes: framework.GenericNameRegex for keys, and path
// segments of the same letters for mounts.
var (
	vaultName  = regexp.MustCompile(`^\w([\w.-]*\w)?$`)
	vaultMount = regexp.MustCompile(`^\w([\w.-]*\w)?(/\w([\w.-]*\w)?)*$`)
)

const vaultForm = "write hashivault://MOUNT/keys/NAME, with ?version=N for another than the latest"

// parseVault reads `//MOUNT/keys/NAME[?version=N]`; `//NAME` alone is a key of
// the mount `transit`, as Vault's own default is.
func parseVault(rest string, _ Access) (reference, error) {
	path, query, asked := strings.Cut(rest, "?")
	path, ok := strings.CutPrefix(path, "//")
	if !ok || path == "" {
		return nil, errors.New("names no key: " + vaultForm)
	}
	r := &vaultReference{mount: "transit", name: path}
	if i := strings.LastIndex(path, "/keys/"); i >= 0 {
		r.mount, r.name = path[:i], path[i+len("/keys/"):]
	} else if strings.Contains(path, "/") {
		return nil, errors.New("has no /keys/ between mount and name: " + vaultForm)
	}
	switch {
	case !vaultMount.MatchString(r.mount):
		return nil, fmt.Errorf("%q isn't the path of a mount: %s", abridged(r.mount), vaultForm)
	case !vaultName.MatchString(r.name):
		return nil, fmt.Errorf("%q isn't a key's name: letters, digits, _ . and - between them", abridged(r.name))
	case !asked:
		return r, nil
	}
	number, ok := strings.CutPrefix(query, "version=")
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil || n < 1 || strconv.FormatInt(n, 10) != number {
		return nil, fmt.Errorf("%q isn't version=N, N from 1", abridged(query))
	}
	r.version = int(n)
	return r, nil
}

func (r *vaultReference) String() string {
	s := "hashivault://" + r.mount + "/keys/" + r.name
	if r.version > 0 {
		s += "?version=" + strconv.Itoa(r.version)
	}
	return s
}

// vaultKey is what GET MOUNT/keys/NAME tells.
type vaultKey struct {
	Type    string `json:"type"`
	Signing *bool  `json:"supports_signing"`
	Latest  int    `json:"latest_version"`
	// MinEncryption is the least version that signs; 0 is the latest alone...
	// which Vault applies only where no version is asked for.
	MinEncryption int `json:"min_encryption_version"`
	// Keys are by version: a [vaultVersion] each, or the time when it was made of
	// a key without a public half.
	Keys map[string]json.RawMessage `json:"keys"`
}

// vaultVersion is one version of a key that has a public half, in PEM.
type vaultVersion struct {
	PublicKey string `json:"public_key"`
}

// open authenticates, reads the key and pins its version.
func (r *vaultReference) open(ctx context.Context, o Options) (Signer, error) {
	v, err := newVault(r, o)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	if err := v.authenticate(ctx, o); err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	pinned := *r
	var public crypto.PublicKey
	var algorithm Algorithm
	err = o.step("key", func() (string, error) {
		key, err := v.describe(ctx)
		if err != nil {
			return "", err
		}
		if pinned.version == 0 {
			pinned.version = key.Latest
		}
		if public, algorithm, err = key.public(pinned.version); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s, %s", &pinned, algorithm), nil
	})
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	signer := &remote{service: v.service, name: pinned.String(), public: public, key: algorithm, algorithms: vaultSchemes(algorithm)}
	signer.sign = func(ctx context.Context, algorithm string, digest []byte) ([]byte, error) {
		return v.sign(ctx, pinned.version, algorithm, digest)
	}
	signer.describe = func(ctx context.Context) error {
		key, err := v.read(ctx)
		if err != nil {
			return err
		}
		if key.MinEncryption > pinned.version {
			return &vaultError{status: http.StatusBadRequest, texts: []string{fmt.Sprintf("version %d may no longer sign: min_encryption_version is %d", pinned.version, key.MinEncryption)}}
		}
		_, _, err = key.public(pinned.version)
		return err
	}
	return signer, nil
}

// public is the public key of a version.
func (k *vaultKey) public(version int) (crypto.PublicKey, Algorithm, error) {
	if k.Signing != nil && !*k.Signing {
		return nil, "", fmt.Errorf("a key of type %q doesn't sign: make one of type ecdsa-p256 or rsa-3072, say", oneLine(k.Type))
	}
	raw, ok := k.Keys[strconv.Itoa(version)]
	if !ok {
		return nil, "", fmt.Errorf("version %d isn't there: the latest is %d", version, k.Latest)
	}
	var held vaultVersion
	_ = json.Unmarshal(raw, &held) // what isn't one has no public key, as found next
	block, rest := pem.Decode([]byte(held.PublicKey))
	if block == nil || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, "", fmt.Errorf("a key of type %q isn't one to sign certificates with: make one of type ecdsa-p256 or rsa-3072, say", oneLine(k.Type))
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, "", fmt.Errorf("its public key can't be read: %w", err)
	}
	a, err := AlgorithmOf(public)
	return public, a, err
}

// rights are capabilities of a policy.
func (r *vaultReference) rights() rights {
	const read = "its policy lacks `read` on %[1]s/keys/%[2]s and `update` on %[1]s/"
	return rights{
		signing: fmt.Sprintf(read+"sign/%[2]s", r.mount, r.name),
		sealing: fmt.Sprintf(read+"decrypt/%[2]s, and on %[1]s/encrypt/%[2]s to make a sealed key,", r.mount, r.name),
	}
}

// vaultHashes are Vault's names of the hashes.
var vaultHashes = map[crypto.Hash]string{crypto.SHA256: "sha2-256", crypto.SHA384: "sha2-384", crypto.SHA512: "sha2-512"}

// vaultSchemes is what a key signs: for RSA "HASH PADDING", for ECDSA "HASH".
func vaultSchemes(a Algorithm) map[scheme]string {
	all := make(map[scheme]string)
	for hash, name := range vaultHashes {
		switch a {
		case RSA2048, RSA3072, RSA4096:
			all[scheme{a, hash, false}] = name + " pkcs1v15"
			all[scheme{a, hash, true}] = name + " pss"
		default:
			all[scheme{a, hash, false}] = name
		}
	}
	return all
}

// vaultSign is the request of POST MOUNT/sign/NAME.
type vaultSign struct {
	Input      []byte `json:"input"` // base64, as encoding/json writes it
	Prehashed  bool   `json:"prehashed"`
	Hash       string `json:"hash_algorithm"`
	Version    int    `json:"key_version"`
	Algorithm  string `json:"signature_algorithm,omitempty"`
	SaltLength string `json:"salt_length,omitempty"`
	Marshaling string `json:"marshaling_algorithm,omitempty"`
}

// sign asks for one signature by a version of the key.
func (v *vault) sign(ctx context.Context, version int, algorithm string, digest []byte) ([]byte, error) {
	hash, padding, isRSA := strings.Cut(algorithm, " ")
	in := vaultSign{Input: digest, Prehashed: true, Hash: hash, Version: version}
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
	if err := v.do(ctx, http.MethodPost, v.key.mount+"/sign/"+v.key.name, in, &out); err != nil {
		return nil, err
	}
	text, ok := strings.CutPrefix(out.Signature, "vault:v"+strconv.Itoa(version)+":")
	if !ok {
		return nil, &wrongError{fmt.Errorf("it isn't by version %d", version)}
	}
	sig, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, &wrongError{err}
	}
	return sig, nil
}

// read describes the key.
func (v *vault) read(ctx context.Context) (*vaultKey, error) {
	var key vaultKey
	if err := v.do(ctx, http.MethodGet, v.key.mount+"/keys/"+v.key.name, nil, &key); err != nil {
		return nil, err
	}
	return &key, nil
}

// describe is read with retries.
func (v *vault) describe(ctx context.Context) (key *vaultKey, err error) {
	err = v.call(ctx, operationKey, func(ctx context.Context) error {
		key, err = v.read(ctx)
		return err
	})
	return key, err
}

// generate makes a key in a transit engine, not exportable.
func (r *vaultReference) generate(ctx context.Context, a Algorithm, o Options) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errOpenTimeout)
	defer cancel()
	if r.version > 0 {
		return "", fmt.Errorf("key %s: a new key has no version yet: leave ?version out", r)
	}
	v, err := newVault(r, o)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	defer v.client.CloseIdleConnections()
	if err := v.authenticate(ctx, o); err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	// Vault answers the making of a key that exists as if it had been made.
	_, err = v.describe(ctx)
	var said *vaultError
	switch {
	case err == nil:
		return "", fmt.Errorf("key %s: %w", r, ErrKeyExists)
	case !errors.As(err, &said) || said.status != http.StatusNotFound || len(said.texts) > 0:
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	in := map[string]any{"type": strings.ToLower(string(a)), "exportable": false, "allow_plaintext_backup": false}
	err = v.call(ctx, operationKey, func(ctx context.Context) error {
		return v.do(ctx, http.MethodPost, r.mount+"/keys/"+r.name, in, nil)
	})
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	pinned := *r
	pinned.version = 1
	return pinned.String(), nil
}

// vaultEndpoint is where Vault is, from the configuration or its own variables.
func vaultEndpoint(o Options) (*url.URL, error) {
	endpoint := o.Access.Endpoint
	for _, name := range []string{"VAULT_ADDR", "BAO_ADDR"} {
		if endpoint == "" {
			endpoint = o.Getenv(name)
		}
	}
	if endpoint == "" {
		return nil, errors.New("where is Vault? set endpoint, or VAULT_ADDR")
	}
	if err := endpointFault(endpoint); err != nil {
		return nil, err
	}
	return url.Parse(strings.TrimSuffix(endpoint, "/"))
}
