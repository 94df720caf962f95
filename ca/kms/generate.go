package kms

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// ErrKeyExists is wrapped by the error for a key that was to be made and is
// there already.
var ErrKeyExists = errors.New("a key of this name exists, and is never replaced: use that one, or choose another name")

// generator is a reference whose backend can make a key of that name.
type generator interface {
	// generate makes a key that can't be taken out of its KMS, and returns the
	// reference that names it and its version.
	generate(ctx context.Context, a Algorithm, o Options) (string, error)
}

// Generate makes a new key where ref says and returns the reference to open it
// by, which may name what ref didn't: a version, an id. It takes at most 15 s,
// but for a token that makes keys slowly as long as ctx. A key that is there
// already is never touched: the error then wraps ErrKeyExists. With a SealedKey,
// the key is made here and written to that file, encrypted by the key that ref
// names, whose reference it then returns.
func Generate(ctx context.Context, ref string, a Algorithm, o Options) (string, error) {
	if a.Hash() == 0 {
		return "", fmt.Errorf("algorithm %q is unknown (known: %v)", string(a), Algorithms())
	}
	o, err := o.filled()
	if err != nil {
		return "", fmt.Errorf("kms: registering metrics: %w", err)
	}
	if o.SealedKey != "" {
		return generateSealed(ctx, ref, a, o)
	}
	b, r, err := parse(ref, o.Access)
	if err != nil {
		return "", err
	}
	if err := b.takes(o.Access.Credential); err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	g, ok := r.(generator)
	if !ok {
		return "", fmt.Errorf("key %s: keys in %s are made with the vendor's own tools", r, b.title)
	}
	return g.generate(ctx, a, o)
}

func (r fileReference) generate(_ context.Context, a Algorithm, o Options) (string, error) {
	var passphrase []byte
	if !o.Passphrase.IsZero() {
		var err error
		if passphrase, err = o.Passphrase.Read(); err != nil {
			return "", fmt.Errorf("key file %s: passphrase: %w", string(r), err)
		}
	}
	var err error
	if _, err = GenerateFile(string(r), a, passphrase); errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("key %s: %w", r, ErrKeyExists)
	}
	return r.String(), err
}
