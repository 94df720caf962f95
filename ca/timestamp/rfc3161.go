package timestamp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/tbs"
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
	b := append(tbs.Wrap(slices.Clone(hash), 0, cryptobyteasn1.OBJECT_IDENTIFIER), asn1.NullBytes...)
	b = tbs.Wrap(b, 0, cryptobyteasn1.SEQUENCE)
	at := len(b)
	return tbs.Wrap(tbs.Wrap(append(b, digest...), at, cryptobyteasn1.OCTET_STRING), 0, cryptobyteasn1.SEQUENCE)
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
		q.nonce, _ = asn1.Marshal(in.Nonce) // every integer has a form in DER
	}
	return q, nil
}

var (
	idSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}         // RFC 5652 §5.1
	idContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}         // RFC 5652 §11.1
	idMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}         // RFC 5652 §11.2
	idTSTInfo       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}  // RFC 3161 §2.4.2
	idCertificateV2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47} // RFC 5035 §3
)

// response is a TimeStampResp (RFC 3161 §2.4.2).
type response struct {
	Status struct {
		Status  int
		Text    []asn1.RawValue `asn1:"optional"`
		Failure asn1.BitString  `asn1:"optional"`
	}
	Token token `asn1:"optional"`
}

// token is a ContentInfo of SignedData (RFC 5652 §3, §5.1).
type token struct {
	Type asn1.ObjectIdentifier
	Data struct {
		Version int
		Digests []algorithm `asn1:"set"`
		Content struct {
			Type asn1.ObjectIdentifier
			Info []byte `asn1:"explicit,tag:0"`
		}
		Certificates []asn1.RawValue `asn1:"set,tag:0,omitempty"`
		Signers      []signerInfo    `asn1:"set"`
	} `asn1:"explicit,tag:0"`
}

// signerInfo is RFC 5652 §5.3's.
type signerInfo struct {
	Version    int
	Issuer     asn1.RawValue
	Digest     algorithm
	Attributes asn1.RawValue // [0]
	Algorithm  algorithm
	Signature  []byte
}

// attribute is an Attribute (RFC 5652 §5.3) with one value.
type attribute struct {
	ID     asn1.ObjectIdentifier
	Values []any `asn1:"set"`
}

// algorithm is an AlgorithmIdentifier.
type algorithm struct {
	ID         any
	Parameters asn1.RawValue `asn1:"optional"`
}

// tstInfo is what is said (RFC 3161 §2.4.2). Its ordering is false, which DER leaves out.
type tstInfo struct {
	Version  int
	Policy   asn1.RawValue
	Imprint  asn1.RawValue
	Serial   *big.Int
	Time     time.Time `asn1:"generalized"`
	Accuracy struct{ Seconds int }
	Nonce    asn1.RawValue `asn1:"optional"`
	Name     asn1.RawValue // [0]
}

// template is what all timestamps of an authority have in common.
type template struct {
	hash         crypto.Hash // of the authority's own signature
	policy       []byte      // contents of an object identifier
	info         tstInfo
	certificates []asn1.RawValue // all of the chain but its root
	certificate  asn1.RawValue   // attribute: which certificate it is signed with
	signer       signerInfo
}

func newTemplate(chain []*x509.Certificate, c *Config) (*template, error) {
	leaf := chain[0]
	a, err := kms.AlgorithmOf(leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	t := &template{hash: a.Hash()}
	if t.policy, err = c.policy(); err != nil {
		return nil, err
	}
	t.info = tstInfo{Version: 1, Policy: objectID(t.policy), Name: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: directoryName(leaf.RawSubject)}}
	t.info.Accuracy.Seconds = int(c.Accuracy / time.Second)
	for _, link := range chain[:len(chain)-1] {
		t.certificates = append(t.certificates, asn1.RawValue{FullBytes: link.Raw})
	}
	i := slices.IndexFunc(digests, func(d digest) bool { return d.hash == t.hash })
	if i < 0 {
		return nil, fmt.Errorf("the key is used with %v, with which no timestamp is signed", t.hash)
	}
	t.signer = signerInfo{
		Version: 1, // the signer is named by issuer and serial number
		Digest:  algorithm{ID: objectID(digests[i].id)}, Algorithm: algorithm{digests[i].rsa, asn1.NullRawValue},
	}
	if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); ok {
		t.signer.Algorithm = algorithm{ID: digests[i].ecdsa}
	}
	if t.signer.Issuer.FullBytes, err = asn1.Marshal(struct {
		Name   asn1.RawValue
		Serial *big.Int
	}{asn1.RawValue{FullBytes: leaf.RawIssuer}, leaf.SerialNumber}); err != nil {
		return nil, err
	}
	t.certificate.FullBytes, err = asn1.Marshal(attribute{idCertificateV2, []any{signingCertificate(leaf)}})
	return t, err
}

