package ca

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// closable is a signer that tells when it was closed.
type closable struct {
	kms.Signer
	closed chan struct{}
}

var _ io.Closer = closable{}

func (c closable) Close() error {
	close(c.closed)
	return nil
}

// TestUseClosesTheKeyAfterTheLastRequest: a request that reads an authority
// ends with it, and only then is the key of what was replaced closed.
func TestUseClosesTheKeyAfterTheLastRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	first := testAuthority(t, kms.ECDSAP256)
	key := closable{first.signer, make(chan struct{})}
	first.signer, first.lease = key, newLease(key)
	r.issuer.Use(One(first))

	under, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first.signer = &watchedSigner{Signer: key, answer: func(_ context.Context, _ int64, sign func() ([]byte, error)) ([]byte, error) {
		once.Do(func() { close(under) })
		<-proceed
		return sign()
	}}
	issued := make(chan *Certificate, 1)
	who, proof := alice(t)
	go func() {
		cert, err := r.issuer.Issue(t.Context(), who, proof)
		if err != nil {
			t.Error(err)
		}
		issued <- cert
	}()
	<-under
	next := testAuthority(t, kms.ECDSAP384)
	r.issuer.Use(One(next))
	r.issuer.Use(&Authorities{Active: next, Listed: []Listed{first.Listed("first"), next.Listed("next")}})
	select {
	case <-key.closed:
		t.Fatal("the key was closed under a request")
	default:
	}
	if got := len(r.issuer.Chains()); got != 2 {
		t.Errorf("%d chains in the trust bundle; want those of both listed", got)
	}
	close(proceed)
	if cert := <-issued; cert == nil || string(cert.Chain[0]) != string(first.chain[0]) {
		t.Error("the request didn't end with the authority that it began with")
	}
	select {
	case <-key.closed:
	case <-time.After(10 * time.Second):
		t.Error("the key was never closed")
	}
}
