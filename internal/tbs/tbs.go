// Package tbs takes a TBSCertificate (RFC 5280 §4.1) in DER apart at its extensions
// and puts it together again with every other byte as it was. A certificate and its
// precertificate differ in nothing else (RFC 6962 §3.1), and a log signs what both
// have in common (§3.2).
package tbs

import (
	"encoding/asn1"
	"errors"
	"math/bits"

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
func Join(before, extensions []byte) []byte {
	b := append(make([]byte, 0, len(before)+len(extensions)+16), before...)
	if len(extensions) > 0 {
		b = append(b, extensions...)
		b = Wrap(Wrap(b, len(before), cryptobyteasn1.SEQUENCE), len(before), tagExtensions)
	}
	return Wrap(b, 0, cryptobyteasn1.SEQUENCE)
}

// Wrap makes what b has from an index on the content of an element of DER: it puts
// the tag and the length before it (X.690 §8.1.3, §10.1).
func Wrap(b []byte, from int, tag cryptobyteasn1.Tag) []byte {
	n := len(b) - from
	head := append(make([]byte, 0, 8), byte(tag))
	if n < 0x80 {
		head = append(head, byte(n))
	} else {
		bytes := (bits.Len(uint(n)) + 7) / 8
		head = append(head, 0x80|byte(bytes))
		for shift := 8 * (bytes - 1); shift >= 0; shift -= 8 {
			head = append(head, byte(n>>shift))
		}
	}
	b = append(b, head...)
	copy(b[from+len(head):], b[from:from+n])
	copy(b[from:], head)
	return b
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
