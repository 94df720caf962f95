// Package ceremony holds the ceremonies in which people make the certificates of
// certificate authorities, whether the keys are in files, in a KMS, in an HSM, or
// on a machine that no network reaches. What a certificate says and how it is
// checked is decided in package cacert.
//
// A ceremony goes one way: [New] says what the certificate will say;
// [Ceremony.For] takes the key that it is for; [Ceremony.Print] shows a person
// what is about to be signed; [Ceremony.Sign] signs it; [Certificate.Write] writes
// it beside the record of how it came about.
package ceremony

import (
	"crypto"
	"crypto/x509"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
)

// Circumstances are when, where and before whom a ceremony is held.
type Circumstances struct {
	Now       time.Time
	Host      string   // name of the machine; may be empty
	Tool      string   // program and version
	Witnesses []string // names of those who were there
}

// Ceremony is a certificate that is to be signed, and what goes on record.
type Ceremony struct {
	*cacert.Draft

	at      Circumstances
	keyRef  string
	request *Request // what the key came in, or nil
}

// Certificate is a CA certificate that was signed and checked, and how.
type Certificate struct {
	*cacert.Certificate

	ceremony *Ceremony
	signedBy string // reference of the key that signed
}

// New begins the ceremony of a certificate: [cacert.New] says what is refused.
func New(parent []*x509.Certificate, p cacert.Profile, at Circumstances) (*Ceremony, error) {
	d, err := cacert.New(parent, p, at.Now)
	return &Ceremony{Draft: d, at: at}, err
}

// For names the key that the certificate is for, as [cacert.Draft.For] does, and
// the words to record it by.
func (c *Ceremony) For(public crypto.PublicKey, ref string) error {
	c.keyRef = ref
	return c.Draft.For(public)
}

// ForRequest is For with the key of a request. Whatever else the request asks
// for is noted and ignored.
func (c *Ceremony) ForRequest(r *Request) error {
	if err := c.For(r.public, "of the certificate request"); err != nil {
		return err
	}
	c.request = r
	return nil
}

// Sign signs the certificate, as [cacert.Draft.Sign] does.
func (c *Ceremony) Sign(issuer cacert.Key) (*Certificate, error) {
	made, err := c.Draft.Sign(issuer)
	if err != nil {
		return nil, err
	}
	return &Certificate{Certificate: made, ceremony: c, signedBy: issuer.Ref}, nil
}
