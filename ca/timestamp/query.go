package timestamp

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// failure is a bit of PKIFailureInfo (RFC 3161 §2.4.2): why a query is refused.
type failure int

const (
	badAlg              failure = 0
	badRequest          failure = 2
	badDataFormat       failure = 5
	timeNotAvailable    failure = 14
	unacceptedPolicy    failure = 15
	unacceptedExtension failure = 16
	systemFailure       failure = 25
)

// failures are all of them with their names in the RFC, which metrics and refusals have.
var failures = map[failure]string{
	badAlg: "badAlg", badRequest: "badRequest", badDataFormat: "badDataFormat", timeNotAvailable: "timeNotAvailable",
	unacceptedPolicy: "unacceptedPolicy", unacceptedExtension: "unacceptedExtension", systemFailure: "systemFailure",
}

// refusal is why a query gets no timestamp: as a client reads it in the reply, and
// as everybody else does.
type refusal struct {
	failure
	*fault.Error
}

func refuse(f failure, format string, args ...any) *refusal {
	return &refusal{f, fault.New(fault.RequestMalformed, format, args...).With("failure", failures[f])}
}

// query is what is asked for. Its parts are DER as they came, each within bounds.
type query struct {
	imprint []byte // MessageImprint
	nonce   []byte // INTEGER; nil: none
	certs   bool   // whether the reply is to have the authority's certificate
}

// digest is a hash function.
type digest struct {
	name       string
	hash       crypto.Hash
	id         []byte                // of NIST's arc 2.16.840.1.101.3.4.2, its contents in DER
	ecdsa, rsa asn1.ObjectIdentifier // of signatures: RFC 5758 §3.2, RFC 8017 appendix C
}

// digests are the hash functions of imprints: those that clients of today make, and
// none that is broken.
var digests = []digest{
	{"sha256", crypto.SHA256, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}},
	{"sha384", crypto.SHA384, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}},
	{"sha512", crypto.SHA512, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}},
}

// maxNonce bounds a nonce, in bytes: clients draw 8, or 20.
const maxNonce = 64

// What is wrong with a query, where several places find it.
const (
	malformed     = "the query isn't a TimeStampReq in DER (RFC 3161 §2.4.1)"
	unknownHash   = "the hash function isn't accepted: use SHA-256, SHA-384 or SHA-512"
	unknownPolicy = "no timestamps are given under this policy: leave the policy out"
)

// parseDER reads a TimeStampReq (RFC 3161 §2.4.1). Object identifiers are compared as
// bytes, and nothing is copied.
func parseDER(der, policy []byte) (query, *refusal) {
	var q query
	var all, imprint, wanted cryptobyte.String
	var version int64
	input := cryptobyte.String(der)
	if !input.ReadASN1(&all, cryptobyteasn1.SEQUENCE) || !input.Empty() || !all.ReadASN1Integer(&version) || !all.ReadASN1Element(&imprint, cryptobyteasn1.SEQUENCE) {
		return q, refuse(badDataFormat, malformed)
	}
	if version != 1 {
		return q, refuse(badRequest, "the query isn't of version 1")
	}
	if all.PeekASN1Tag(cryptobyteasn1.OBJECT_IDENTIFIER) && !all.ReadASN1(&wanted, cryptobyteasn1.OBJECT_IDENTIFIER) {
		return q, refuse(badDataFormat, malformed)
	}
	if all.PeekASN1Tag(cryptobyteasn1.INTEGER) && (!all.ReadASN1Element((*cryptobyte.String)(&q.nonce), cryptobyteasn1.INTEGER) || !isNonce(q.nonce)) {
		return q, refuse(badDataFormat, "the nonce isn't an integer in DER of at most %d bytes", maxNonce)
	}
	if all.PeekASN1Tag(cryptobyteasn1.BOOLEAN) && !all.ReadASN1Boolean(&q.certs) {
		return q, refuse(badDataFormat, malformed)
	}
	extensions := cryptobyteasn1.Tag(0).ContextSpecific().Constructed()
	extended := all.PeekASN1Tag(extensions)
	if extended && !all.SkipASN1(extensions) || !all.Empty() {
		return q, refuse(badDataFormat, malformed)
	}
	q.imprint = imprint
	if r := checkImprint(imprint); r != nil {
		return q, r
	}
	if wanted != nil && !bytes.Equal(wanted, policy) {
		return q, refuse(unacceptedPolicy, unknownPolicy)
	}
	if extended { // RFC 3161 §2.4.1: refused, critical or not, where it isn't known
		return q, refuse(unacceptedExtension, "no extension is known here: leave them out")
	}
	return q, nil
}

