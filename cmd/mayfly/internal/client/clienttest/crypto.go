package clienttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
)

// ErrProof is what CheckProof answers for a wrong proof.
var ErrProof = errors.New("the proof of possession is wrong")

// CheckProof verifies a proof of possession as the API defines it for the key's type.
func CheckProof(public crypto.PublicKey, challenge, proof []byte) error {
	ok := false
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		var digest []byte
		switch key.Curve {
		case elliptic.P384():
			sum := sha512.Sum384(challenge)
			digest = sum[:]
		case elliptic.P521():
			sum := sha512.Sum512(challenge)
			digest = sum[:]
		default:
			sum := sha256.Sum256(challenge)
			digest = sum[:]
		}
		ok = ecdsa.VerifyASN1(key, digest, proof)
	case *rsa.PublicKey:
		sum := sha256.Sum256(challenge)
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], proof) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, challenge, proof)
	}
	if !ok {
		return ErrProof
	}
	return nil
}

// sctList is the value of the SCT extension for the TBS without it: an OCTET
// STRING with one SCT (RFC 6962 §3.3), whose bytes are laid out by hand here.
func (c *CA) sctList(tbs []byte) ([]byte, error) {
	log, at := c.log, c.Start
	if c.Knobs.UnknownLog {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		log = other
	}
	if !c.Knobs.SCTTime.IsZero() {
		at = c.Knobs.SCTTime
	}
	ms := uint64(at.UnixMilli())                 // #nosec G115 -- after 1970
	extensions := []byte{0, 0, 5, 0, 0, 0, 1, 2} // static-ct: leaf index 258
	issuer := sha256.Sum256(c.chain[0].RawSubjectPublicKeyInfo)
	if c.Knobs.BadSCT {
		issuer[0] ^= 1
	}
	signed := []byte{0, 0} // v1, certificate_timestamp
	signed = binary.BigEndian.AppendUint64(signed, ms)
	signed = append(signed, 0, 1) // precert_entry
	signed = append(signed, issuer[:]...)
	signed = append(signed, byte(len(tbs)>>16), byte(len(tbs)>>8), byte(len(tbs)))
	signed = append(signed, tbs...)
	signed = binary.BigEndian.AppendUint16(signed, uint16(len(extensions))) // #nosec G115 -- 8
	signed = append(signed, extensions...)
	digest := sha256.Sum256(signed)
	signature, err := ecdsa.SignASN1(rand.Reader, log, digest[:])
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(log.Public())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	sct := append([]byte{0}, id[:]...)
	sct = binary.BigEndian.AppendUint64(sct, ms)
	sct = binary.BigEndian.AppendUint16(sct, uint16(len(extensions))) // #nosec G115 -- 8
	sct = append(sct, extensions...)
	sct = append(sct, 4, 3)                                          // SHA-256, ECDSA
	sct = binary.BigEndian.AppendUint16(sct, uint16(len(signature))) // #nosec G115 -- about 70
	sct = append(sct, signature...)
	list := binary.BigEndian.AppendUint16(nil, uint16(len(sct)+2)) // #nosec G115 -- about 130
	list = binary.BigEndian.AppendUint16(list, uint16(len(sct)))   // #nosec G115
	return asn1.Marshal(append(list, sct...))
}
