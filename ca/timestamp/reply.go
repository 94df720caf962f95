package timestamp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	encodingasn1 "encoding/asn1"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Ask is a query over the SHA-256 of message, for a reply with the authority's
// certificate. It has no nonce: message is to be what nobody has seen before, such as a
// fresh signature.
func Ask(message []byte) []byte {
	sum := sha256.Sum256(message)
	return encode(struct {
		Version int
		Imprint encodingasn1.RawValue
		Certs   bool
	}{1, encodingasn1.RawValue{FullBytes: imprintOf(digests[0].id, sum[:])}, true}, "")
}

// down is the element that a way through nested elements of DER leads to, each counted
// from 0; nothing where there is none.
func down(der cryptobyte.String, way ...int) cryptobyte.String {
	for _, n := range way {
		var inside cryptobyte.String
		var tag asn1.Tag
		ok := der.ReadAnyASN1(&inside, &tag)
		for ; ok && n >= 0; n-- {
			ok = inside.ReadAnyASN1Element(&der, &tag)
		}
		if !ok {
			return nil
		}
	}
	return der
}

// Verify is the time that a reply to [Ask] says (RFC 3161 §2.4.2), anybody's reply, if the
// certificate's key signed it. Whether that certificate counts then is for the caller to know.
func Verify(reply, message []byte, authority *x509.Certificate) (at time.Time, err error) {
	signed := down(reply, 1, 1, 0)                               // SignedData (RFC 5652 §5.1)
	content, signer := down(signed, 2, 1, 0), down(signed, 4, 0) // before and after the certificates
	hash, attributes, value := down(signer, 2, 0), down(signer, 3), down(signer, 5)
	var info, id, signature, text cryptobyte.String
	if !content.ReadASN1(&info, asn1.OCTET_STRING) || !hash.ReadASN1(&id, asn1.OBJECT_IDENTIFIER) || !value.ReadASN1(&signature, asn1.OCTET_STRING) {
		return at, errors.New("the reply has no timestamp")
	}
	n := slices.IndexFunc(digests, func(d digest) bool { return bytes.Equal(d.id, id) })
	if n < 0 || slices.ContainsFunc(attributesOf(info, digests[n].hash), func(a encodingasn1.RawValue) bool { return !bytes.Contains(attributes, a.FullBytes) }) {
		return at, errors.New("the timestamp isn't what was signed")
	}
	signedBytes := append([]byte{byte(asn1.SET)}, attributes[1:]...) // RFC 5652 §5.4
	if err := kms.Verify(authority.PublicKey, digests[n].hash, pubkey.Digest(digests[n].hash, signedBytes), signature); err != nil {
		return at, err
	}
	sum, clock := sha256.Sum256(message), down(info, 4)
	if !bytes.Equal(down(info, 2), imprintOf(digests[0].id, sum[:])) || !clock.ReadASN1(&text, asn1.GeneralizedTime) {
		return at, errors.New("the timestamp is over something else")
	}
	return time.Parse("20060102150405Z", string(text)) // takes fractions of a second too
}