// isNonce bounds an INTEGER in DER before anything reads it as a number.
func isNonce(der []byte) bool {
	input := cryptobyte.String(der)
	return len(der) <= 2+maxNonce && input.ReadASN1Integer(new(big.Int))
}

// checkImprint wants a known hash function, and a digest of its length.
func checkImprint(der cryptobyte.String) *refusal {
	var all, algorithm, id, null, digest cryptobyte.String
	if !der.ReadASN1(&all, cryptobyteasn1.SEQUENCE) || !all.ReadASN1(&algorithm, cryptobyteasn1.SEQUENCE) || !algorithm.ReadASN1(&id, cryptobyteasn1.OBJECT_IDENTIFIER) ||
		!all.ReadASN1(&digest, cryptobyteasn1.OCTET_STRING) || !all.Empty() {
		return refuse(badDataFormat, malformed)
	}
	// RFC 5754 §2: parameters are absent or NULL.
	if !algorithm.Empty() && (!algorithm.ReadASN1(&null, cryptobyteasn1.NULL) || len(null) > 0 || !algorithm.Empty()) {
		return refuse(badAlg, unknownHash)
	}
	for _, d := range digests {
		if bytes.Equal(id, d.id) {
			return checkLength(d.hash, digest)
		}
	}
	return refuse(badAlg, unknownHash)
}

// imprintOf is a MessageImprint.
func imprintOf(hash, digest []byte) []byte {
	return encode(struct {
		Hash   algorithm
		Digest []byte
	}{algorithm{objectID(hash), asn1.NullRawValue}, digest}, "")
}

func checkLength(h crypto.Hash, digest []byte) *refusal {
	if len(digest) != h.Size() {
		return refuse(badDataFormat, "the digest isn't one of %v: that has %d bytes", h, h.Size())
	}
	return nil
}

// parseJSON reads the form of sigstore's timestamp-authority, which sigstore-js sends.
func parseJSON(text []byte, policy string) (query, *refusal) {
	var in struct {
		ArtifactHash  []byte   `json:"artifactHash"`
		Certificates  bool     `json:"certificates"`
		HashAlgorithm string   `json:"hashAlgorithm"`
		Nonce         *big.Int `json:"nonce"`
		Policy        string   `json:"tsaPolicyOID"`
	}
	if json.Unmarshal(text, &in) != nil {
		return query{}, refuse(badDataFormat, "the query isn't JSON such as {\"artifactHash\":\"BASE64\",\"hashAlgorithm\":\"sha256\"}")
	}
	q := query{certs: in.Certificates}
	for _, d := range digests {
		if strings.ToLower(in.HashAlgorithm) != d.name { // EqualFold takes U+017F for an s
			continue
		}
		if r := checkLength(d.hash, in.ArtifactHash); r != nil {
			return q, r
		}
		q.imprint = imprintOf(d.id, in.ArtifactHash)
	}
	switch {
	case q.imprint == nil:
		return q, refuse(badAlg, unknownHash)
	case in.Policy != "" && in.Policy != policy:
		return q, refuse(unacceptedPolicy, unknownPolicy)
	case in.Nonce != nil && in.Nonce.BitLen() >= 8*maxNonce:
		return q, refuse(badDataFormat, "the nonce has more than %d bytes", maxNonce)
	case in.Nonce != nil:
		q.nonce = encode(in.Nonce, "")
	}
	return q, nil
}
