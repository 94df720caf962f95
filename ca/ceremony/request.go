package ceremony

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// NewRequest makes a certificate request (RFC 2986) in PEM: proof that whoever
// asks has the key. The name is for the person who reads it.
//
// Where the issuer's certificate is given, all of its name but the common name is
// taken over, byte for byte: `openssl ca` with a policy of `match` compares the
// kinds of strings too. Otherwise strings are UTF-8, as OpenSSL writes them.
func NewRequest(key cacert.Key, organization, commonName string, issuer *x509.Certificate) ([]byte, error) {
	if _, err := cacert.CheckKey(key.Public()); err != nil {
		return nil, err
	}
	faults := cacert.CheckName("the common name", commonName)
	if organization != "" {
		faults = errors.Join(faults, cacert.CheckName("the organization", organization))
	}
	if faults != nil {
		return nil, faults
	}
	name, err := requestName(organization, commonName, issuer)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: name}, key)
	if err != nil {
		return nil, fmt.Errorf("signing the request with %s: %w", key.Ref, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if _, err := ParseRequest(text); err != nil { // what couldn't be used isn't carried over
		return nil, fmt.Errorf("the request that %s signed isn't good: %w", key.Ref, err)
	}
	return text, nil
}

// The types of names' attributes (RFC 5280 appendix A.1).
var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
)

// requestName is the name of a request, in DER.
func requestName(organization, commonName string, issuer *x509.Certificate) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if issuer != nil {
			addNameOf(b, issuer.RawSubject)
		}
		for _, a := range []struct {
			id    asn1.ObjectIdentifier
			value string
		}{{oidOrganization, organization}, {oidCommonName, commonName}} {
			if a.value == "" {
				continue
			}
			b.AddASN1(cryptobyteasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(a.id)
					b.AddASN1(cryptobyteasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.value)) })
				})
			})
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("the request's name: %w", err)
	}
	return der, nil
}

// addNameOf adds the parts of a name, which crypto/x509 has parsed, but the common name.
func addNameOf(b *cryptobyte.Builder, name []byte) {
	var parts cryptobyte.String
	input := cryptobyte.String(name)
	for input.ReadASN1(&parts, cryptobyteasn1.SEQUENCE); !parts.Empty(); {
		var part, attribute cryptobyte.String
		var id asn1.ObjectIdentifier
		if !parts.ReadASN1Element(&part, cryptobyteasn1.SET) {
			b.SetError(errors.New("the issuer's name can't be read"))
			return
		}
		set := part
		if !set.ReadASN1(&set, cryptobyteasn1.SET) || !set.ReadASN1(&attribute, cryptobyteasn1.SEQUENCE) ||
			!attribute.ReadASN1ObjectIdentifier(&id) || !id.Equal(oidCommonName) {
			b.AddBytes(part)
		}
	}
}

// Request is a certificate request whose signature verified: proof that whoever
// made it has the key. Nothing else in it counts.
type Request struct {
	SHA256  [sha256.Size]byte // of the request in DER
	Subject string            // the name that it asks for, in words
	Asks    []string          // what else it asks for, in words

	public    crypto.PublicKey
	spki      []byte
	algorithm string
}

// maxAsks bounds what is told about a request that asks for a lot.
const maxAsks = 32

// ParseRequest reads a request from outside, in PEM or DER. It refuses what isn't
// exactly one request, whose signature doesn't verify or isn't ECDSA with the
// curve's own hash or RSA PKCS #1 v1.5 with SHA-256, SHA-384 or SHA-512, and
// keys that are weak or that clients don't take. Its subject, extensions and
// attributes are told and not used.
func ParseRequest(text []byte) (*Request, error) {
	policy, err := proof.NewPolicy()
	if err != nil {
		return nil, err
	}
	der, err := pemfile.Request(text)
	if err != nil {
		return nil, err
	}
	key, err := policy.CSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	if err != nil {
		return nil, errors.New(fault.From(err).Public) // the refusal in words, without its reason
	}
	if _, err := kms.AlgorithmOf(key.Public()); err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate request can't be read whole, make it anew with `mayfly ca csr`: %w", err)
	}
	r := &Request{
		SHA256: sha256.Sum256(der), Subject: parsed.Subject.String(),
		public: key.Public(), spki: key.SPKI(), algorithm: key.Algorithm(),
	}
	for _, e := range parsed.Extensions {
		r.asks("extension " + named(e.Id))
	}
	for _, id := range attributes(parsed.RawTBSCertificateRequest) {
		if !id.Equal(oidExtensionRequest) {
			r.asks("attribute " + named(id))
		}
	}
	return r, nil
}

func (r *Request) asks(what string) {
	switch len(r.Asks) {
	case maxAsks + 1:
	case maxAsks:
		r.Asks = append(r.Asks, "and more")
	default:
		r.Asks = append(r.Asks, what)
	}
}

// oidExtensionRequest is the attribute that holds extensions (RFC 2985 §5.4.2).
var oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}

// attributes are the types of a CertificationRequestInfo's attributes (RFC 2986
// §4.1), as far as they can be read.
func attributes(info []byte) (ids []asn1.ObjectIdentifier) {
	input := cryptobyte.String(info)
	var fields, list cryptobyte.String
	if !input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !fields.SkipASN1(cryptobyteasn1.INTEGER) ||
		!fields.SkipASN1(cryptobyteasn1.SEQUENCE) || !fields.SkipASN1(cryptobyteasn1.SEQUENCE) ||
		!fields.ReadASN1(&list, cryptobyteasn1.Tag(0).ContextSpecific().Constructed()) {
		return nil
	}
	for !list.Empty() {
		var attribute cryptobyte.String
		var id asn1.ObjectIdentifier
		if !list.ReadASN1(&attribute, cryptobyteasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&id) {
			return ids
		}
		ids = append(ids, id)
	}
	return ids
}

// challengePassword is an attribute of requests (RFC 2985 §5.4.1).
const challengePassword = "1.2.840.113549.1.9.7"

func named(id asn1.ObjectIdentifier) string {
	oid := id.String()
	if oid == challengePassword {
		return "challenge password"
	}
	return cmp.Or(extension.Standard(oid), oid)
}
