package index

import (
	"crypto/x509"

	"github.com/mayfly-ca/mayfly/ctlog/follow"
)

// Decode gives all values of an entry.
func Decode(e follow.Entry) []string { return decode("", e).values }

// Read reads of a certificate what is kept.
func Read(e follow.Entry) (*x509.Certificate, bool) {
	c := &x509.Certificate{}
	return c, read(e, c)
}

// Stall has the last entries of a fill long ago.
func (i *Index) Stall() { i.filling.Store(&fill{log: i.filling.Load().log}) }
