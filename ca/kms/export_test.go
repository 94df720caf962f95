package kms

import (
	"context"
	"fmt"
)

// OpenUntried opens a key behind a network without a trial signature, for tests
// with recorded answers.
func OpenUntried(ctx context.Context, b *Backend, ref string, o Options) (Signer, error) {
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
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
