package client

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// DefaultKeyType is what every verifier accepts.
const DefaultKeyType = "p256"

// keyType is how keys of one type are made and used.
type keyType struct {
	name string
	kind pubkey.Algorithm            // "" for Ed25519
	api  fulciov2.PublicKeyAlgorithm // the CA ignores it
}

var keyTypes = []keyType{
	{DefaultKeyType, pubkey.ECDSAP256, fulciov2.PublicKeyAlgorithm_ECDSA},
	{"p384", pubkey.ECDSAP384, fulciov2.PublicKeyAlgorithm_ECDSA},
	{"p521", pubkey.ECDSAP521, fulciov2.PublicKeyAlgorithm_ECDSA},
	// The only RSA name of the API's enum is RSA_PSS, although proofs are PKCS#1 v1.5.
	{"rsa2048", pubkey.RSA2048, fulciov2.PublicKeyAlgorithm_RSA_PSS},
	{"rsa3072", pubkey.RSA3072, fulciov2.PublicKeyAlgorithm_RSA_PSS},
	{"rsa4096", pubkey.RSA4096, fulciov2.PublicKeyAlgorithm_RSA_PSS},
	{"ed25519", "", fulciov2.PublicKeyAlgorithm_ED25519},
}

// hash is of the challenge; zero: the challenge itself is signed.
func (t keyType) hash() crypto.Hash { return t.kind.Hash() }

// KeyTypes lists the types that GenerateKey knows, the default first.
func KeyTypes() []string {
	names := make([]string, len(keyTypes))
	for i, t := range keyTypes {
		names[i] = t.name
	}
	return names
}

// CheckKeyType returns the error that GenerateKey would for an unknown type.
func CheckKeyType(t string) error {
	if slices.Contains(KeyTypes(), t) {
		return nil
	}
	return problem(Misused, "use one of "+strings.Join(KeyTypes(), ", "), "%q is not a type of key", t)
}

// Key is a fresh private key that only this process holds until it is written.
type Key struct {
	signer crypto.Signer
	typ    keyType
}

// GenerateKey makes a key. An unknown type is Misused.
func GenerateKey(t string) (*Key, error) {
	if err := CheckKeyType(t); err != nil {
		return nil, err
	}
	k := &Key{typ: keyTypes[slices.Index(KeyTypes(), t)]}
	var err error
	if k.typ.kind == "" {
		_, k.signer, err = ed25519.GenerateKey(rand.Reader)
	} else {
		k.signer, err = k.typ.kind.Generate()
	}
	if err != nil {
		return nil, problem(Failed, "", "making a %s key", t).because(err)
	}
	return k, nil
}

// Type is the type that the key was made with.
func (k *Key) Type() string { return k.typ.name }

// Public is the public half.
func (k *Key) Public() crypto.PublicKey { return k.signer.Public() }

// Prove signs the raw bytes of the challenge: ECDSA in ASN.1 DER with the
// curve's own hash, RSA PKCS#1 v1.5 with SHA-256, Ed25519 pure.
func (k *Key) Prove(challenge string) ([]byte, error) {
	sig, err := crypto.SignMessage(k.signer, rand.Reader, []byte(challenge), k.typ.hash())
	if err != nil {
		return nil, problem(Failed, "", "signing the challenge").because(err)
	}
	return sig, nil
}

// CSR is a PKCS#10 request (RFC 2986) in PEM, self-signed by the key and
// otherwise empty: the CA takes nothing but the key from it.
func (k *Key) CSR() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.signer)
	return encoded("CERTIFICATE REQUEST", der, err)
}

// SPKI is the public key as a PEM SubjectPublicKeyInfo.
func (k *Key) SPKI() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	return encoded("PUBLIC KEY", der, err)
}

// PKCS8 is the private key as PEM PKCS#8 (RFC 5208), unencrypted.
func (k *Key) PKCS8() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	return encoded("PRIVATE KEY", der, err)
}

