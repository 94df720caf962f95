package kms

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// maxReference is the longest reference, in bytes: an AWS ARN takes at most 300,
// a PKCS #11 URI some more.
const maxReference = 4096

// Reference is a parsed key reference: a [LocalReference] or a [RemoteReference].
// Its String is the canonical form, which parses to the same reference.
type Reference interface{ fmt.Stringer }

// LocalReference is a reference to a key on this machine, which signs and doesn't seal.
type LocalReference interface {
	Reference

	// Open finds the key. Its errors are for the operator, and name the key.
	Open(ctx context.Context, o Options) (Signer, error)
	// Generate makes a key, and returns the reference that names it alone. It
	// never replaces a key: its error for one that is there wraps ErrKeyExists.
	Generate(ctx context.Context, a Algorithm, o Options) (ref string, err error)
}

// Backend is one kind of place where keys are kept.
type Backend struct {
	Name       string // label of metrics: "aws"
	Title      string // in sentences: "AWS KMS"
	URISchemes []string
	// Claims tells a bare reference that is this backend's by its form; nil for none.
	Claims func(ref string) bool
	// Parse reads a reference: what follows the URI scheme and its colon, or a bare
	// one whole. It reads nothing else, not even the environment.
	Parse func(ref string, a Access) (Reference, error)
	// Credentials are those that it has; none for a backend that needs none.
	Credentials []Credential
	// CheckAccess adds the faults of what only this backend has in a; nil for nothing.
	CheckAccess func(a *Access, path string, f *setting.Faults)
	// CannotSeal says what to use instead, where keys are local and so don't seal.
	CannotSeal string
}

// supports is nil when b has the credential c, or needs none and c is empty.
func (b *Backend) supports(c Credential) error {
	switch {
	case slices.Contains(b.Credentials, c), len(b.Credentials) == 0 && c == "":
		return nil
	case c == "":
		return fmt.Errorf("%s needs a credential: set it to one of %s", b.Title, setting.List(b.Credentials))
	case len(b.Credentials) == 0:
		return fmt.Errorf("%s takes no credential: remove it", b.Title)
	default:
		return fmt.Errorf("%s has no credential %q: one of %s", b.Title, c, setting.List(b.Credentials))
	}
}

// Registry is a table of backends.
type Registry []*Backend

// URISchemes are those of all backends, in alphabetical order.
func (all Registry) URISchemes() []string {
	var schemes []string
	for _, b := range all {
		schemes = append(schemes, b.URISchemes...)
	}
	return slices.Sorted(slices.Values(schemes))
}

// Open opens the key that ref names (`file:issuing.key.pem`, or as a vendor's
// console shows it), signs a fixed digest with it and verifies
// that signature locally. It takes at most 15 s. With replicas, each of them is
// opened; one that can't be reached is opened later, one with another public key
// is an error. With a SealedKey, ref's key decrypts that file, once, and the key
// from it signs in memory. Its errors are for the operator: they name the key,
// what is wrong with it and the fix.
func (all Registry) Open(ctx context.Context, ref string, o Options) (Signer, error) {
	o = o.filled()
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, ErrOpenTimeout)
	defer cancel()
	switch {
	case o.Later || len(o.Access.Replicas) > 0 && o.SealedKey == "":
		return all.openReplicas(ctx, ref, o)
	case o.SealedKey != "":
		return all.openSealed(ctx, ref, o)
	default:
		return all.openOne(ctx, ref, o)
	}
}

// resolve is the step of reading a reference, whose backend must have the credential.
func resolve[R Reference](ref string, o Options, parse func(string, Access) (*Backend, R, error)) (r R, _ Options, err error) {
	err = o.Step("reference", func() (string, error) {
		var b *Backend
		if b, r, err = parse(ref, o.Access); err != nil {
			return "", err
		}
		if err := b.supports(o.Access.Credential); err != nil {
			return "", fmt.Errorf("key %s: %w", r, err)
		}
		o.backend = b.Name
		return r.String(), nil
	})
	return r, o, err
}

