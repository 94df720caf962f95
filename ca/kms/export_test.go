package kms

import (
	"context"
	"fmt"
)

// OpenUntried opens a key behind a network without a trial signature, for tests
// with recorded answers.
func OpenUntried(ctx context.Context, b *Backend, ref string, o Options) (Signer, error) {
	o = o.filled()
	_, r, err := Registry{b}.parse(ref, o.Access)
	if err != nil {
		return nil, err
	}
	remote, ok := r.(RemoteReference)
	if !ok {
		return nil, fmt.Errorf("%s is a %T", r, r)
	}
	return openRemote(ctx, remote, o)
}

// Canonical is the one form of a reference, however it is written; for `file:`
// the reference itself. The error says what is wrong and what to write.
func (all Registry) Canonical(ref string, a Access) (string, error) {
	_, r, err := all.parse(ref, a)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}