// encoded is what was made, as PEM.
func encoded(kind string, der []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, problem(Failed, "", "encoding the %s", strings.ToLower(kind)).because(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), nil
}

// String names the key without any of it.
func (k *Key) String() string {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return k.typ.name + " key"
	}
	return fmt.Sprintf("%s key SHA256:%x", k.typ.name, sha256.Sum256(der))
}

// GoString is String, so that no format verb prints the private key.
func (k *Key) GoString() string { return k.String() }

// hashNames are what bundles call hash functions.
var hashNames = map[crypto.Hash]commonpb.HashAlgorithm{
	crypto.SHA256: commonpb.HashAlgorithm_SHA2_256, crypto.SHA384: commonpb.HashAlgorithm_SHA2_384, crypto.SHA512: commonpb.HashAlgorithm_SHA2_512,
}

// SignFile signs a file of any size, by its digest.
func (k *Key) SignFile(path string) (*commonpb.MessageSignature, error) {
	hash := k.typ.hash()
	if hash == 0 { // Ed25519
		return nil, problem(Misused, "use another --key-type", "a key of type %s signs no file: it can't sign a digest", k.typ.name)
	}
	h := hash.New()
	f, err := os.Open(path) // #nosec G304 -- the user names the file
	if err == nil {
		defer f.Close()
		_, err = io.Copy(h, f)
	}
	if err != nil {
		return nil, problem(Failed, "", "reading what is to be signed").because(err)
	}
	digest := h.Sum(nil)
	signature, err := k.signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, problem(Failed, "", "signing the file").because(err)
	}
	return &commonpb.MessageSignature{
		MessageDigest: &commonpb.HashOutput{Algorithm: hashNames[hash], Digest: digest}, Signature: signature,
	}, nil
}

// Stamp is a timestamp over a signature, from the newest authority that the trusted root
// has a URL of, and verified; nil where it has none. Only a digest goes there.
func (t *Trust) Stamp(ctx context.Context, hc *http.Client, retry Retry, signature []byte, leaf *x509.Certificate) (reply []byte, at time.Time, err error) {
	var a trustroot.Authority
	for _, listed := range t.root.TimestampAuthorities { // in ascending order of start
		if listed.URL != "" && listed.Holds(leaf.NotBefore) {
			a = listed
		}
	}
	if a.URL == "" {
		return nil, at, nil
	}
	reply, err = ask(ctx, hc, retry, message{
		what: "the timestamp authority", url: a.URL, header: http.Header{"Content-Type": {"application/timestamp-query"}},
		body: timestamp.Ask(signature), created: true, // of sigstore's
	})
	if err != nil {
		return nil, at, err
	}
	at, err = timestamp.Verify(reply, signature, a.Chain[0])
	if err == nil && (!a.Holds(at) || at.Before(leaf.NotBefore) || at.After(leaf.NotAfter)) {
		err = fmt.Errorf("it says %s, when certificate or authority don't count", at.Format(time.RFC3339))
	}
	if err != nil {
		return nil, at, problem(Unverified, "report it to the operator of "+a.URL, "no verifier would take the timestamp").because(err)
	}
	return reply, at, nil
}

// Bundle is a signature as a Sigstore bundle, with a timestamp unless that is nil.
func Bundle(s *commonpb.MessageSignature, leaf *x509.Certificate, stamp []byte) ([]byte, error) {
	var stamps []*commonpb.RFC3161SignedTimestamp
	if stamp != nil {
		stamps = append(stamps, &commonpb.RFC3161SignedTimestamp{SignedTimestamp: stamp})
	}
	return protojson.Marshal(&bundlepb.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &bundlepb.VerificationMaterial{
			Content:                   &bundlepb.VerificationMaterial_Certificate{Certificate: &commonpb.X509Certificate{RawBytes: leaf.Raw}},
			TimestampVerificationData: &bundlepb.TimestampVerificationData{Rfc3161Timestamps: stamps},
		},
		Content: &bundlepb.Bundle_MessageSignature{MessageSignature: s},
	})
}
