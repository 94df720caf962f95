package kms

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// maxReference is the longest reference, in bytes: an AWS ARN takes at most 300,
// a PKCS #11 URI some more.
const maxReference = 4096

// reference is a parsed key reference. Its String is the canonical form, which
// parses to the same reference.
type reference interface {
	fmt.Stringer

	// open finds the key and pins its version; its errors are for the operator.
	open(ctx context.Context, o Options) (Signer, error)
}

// backend is one kind of place where keys are kept.
type backend struct {
	name    string // label of metrics: "aws"
	title   string // in sentences: "AWS KMS"
	schemes []string
	// claims tells a bare reference that is this backend's by its form; nil for none.
	claims func(ref string) bool
	// parse reads a reference: what follows the scheme and its colon, or a bare
	// one whole. It is pure.
	parse func(ref string, a Access) (reference, error)
	// credentials are those that it has; none for a backend that needs none.
	credentials []Credential
}

// refuses is the error for a credential that b hasn't.
func (b *backend) refuses(c Credential) error {
	if len(b.credentials) == 0 {
		return fmt.Errorf("%s takes no credential: remove it", b.title)
	}
	return fmt.Errorf("%s has no credential %q: one of %s", b.title, c, credentialNames(b.credentials))
}

// takes is nil when b has the credential c, or needs none and c is empty.
func (b *backend) takes(c Credential) error {
	switch {
	case slices.Contains(b.credentials, c), len(b.credentials) == 0 && c == "":
		return nil
	case c == "":
		return fmt.Errorf("%s needs a credential: set it to one of %s", b.title, credentialNames(b.credentials))
	default:
		return b.refuses(c)
	}
}

// backends is the table of backends; each is one file.
var backends = []*backend{fileBackend, awsBackend, azureBackend, pkcs11Backend, vaultBackend, gcpBackend}

// Schemes are the supported schemes in alphabetical order.
func Schemes() []string {
	var all []string
	for _, b := range backends {
		all = append(all, b.schemes...)
	}
	slices.Sort(all)
	return all
}

// Canonical is the one form of a reference, however it is written; for `file:`
// the reference itself. The error says what is wrong and what to write.
func Canonical(ref string, a Access) (string, error) {
	_, r, err := parse(ref, a)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// parse finds the backend of a reference and reads it.
func parse(ref string, a Access) (*backend, reference, error) {
	b, rest, err := find(ref)
	if err != nil {
		return nil, nil, err
	}
	r, err := b.parse(rest, a)
	if err != nil {
		return nil, nil, fmt.Errorf("key %q: %w", abridged(ref), err)
	}
	return b, r, nil
}

// find picks the backend by the form of a bare reference or by its scheme.
func find(ref string) (b *backend, rest string, err error) {
	switch {
	case len(ref) > maxReference:
		return nil, "", fmt.Errorf("key %q: longer than %d bytes", abridged(ref), maxReference)
	case strings.ContainsFunc(ref, unicode.IsControl):
		return nil, "", fmt.Errorf("key %q: has a control character", abridged(ref))
	}
	for _, b := range backends {
		if b.claims != nil && b.claims(ref) {
			return b, ref, nil
		}
	}
	supported := strings.Join(Schemes(), ", ")
	scheme, rest, ok := strings.Cut(ref, ":")
	if !ok {
		return nil, "", fmt.Errorf("key %q has no scheme: write file:PATH (supported: %s)", abridged(ref), supported)
	}
	for _, b := range backends {
		if slices.Contains(b.schemes, strings.ToLower(scheme)) { // RFC 3986 §3.1: schemes are case-insensitive
			return b, rest, nil
		}
	}
	return nil, "", fmt.Errorf("key scheme %q isn't supported (supported: %s)", abridged(scheme), supported)
}

// pinValue is a PIN in a PKCS #11 URI, which is refused there.
var pinValue = regexp.MustCompile(`(?i)pin-value=[^&;]*`)

// abridged keeps an error readable whatever the reference holds, and free of a PIN.
func abridged(s string) string {
	const most = 120
	s = pinValue.ReplaceAllString(s, "pin-value=…")
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// fileBackend keeps keys in PEM files.
var fileBackend = &backend{name: "file", title: "a file", schemes: []string{"file"}, parse: func(path string, _ Access) (reference, error) {
	if path == "" {
		return nil, errors.New("no path: write file:PATH")
	}
	return fileReference(path), nil
}}

// fileReference is the path of a PEM file.
type fileReference string

func (r fileReference) String() string { return "file:" + string(r) }

func (r fileReference) open(ctx context.Context, o Options) (Signer, error) {
	return openFile(ctx, string(r), o)
}
