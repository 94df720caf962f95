package timestamp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Object identifiers, their contents in DER.
var (
	idSignedData    = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02}                                    // RFC 5652 §5.1
	idContentType   = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03}                                    // RFC 5652 §11.1
	idMessageDigest = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04}                                    // RFC 5652 §11.2
	idTSTInfo       = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 0x04}                        // RFC 3161 §2.4.2
	idCertificateV2 = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x02, 0x2f}                        // RFC 5035 §3
	idECDSAWith     = []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03}                                                // RFC 5758 §3.2: a digit follows
	idRSAWith       = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01}                                          // RFC 8017 appendix C: a digit follows
	lastDigit       = map[crypto.Hash][2]byte{crypto.SHA256: {2, 11}, crypto.SHA384: {3, 12}, crypto.SHA512: {4, 13}} // ECDSA, RSA
)

// Tags of fields.
var (
	tag0 = asn1.Tag(0).ContextSpecific().Constructed()
	tag4 = asn1.Tag(4).ContextSpecific().Constructed()
)

// template is what all timestamps of an authority have in common, in DER.
type template struct {
	hash         crypto.Hash // of the authority's own signature
	policy       []byte      // contents of an object identifier
	accuracy     time.Duration
	name         []byte // GeneralName of the authority
	signer       []byte // IssuerAndSerialNumber
	certificates []byte // CertificateSet: all of the chain but its root
	certificate  []byte // attribute: which certificate it is signed with
	digest       []byte // AlgorithmIdentifier of hash
	signature    []byte // AlgorithmIdentifier of the signature
}

func newTemplate(chain []*x509.Certificate, c *Config) (*template, error) {
	leaf := chain[0]
	a, err := kms.AlgorithmOf(leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	t := &template{hash: a.Hash(), accuracy: c.Accuracy}
	if t.policy, err = c.policy(); err != nil {
		return nil, err
	}
	t.name = element(tag4, func(b *cryptobyte.Builder) { b.AddBytes(leaf.RawSubject) })
	t.signer = sequence(func(b *cryptobyte.Builder) {
		b.AddBytes(leaf.RawIssuer)
		b.AddASN1BigInt(leaf.SerialNumber)
	})
	var certificates [][]byte
	for _, link := range chain[:len(chain)-1] {
		certificates = append(certificates, link.Raw)
	}
	t.certificates = setOf(tag0, certificates...)
	t.certificate = attribute(idCertificateV2, signingCertificate(leaf))
	digit := lastDigit[t.hash]
	_, ec := leaf.PublicKey.(*ecdsa.PublicKey)
	t.signature = sequence(func(b *cryptobyte.Builder) {
		if ec {
			addID(b, append(slices.Clone(idECDSAWith), digit[0]))
			return
		}
		addID(b, append(slices.Clone(idRSAWith), digit[1]))
		b.AddASN1NULL()
	})
	for _, d := range digests {
		if d.hash == t.hash {
			t.digest = sequence(func(b *cryptobyte.Builder) { addID(b, d.id) })
			return t, nil
		}
	}
	return nil, fmt.Errorf("the key is used with %v, with which no timestamp is signed", t.hash)
}

// signingCertificate is a SigningCertificateV2 (RFC 5035 §3) of one certificate. Its
// hash function is the default, SHA-256, which DER leaves out.
func signingCertificate(c *x509.Certificate) []byte {
	sum := sha256.Sum256(c.Raw)
	id := sequence(func(b *cryptobyte.Builder) {
		b.AddASN1OctetString(sum[:])
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(tag4, func(b *cryptobyte.Builder) { b.AddBytes(c.RawIssuer) })
			})
			b.AddASN1BigInt(c.SerialNumber)
		})
	})
	return sequence(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(id) })
	})
}

// info is the TSTInfo (RFC 3161 §2.4.2) of a query. Its ordering is false, which DER
// leaves out.
func (t *template) info(q query, serial *big.Int, at time.Time) []byte {
	return sequence(func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		addID(b, t.policy)
		b.AddBytes(q.imprint)
		b.AddASN1BigInt(serial)
		b.AddASN1GeneralizedTime(at)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(t.accuracy / time.Second)) })
		b.AddBytes(q.nonce)
		b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddBytes(t.name) })
	})
}

// attributes are the signed attributes of info (RFC 5652 §5.3), as a SET with tag.
func (t *template) attributes(info []byte) func(tag asn1.Tag) []byte {
	all := append(attributesOf(info, t.hash), t.certificate)
	return func(tag asn1.Tag) []byte { return setOf(tag, all...) }
}

// attributesOf are those that say what was signed (RFC 5652 §11): the type and the digest of info.
func attributesOf(info []byte, hash crypto.Hash) [][]byte {
	h := hash.New()
	_, _ = h.Write(info) // a hash never fails
	var sum, kind cryptobyte.Builder
	sum.AddASN1OctetString(h.Sum(nil))
	addID(&kind, idTSTInfo)
	return [][]byte{attribute(idContentType, kind.BytesOrPanic()), attribute(idMessageDigest, sum.BytesOrPanic())}
}

// granted is the TimeStampResp of info, with a ContentInfo of SignedData (RFC 5652
// §5.1). attributes have the tag [0].
func (t *template) granted(info, attributes, signature []byte, certs bool) []byte {
	return sequence(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Int64(0) }) // granted
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addID(b, idSignedData)
			b.AddASN1(tag0, func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1Int64(3) // the content isn't id-data
					b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(t.digest) })
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						addID(b, idTSTInfo)
						b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(info) })
					})
					if certs {
						b.AddBytes(t.certificates)
					}
					b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddASN1(asn1.SEQUENCE, t.signerInfo(attributes, signature)) })
				})
			})
		})
	})
}

// signerInfo is a SignerInfo (RFC 5652 §5.3).
func (t *template) signerInfo(attributes, signature []byte) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1) // the signer is named by issuer and serial number
		b.AddBytes(t.signer)
		b.AddBytes(t.digest)
		b.AddBytes(attributes)
		b.AddBytes(t.signature)
		b.AddASN1OctetString(signature)
	}
}

// rejected is the TimeStampResp without a timestamp.
func rejected(r *refusal) []byte {
	text := r.Public
	bits := make([]byte, r.failure/8+1)
	bits[r.failure/8] = 0x80 >> (r.failure % 8)
	return sequence(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(2) // rejection
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(text)) })
			})
			// A list of named bits ends with the last that is set (X.690 §11.2.2).
			b.AddASN1(asn1.BIT_STRING, func(b *cryptobyte.Builder) {
				b.AddUint8(uint8(7 - r.failure%8)) // #nosec G115 -- 0 to 7
				b.AddBytes(bits)
			})
		})
	})
}

// attribute is an Attribute with one value.
func attribute(id, value []byte) []byte {
	return sequence(func(b *cryptobyte.Builder) {
		addID(b, id)
		b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(value) })
	})
}

// setOf is a SET OF in DER, whose elements are sorted (X.690 §11.6).
func setOf(tag asn1.Tag, elements ...[]byte) []byte {
	slices.SortFunc(elements, bytes.Compare)
	return element(tag, func(b *cryptobyte.Builder) {
		for _, e := range elements {
			b.AddBytes(e)
		}
	})
}

func addID(b *cryptobyte.Builder, id []byte) {
	b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(id) })
}

func sequence(f cryptobyte.BuilderContinuation) []byte { return element(asn1.SEQUENCE, f) }

// element is one element in DER. All that goes into one here is of bounded length, so
// that building can't fail.
func element(tag asn1.Tag, f cryptobyte.BuilderContinuation) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, f)
	return b.BytesOrPanic()
}
