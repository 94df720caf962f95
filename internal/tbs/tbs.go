// Package tbs takes a TBSCertificate (RFC 5280 §4.1) in DER apart at its extensions
// and puts it together again with every other byte as it was. A certificate and its
// precertificate differ in nothing else (RFC 6962 §3.1), and a log signs what both
// have in common (§3.2).
package tbs

import (
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ErrMalformed means that something isn't a TBSCertificate with extensions, in DER.
var ErrMalformed = errors.New("the TBSCertificate is malformed")

// tagExtensions is RFC 5280 §4.1: extensions [3] EXPLICIT.
var tagExtensions = cryptobyteasn1.Tag(3).Constructed().ContextSpecific()

// Split gives the encoded fields before the extensions, and the encoded extensions
// without the header of their list. Both are parts of der. The error is [ErrMalformed].
func Split(der []byte) (before, extensions []byte, err error) {
	var fields, explicit, list cryptobyte.String
	input := cryptobyte.String(der)
	if !input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !input.Empty() {
		return nil, nil, ErrMalformed
	}
	all := fields
	for !fields.Empty() && !fields.PeekASN1Tag(tagExtensions) {
		var field cryptobyte.String
		var tag cryptobyteasn1.Tag
		if !fields.ReadAnyASN1Element(&field, &tag) {
			return nil, nil, ErrMalformed
		}
	}
	before = all[:len(all)-len(fields)]
	if !fields.ReadASN1(&explicit, tagExtensions) || !fields.Empty() ||
		!explicit.ReadASN1(&list, cryptobyteasn1.SEQUENCE) || !explicit.Empty() {
		return nil, nil, ErrMalformed
	}
	return before, list, nil
}

// Join is the TBSCertificate of what [Split] gave. Where there are no extensions
// the list is left out, which can't be empty (RFC 5280 §4.1).
func Join(before, extensions []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(before)+len(extensions)+16))
	b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(before)
		if len(extensions) == 0 {
			return
		}
		b.AddASN1(tagExtensions, func(b *cryptobyte.Builder) {
			b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding the TBSCertificate: %w", err)
	}
	return der, nil
}

// Replace copies encoded extensions with each of the type oid replaced by what with
// makes of its fields after the type: an encoded extension, or nothing to leave it
// out. found counts these. The error is [ErrMalformed], or with's.
func Replace(extensions []byte, oid asn1.ObjectIdentifier, with func(rest cryptobyte.String) ([]byte, error)) (out []byte, found int, err error) {
	list := cryptobyte.String(extensions)
	out = make([]byte, 0, len(extensions))
	for !list.Empty() {
		var element, fields, id cryptobyte.String
		if !list.ReadASN1Element(&element, cryptobyteasn1.SEQUENCE) {
			return nil, 0, ErrMalformed
		}
		whole := element
		if !whole.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !fields.ReadASN1(&id, cryptobyteasn1.OBJECT_IDENTIFIER) {
			return nil, 0, ErrMalformed
		}
		same, valid := compare(id, oid)
		if !valid {
			return nil, 0, ErrMalformed
		}
		if !same {
			out = append(out, element...)
			continue
		}
		instead, err := with(fields)
		if err != nil {
			return nil, 0, err
		}
		out, found = append(out, instead...), found+1
	}
	return out, found, nil
}

// compare reports whether the content of an object identifier is oid, and whether
// it is valid: in DER (X.690 §8.19.2), with numbers of 31 bits at most. cryptobyte's
// own parser does the same, but allocates for each of a certificate's extensions.
func compare(content []byte, oid asn1.ObjectIdentifier) (same, valid bool) {
	same = true
	at, number, inside := 1, 0, false
	for _, b := range content {
		if !inside && b == 0x80 || number >= 1<<24 {
			return false, false
		}
		number = number<<7 | int(b&0x7f)
		if inside = b >= 0x80; inside {
			continue
		}
		if at == 1 {
			same = len(oid) > 1 && number == 40*oid[0]+oid[1] // X.690 §8.19.4
		} else {
			same = same && at < len(oid) && number == oid[at]
		}
		at, number = at+1, 0
	}
	return same && at == len(oid), len(content) > 0 && !inside
}