// signingCertificate is a SigningCertificateV2 (RFC 5035 §3) of one certificate. Its
// hash function is the default, SHA-256, which DER leaves out.
func signingCertificate(c *x509.Certificate) any {
	type issuer struct {
		Names  []asn1.RawValue
		Serial *big.Int
	}
	type id struct {
		Hash   []byte
		Issuer issuer
	}
	sum := sha256.Sum256(c.Raw)
	return struct{ IDs []id }{[]id{{sum[:], issuer{[]asn1.RawValue{{FullBytes: directoryName(c.RawIssuer)}}, c.SerialNumber}}}}
}

// attributesOf are those that say what was signed (RFC 5652 §11): the type and the digest of info.
func attributesOf(info []byte, hash crypto.Hash) []any {
	return []any{attribute{idContentType, []any{idTSTInfo}}, attribute{idMessageDigest, []any{pubkey.Digest(hash, info)}}}
}

// granted is the reply with info under a signature of attributes, a SET.
func (t *template) granted(info, attributes, signature []byte, certs bool) ([]byte, error) {
	var r response
	r.Token.Type = idSignedData
	signed := &r.Token.Data
	signed.Version, signed.Digests = 3, []algorithm{t.signer.Digest} // 3: the content isn't id-data
	signed.Content.Type, signed.Content.Info = idTSTInfo, info
	if certs {
		signed.Certificates = t.certificates
	}
	signer := t.signer
	signer.Signature = signature
	signer.Attributes.FullBytes = append([]byte{0xa0}, attributes[1:]...) // RFC 5652 §5.4: signed as a SET, sent with a tag of its own
	signed.Signers = []signerInfo{signer}
	return asn1.Marshal(r)
}

// rejected is the reply without a timestamp.
func rejected(r *refusal) []byte {
	var reply response
	reply.Status.Status = 2
	reply.Status.Text = []asn1.RawValue{{Tag: asn1.TagUTF8String, Bytes: []byte(r.Public)}}
	bits := make([]byte, r.failure/8+1) // a list of named bits ends with the last that is set (X.690 §11.2.2)
	bits[r.failure/8] = 0x80 >> (r.failure % 8)
	reply.Status.Failure = asn1.BitString{Bytes: bits, BitLength: int(r.failure) + 1}
	der, _ := asn1.Marshal(reply) // all of it has a form in DER
	return der
}

// objectID is one whose contents are at hand.
func objectID(contents []byte) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagOID, Bytes: contents} }

// directoryName is a GeneralName (RFC 5280 §4.2.1.6).
func directoryName(name []byte) []byte {
	return tbs.Wrap(slices.Clone(name), 0, cryptobyteasn1.Tag(4).ContextSpecific().Constructed())
}

// Ask is a query over the SHA-256 of message, for a reply with the authority's
// certificate. It has no nonce: message is to be what nobody has seen before, such as a
// fresh signature.
func Ask(message []byte) []byte {
	sum := sha256.Sum256(message)
	b := append([]byte{byte(cryptobyteasn1.INTEGER), 1, 1}, imprintOf(digests[0].id, sum[:])...)
	return tbs.Wrap(append(b, byte(cryptobyteasn1.BOOLEAN), 1, 0xff), 0, cryptobyteasn1.SEQUENCE)
}

// down is the element that a way through nested elements of DER leads to, each counted
// from 0; nothing where there is none.
func down(der cryptobyte.String, way ...int) cryptobyte.String {
	for _, n := range way {
		var inside cryptobyte.String
		var tag cryptobyteasn1.Tag
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
	if !content.ReadASN1(&info, cryptobyteasn1.OCTET_STRING) || !hash.ReadASN1(&id, cryptobyteasn1.OBJECT_IDENTIFIER) || !value.ReadASN1(&signature, cryptobyteasn1.OCTET_STRING) {
		return at, errors.New("the reply has no timestamp")
	}
	n := slices.IndexFunc(digests, func(d digest) bool { return bytes.Equal(d.id, id) })
	if n < 0 || slices.ContainsFunc(attributesOf(info, digests[n].hash), func(a any) bool { der, err := asn1.Marshal(a); return err != nil || !bytes.Contains(attributes, der) }) {
		return at, errors.New("the timestamp isn't what was signed")
	}
	signedBytes := append([]byte{byte(cryptobyteasn1.SET)}, attributes[1:]...) // RFC 5652 §5.4
	if err := pubkey.Verify(authority.PublicKey, digests[n].hash, pubkey.Digest(digests[n].hash, signedBytes), signature); err != nil {
		return at, err
	}
	sum, clock := sha256.Sum256(message), down(info, 4)
	if !bytes.Equal(down(info, 2), imprintOf(digests[0].id, sum[:])) || !clock.ReadASN1(&text, cryptobyteasn1.GeneralizedTime) {
		return at, errors.New("the timestamp is over something else")
	}
	return time.Parse("20060102150405Z", string(text)) // takes fractions of a second too
}
