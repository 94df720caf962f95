package ca

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

// closable is a signer that tells when it was closed.
type closable struct {
	*watchedSigner
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
	under, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	certs, signer := newChain(t, kms.ECDSAP256, 0)
	key := closable{&watchedSigner{Signer: signer, answer: func(_ context.Context, _ int64, sign func() ([]byte, error)) ([]byte, error) {
		once.Do(func() { close(under) })
		<-proceed
		return sign()
	}}, make(chan struct{})}
	first := newAuthority(t, certs, key, authority.Config{PrecertificateSigner: authority.SignerOff})
	r.issuer.Use(authority.Single(first))

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
	r.issuer.Use(authority.Single(next))
	r.issuer.Use(&authority.Set{Active: next, Trusted: []authority.Trusted{first.Trusted("first"), next.Trusted("next")}})
	select {
	case <-key.closed:
		t.Fatal("the key was closed under a request")
	default:
	}
	if got := len(r.issuer.Chains()); got != 2 {
		t.Errorf("%d chains in the trust bundle; want those of both listed", got)
	}
	close(proceed)
	if cert := <-issued; cert == nil || string(cert.Chain[0]) != string(first.Chain[0]) {
		t.Error("the request didn't end with the authority that it began with")
	}
	select {
	case <-key.closed:
	case <-time.After(10 * time.Second):
		t.Error("the key was never closed")
	}
}
