package timestamp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Ask is a query over the SHA-256 of message, for a reply with the authority's
// certificate. It has no nonce: message is to be what nobody has seen before, such as a
// fresh signature.
func Ask(message []byte) []byte {
	sum := sha256.Sum256(message)
	return sequence(func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddBytes(imprintOf(digests[0].id, sum[:]))
		b.AddASN1Boolean(true)
	})
}

// response is a TimeStampResp (RFC 3161 §2.4.2) around a SignedData (RFC 5652 §5.1), up
// to what is read of each.
type response struct {
	Status struct{ Code int }
	Token  struct {
		Type asn1.ObjectIdentifier
		Data struct {
			Version int
			Hashes  asn1.RawValue
			Info    struct {
				Type asn1.ObjectIdentifier
				DER  []byte `asn1:"explicit,tag:0"`
			}
			Certificates asn1.RawValue `asn1:"optional,tag:0"`
			CRLs         asn1.RawValue `asn1:"optional,tag:1"`
			Signers      []struct {
				Version    int
				Name       asn1.RawValue
				Hash       struct{ ID asn1.RawValue }
				Attributes asn1.RawValue `asn1:"tag:0"`
				Algorithm  asn1.RawValue
				Signature  []byte
			} `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	} `asn1:"optional"`
}

// stamped is a TSTInfo (RFC 3161 §2.4.2), up to its time.
type stamped struct {
	Version int
	Policy  asn1.ObjectIdentifier
	Imprint asn1.RawValue
	Serial  *big.Int
	Time    time.Time `asn1:"generalized"`
}

// Verify is the time that a reply to [Ask] says, anybody's reply, if the certificate's
// key signed it. Whether that certificate counts at that time is for the caller to know.
func Verify(reply, message []byte, authority *x509.Certificate) (time.Time, error) {
	var r response
	var i stamped
	if rest, err := asn1.Unmarshal(reply, &r); err != nil || len(rest) > 0 {
		return i.Time, errors.New("the reply isn't a TimeStampResp in DER")
	}
	if r.Status.Code > 1 || len(r.Token.Data.Signers) != 1 { // 1: granted with changes
		return i.Time, errors.New("the reply has no timestamp")
	}
	s, content := r.Token.Data.Signers[0], r.Token.Data.Info.DER
	n := slices.IndexFunc(digests, func(d digest) bool { return bytes.Equal(d.id, s.Hash.ID.Bytes) })
	if n < 0 {
		return i.Time, errors.New("the timestamp is signed with another hash function than SHA-256, SHA-384 or SHA-512")
	}
	for _, a := range attributesOf(content, digests[n].hash) {
		if !bytes.Contains(s.Attributes.Bytes, a) {
			return i.Time, errors.New("the timestamp isn't what was signed")
		}
	}
	h := digests[n].hash.New()
	_, _ = h.Write(append([]byte{asn1.TagSet | 0x20}, s.Attributes.FullBytes[1:]...)) // RFC 5652 §5.4; a hash never fails
	if err := kms.Verify(authority.PublicKey, digests[n].hash, h.Sum(nil), s.Signature); err != nil {
		return i.Time, err
	}
	sum := sha256.Sum256(message)
	if _, err := asn1.Unmarshal(content, &i); err != nil || !bytes.Equal(i.Imprint.FullBytes, imprintOf(digests[0].id, sum[:])) {
		return i.Time, errors.New("the timestamp is over something else")
	}
	return i.Time, nil
}
