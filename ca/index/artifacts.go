package index

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/store"
)

// maxDigests bounds what one bundle tells.
const maxDigests = 256

// Signed is what a bundle shows: that the key of a certificate signed artifacts.
type Signed struct {
	Certificate *x509.Certificate
	Digests     []string // hex, of the artifacts
}

// ParseBundle reads a Sigstore bundle and verifies its signature, with the certificate
// alone: whether that is to be trusted it doesn't say. The error is a *fault.Error.
func ParseBundle(text []byte) (Signed, error) {
	refuse := func(why string) (Signed, error) {
		return Signed{}, fault.New(fault.RequestMalformed, "the bundle %s", why)
	}
	var b protobundle.Bundle
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &b); err != nil {
		return refuse("isn't a Sigstore bundle in JSON, as cosign writes with --bundle")
	}
	der := b.GetVerificationMaterial().GetCertificate().GetRawBytes()
	if chain := b.GetVerificationMaterial().GetX509CertificateChain().GetCertificates(); der == nil && len(chain) > 0 {
		der = chain[0].GetRawBytes()
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return refuse("has no certificate: only signatures with one are in the index")
	}
	if m := b.GetMessageSignature(); m != nil {
		digest := m.GetMessageDigest().GetDigest()
		if _, raw := cert.PublicKey.(ed25519.PublicKey); raw {
			return refuse("has an Ed25519 signature, which doesn't show what was signed without the artifact")
		}
		if !verifies(cert.PublicKey, digest, m.GetSignature()) {
			return refuse("has a signature that isn't over the digest that it names")
		}
		return Signed{cert, []string{hex.EncodeToString(digest)}}, nil
	}
	e := b.GetDsseEnvelope()
	if len(e.GetSignatures()) != 1 || !signs(cert.PublicKey, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.GetPayloadType()), e.GetPayloadType(), len(e.GetPayload()), e.GetPayload()), e.GetSignatures()[0].GetSig()) {
		return refuse("has no signature of its certificate's key")
	}
	var statement struct { // in-toto Statement v1
		Subject []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(e.GetPayload(), &statement); err != nil {
		return refuse("has an envelope around something else than an in-toto statement")
	}
	signed := Signed{Certificate: cert}
	for _, s := range statement.Subject {
		for _, d := range s.Digest {
			signed.Digests = append(signed.Digests, clip(strings.ToLower(d))) // as searches ask
		}
	}
	if len(signed.Digests) == 0 || len(signed.Digests) > maxDigests {
		return refuse(fmt.Sprintf("names %d artifacts; 1 to %d are expected", len(signed.Digests), maxDigests))
	}
	return signed, nil
}

// verifies reports whether a signature is over a digest.
func verifies(key crypto.PublicKey, digest, signature []byte) bool {
	hash, ok := map[int]crypto.Hash{32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[len(digest)]
	if !ok { // ECDSA would pass over what a digest has beyond the curve's size
		return false
	}
	return pubkey.Verify(key, hash, digest, signature) == nil
}

// signs is verifies for a message, under whichever hash clients use.
func signs(key crypto.PublicKey, message, signature []byte) bool {
	if k, ok := key.(ed25519.PublicKey); ok {
		return ed25519.Verify(k, message, signature)
	}
	short, middle, long := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	return verifies(key, short[:], signature) || verifies(key, middle[:], signature) || verifies(key, long[:], signature)
}

// Tell notes what a bundle shows, so that its artifacts' digests are found. Its
// certificate has to be in the index. The error is a *fault.Error.
func (i *Index) Tell(ctx context.Context, s Signed, now time.Time) error {
	db, err := i.open()
	if err == nil {
		err = i.searchable()
	}
	if err != nil {
		return err
	}
	serial, authority := s.Certificate.SerialNumber.Text(16), hex.EncodeToString(s.Certificate.AuthorityKeyId)
	key := chain.Fingerprint(s.Certificate.RawSubjectPublicKeyInfo)
	var known bool
	err = db.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM certificates c JOIN subjects s ON s.id = c.subject WHERE c.serial = ? AND s.authority = ? AND c.key_fingerprint = ?)",
		serial, authority, key).Scan(&known)
	if err != nil {
		return unavailable(err)
	}
	if !known {
		return fault.New(fault.RequestMalformed, "the bundle's certificate, serial %s, isn't in the index: another CA issued it, or the index hasn't come so far yet", serial)
	}
	err = db.Write(ctx, func(tx store.Handle) error {
		for _, digest := range append([]string{""}, s.Digests...) {
			if err := tell(ctx, tx, digest, chain.Fingerprint(s.Certificate.Raw), serial, authority, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// tell notes a certificate's fingerprint, with the digest of an artifact or "".
func tell(ctx context.Context, tx store.Handle, digest, fingerprint, serial, authority string, at time.Time) error {
	_, err := tx.Exec(ctx, "INSERT INTO artifacts (digest, certificate_fingerprint, serial, authority, told) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		digest, fingerprint, serial, authority, at.Unix())
	return err
}
