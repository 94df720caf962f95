package ceremony

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

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

// requestName is the name of a request, in DER: the issuer's without its common name, then
// what is given.
func requestName(organization, commonName string, issuer *x509.Certificate) ([]byte, error) {
	var name []asn1.RawValue
	if issuer != nil {
		if _, err := asn1.Unmarshal(issuer.RawSubject, &name); err != nil {
			return nil, fmt.Errorf("the issuer's name can't be read: %w", err)
		}
		name = slices.DeleteFunc(name, isCommonName)
	}
	for _, part := range []struct {
		id    asn1.ObjectIdentifier
		value string
	}{{oidOrganization, organization}, {oidCommonName, commonName}} {
		if part.value == "" {
			continue
		}
		text := asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(part.value)}
		der, err := asn1.Marshal(pkix.RelativeDistinguishedNameSET{{Type: part.id, Value: text}})
		if err != nil {
			return nil, fmt.Errorf("the request's name: %w", err)
		}
		name = append(name, asn1.RawValue{FullBytes: der})
	}
	return asn1.Marshal(name)
}

// typed is what begins with an object identifier: an attribute of a name, or of a request.
type typed struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// isCommonName reports whether a part of a name is the common name.
func isCommonName(part asn1.RawValue) bool {
	var set []typed
	_, err := asn1.UnmarshalWithParams(part.FullBytes, &set, "set")
	return err == nil && len(set) > 0 && set[0].ID.Equal(oidCommonName)
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
	for _, a := range attributes(parsed.RawTBSCertificateRequest) {
		if !a.ID.Equal(oidExtensionRequest) {
			r.asks("attribute " + named(a.ID))
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

// attributes are a CertificationRequestInfo's (RFC 2986 §4.1), if they can be read.
func attributes(der []byte) []typed {
	var info struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   []typed `asn1:"set,tag:0"`
	}
	_, _ = asn1.Unmarshal(der, &info) // none where there aren't any
	return info.Attributes
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
