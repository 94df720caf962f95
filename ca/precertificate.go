package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// precertify signs the precertificate of a TBSCertificate with the poison, plain
// without it, by p or, where p is nil, by the authority's key. The chain says of it
// what every log will find: the entry of the final certificate.
func precertify(ctx context.Context, a *authority.Authority, p *authority.PrecertificateSigner, poisoned, plain []byte) (ctlog.Chain, error) {
	c := ctlog.Chain{Issuers: a.Chain, IssuerKeyHash: a.KeyHash, TBS: plain}
	var err error
	if p == nil {
		c.Precertificate, err = signTBS(ctx, a, poisoned)
		return c, err
	}
	if err := ctx.Err(); err != nil {
		return c, fmt.Errorf("ca: signing: %w", err)
	}
	tbs, err := replaceIssuer(poisoned, p.Certificate.RawSubject)
	if err != nil {
		return c, err
	}
	if tbs, err = replaceExtension(tbs, oidAuthority, p.KeyID); err != nil {
		return c, err
	}
	sig, err := p.SignTBS(tbs)
	if err != nil {
		return c, err
	}
	if c.Precertificate, err = assemble(tbs, a.SignatureAlgorithm, sig); err != nil {
		return c, err
	}
	c.Issuers = p.Chain
	// The log derives what it promises from these bytes: so it is done here, before
	// a promise for something else is asked for.
	derived, err := ctlog.PrecertificateTBS(c.Precertificate, p.Certificate)
	if err != nil {
		return c, fmt.Errorf("ca: the precertificate can't be read back: %w", err)
	}
	if !bytes.Equal(derived, plain) {
		return c, errors.New("ca: the precertificate isn't that of the final certificate")
	}
	return c, nil
}

// replaceIssuer returns tbs with another issuer, in DER (RFC 5280 §4.1), and every
// other byte as it was.
func replaceIssuer(tbs, name []byte) ([]byte, error) {
	input := cryptobyte.String(tbs)
	var fields, version, serial, algorithm, issuer cryptobyte.String
	if !input.ReadASN1(&fields, asn1.SEQUENCE) || !input.Empty() {
		return nil, errTBS
	}
	rest := fields
	if !rest.ReadASN1Element(&version, tagVersion) || !rest.ReadASN1Element(&serial, asn1.INTEGER) ||
		!rest.ReadASN1Element(&algorithm, asn1.SEQUENCE) {
		return nil, errTBS
	}
	before := fields[:len(fields)-len(rest)]
	if !rest.ReadASN1Element(&issuer, asn1.SEQUENCE) {
		return nil, errTBS
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(name)+8))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(before)
		b.AddBytes(name)
		b.AddBytes(rest)
	})
	return b.Bytes()
}

// errTBS is a TBSCertificate that can't be read: ours, so it never happens.
var errTBS = errors.New("ca: malformed TBSCertificate")

// replaceExtension returns tbs with the one extension whose OID's content is
// oid replaced by with, an encoded extension, or taken out where with is empty.
// Every other byte and the order stay: that is what ties a certificate to its
// precertificate (RFC 6962 §3.1). Exactly one such extension must be there.
func replaceExtension(tbs, oid, with []byte) ([]byte, error) {
	input := cryptobyte.String(tbs)
	var fields cryptobyte.String
	if !input.ReadASN1(&fields, asn1.SEQUENCE) || !input.Empty() {
		return nil, errTBS
	}
	all := fields
	for !fields.Empty() && !fields.PeekASN1Tag(tagExtensions) {
		var field cryptobyte.String
		var tag asn1.Tag
		if !fields.ReadAnyASN1Element(&field, &tag) {
			return nil, errTBS
		}
	}
	before := all[:len(all)-len(fields)]
	var explicit, list cryptobyte.String
	if !fields.ReadASN1(&explicit, tagExtensions) || !fields.Empty() ||
		!explicit.ReadASN1(&list, asn1.SEQUENCE) || !explicit.Empty() {
		return nil, errTBS
	}
	head, tail, err := splitAt(list, oid)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(with)+8))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(before)
		b.AddASN1(tagExtensions, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddBytes(head)
				b.AddBytes(with)
				b.AddBytes(tail)
			})
		})
	})
	return b.Bytes()
}

// splitAt gives the encoded extensions before and after the one with oid.
func splitAt(list cryptobyte.String, oid []byte) (head, tail []byte, err error) {
	all, found := list, 0
	for !list.Empty() {
		rest := list
		var fields, id cryptobyte.String
		if !list.ReadASN1(&fields, asn1.SEQUENCE) || !fields.ReadASN1(&id, asn1.OBJECT_IDENTIFIER) {
			return nil, nil, errTBS
		}
		if bytes.Equal(id, oid) {
			head, tail = all[:len(all)-len(rest)], list
			found++
		}
	}
	if found != 1 {
		return nil, nil, fmt.Errorf("ca: %d extensions where one is expected", found)
	}
	return head, tail, nil
}

// sctListExtension encodes the SCTs as the certificate carries them: an OCTET
// STRING inside the extension's own (RFC 6962 §3.3).
func sctListExtension(scts []ctlog.SCT) ([]byte, error) {
	list, err := ctlog.MarshalList(scts)
	if err != nil {
		return nil, fmt.Errorf("ca: encoding the SCT list: %w", err)
	}
	var b cryptobyte.Builder
	addExtension(&b, oidSCTList, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(list) })
	return b.Bytes()
}