// openOne opens one reference and tries it.
func (all Registry) openOne(ctx context.Context, ref string, o Options) (Signer, error) {
	r, o, err := resolve(ref, o, all.parse)
	if err != nil {
		return nil, err
	}
	var s Signer
	switch r := r.(type) {
	case RemoteReference:
		s, err = openRemote(ctx, r, o)
	case LocalReference:
		s, err = r.Open(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	if err := o.try(ctx, s); err != nil {
		Close(s)
		return nil, fmt.Errorf("key %s: trial signature: %w", ref, err)
	}
	return s, nil
}

// try is the step of trying a key that was opened.
func (o Options) try(ctx context.Context, s Signer) error {
	return o.Step(operationSign, func() (string, error) { return "trial signature verified", Try(ctx, s) })
}

// Generate makes a new key where ref says and returns the reference to open it
// by, which may name what ref didn't: a version, an id. It takes at most 15 s,
// but for a token that makes keys slowly as long as ctx. A key that is there
// already is never touched: the error then wraps ErrKeyExists. With a SealedKey,
// the key is made here and written to that file, encrypted by the key that ref
// names, whose reference it then returns.
func (all Registry) Generate(ctx context.Context, ref string, a Algorithm, o Options) (string, error) {
	if a.Hash() == 0 {
		return "", fmt.Errorf("algorithm %q is unknown (known: %v)", string(a), Algorithms())
	}
	o = o.filled()
	if o.SealedKey != "" {
		return all.generateSealed(ctx, ref, a, o)
	}
	r, o, err := resolve(ref, o, all.parse)
	if err != nil {
		return "", err
	}
	switch r := r.(type) {
	case RemoteReference:
		made, err := makeRemote(ctx, r, a, o)
		if err != nil {
			return "", fmt.Errorf("key %s: %w", r, err)
		}
		return made, nil
	case LocalReference:
		return r.Generate(ctx, a, o)
	default:
		return "", fmt.Errorf("a reference of type %T, neither local nor remote", r)
	}
}

// parse finds the backend of a reference and reads it.
func (all Registry) parse(ref string, a Access) (*Backend, Reference, error) {
	b, rest, err := all.find(ref)
	if err != nil {
		return nil, nil, err
	}
	r, err := b.Parse(rest, a)
	if err != nil {
		return nil, nil, fmt.Errorf("key %q: %w", Abridged(ref), err)
	}
	return b, r, nil
}

// find picks the backend by the form of a bare reference or by its URI scheme.
func (all Registry) find(ref string) (b *Backend, rest string, err error) {
	switch {
	case len(ref) > maxReference:
		return nil, "", fmt.Errorf("key %q: longer than %d bytes", Abridged(ref), maxReference)
	case strings.ContainsFunc(ref, unicode.IsControl):
		return nil, "", fmt.Errorf("key %q: has a control character", Abridged(ref))
	}
	for _, b := range all {
		if b.Claims != nil && b.Claims(ref) {
			return b, ref, nil
		}
	}
	supported := strings.Join(all.URISchemes(), ", ")
	scheme, rest, ok := strings.Cut(ref, ":")
	if !ok {
		return nil, "", fmt.Errorf("key %q has no scheme: write file:PATH (supported: %s)", Abridged(ref), supported)
	}
	for _, b := range all {
		if slices.Contains(b.URISchemes, strings.ToLower(scheme)) { // RFC 3986 §3.1: schemes are case-insensitive
			return b, rest, nil
		}
	}
	return nil, "", fmt.Errorf("key scheme %q isn't supported (supported: %s)", Abridged(scheme), supported)
}

// pinValue is a PIN in a PKCS #11 URI, which is refused there.
var pinValue = regexp.MustCompile(`(?i)pin-value=[^&;]*`)

// Abridged keeps an error readable whatever the reference holds, and free of a PIN.
func Abridged(s string) string {
	const most = 120
	s = pinValue.ReplaceAllString(s, "pin-value=…")
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
