package ctlog

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Constants of the wire format.
const (
	versionV1            = 0 // RFC 6962 §3.2: enum { v1(0), (255) } Version
	certificateTimestamp = 0 // RFC 6962 §3.2: SignatureType certificate_timestamp
	entryPrecert         = 1 // RFC 6962 §3.1: LogEntryType precert_entry
	hashSHA256           = 4 // RFC 5246 §7.4.1.4.1: HashAlgorithm sha256
	signatureECDSA       = 3 // RFC 5246 §7.4.1.4.1: SignatureAlgorithm ecdsa
	extensionLeafIndex   = 0 // c2sp.org/static-ct-api: ExtensionType leaf_index

	leafPrefix      = 0         // RFC 6962 §2.1: MTH({d(0)}) = SHA-256(0x00 || d(0))
	leafIndexLength = 5         // c2sp.org/static-ct-api: uint40
	maxLeafIndex    = 1<<40 - 1 // what a uint40 holds
	maxVector16     = 1<<16 - 1 // RFC 6962 §3.2: CtExtensions
	maxVector24     = 1<<24 - 1 // RFC 6962 §3.1: TBSCertificate

	signedOverhead = 2 + 8 + 2 + 32 + 3 + 2 // RFC 6962 §3.2: all but the TBSCertificate and the extensions
)

// ErrSignature is returned by [SCT.Verify] when the signature is not the log's
// over this chain.
var ErrSignature = errors.New("ctlog: the SCT's signature is not the log's over this certificate")

// SCT is a version 1 signed certificate timestamp (RFC 6962 §3.2) of a log whose
// key is ECDSA on P-256 with SHA-256.
type SCT struct {
	LogID      [32]byte
	Timestamp  uint64 // milliseconds since 1970
	Extensions []byte // CTExtensions without their length
	Signature  []byte // DER ECDSA
}

// Marshal encodes the SCT as TLS does (RFC 6962 §3.2).
func (s SCT) Marshal() ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 64+len(s.Extensions)+len(s.Signature)))
	s.add(b)
	return b.Bytes()
}

func (s SCT) add(b *cryptobyte.Builder) {
	b.AddUint8(versionV1)
	b.AddBytes(s.LogID[:])
	b.AddUint64(s.Timestamp)
	addVector16(b, s.Extensions)
	b.AddUint8(hashSHA256)
	b.AddUint8(signatureECDSA)
	addVector16(b, s.Signature)
}

// ParseSCT decodes one version 1 SCT. Other versions, other signature
// algorithms and trailing bytes are errors.
func ParseSCT(data []byte) (SCT, error) {
	var (
		s                               SCT
		version, hash, algorithm        uint8
		id                              []byte
		extensions, signature, original cryptobyte.String = nil, nil, data
	)
	if !original.ReadUint8(&version) || version != versionV1 {
		return SCT{}, errors.New("ctlog: not a version 1 SCT")
	}
	if !original.ReadBytes(&id, len(s.LogID)) || !original.ReadUint64(&s.Timestamp) ||
		!original.ReadUint16LengthPrefixed(&extensions) ||
		!original.ReadUint8(&hash) || !original.ReadUint8(&algorithm) ||
		!original.ReadUint16LengthPrefixed(&signature) || !original.Empty() {
		return SCT{}, errors.New("ctlog: the SCT is cut short or has trailing bytes")
	}
	if hash != hashSHA256 || algorithm != signatureECDSA {
		return SCT{}, fmt.Errorf("ctlog: the SCT's signature has hash %d and algorithm %d, want SHA-256 with ECDSA (4 and 3)", hash, algorithm)
	}
	copy(s.LogID[:], id)
	s.Extensions = append([]byte(nil), extensions...)
	s.Signature = append([]byte(nil), signature...)
	return s, nil
}

// AppendSignature appends an ECDSA signature with SHA-256, of at most 65,535 bytes, as
// a DigitallySigned (RFC 5246 §4.7): with its algorithms and length before it.
func AppendSignature(b, signature []byte) []byte {
	b = append(b, hashSHA256, signatureECDSA)
	b = binary.BigEndian.AppendUint16(b, uint16(len(signature)))
	return append(b, signature...)
}

// MarshalList encodes a SignedCertificateTimestampList (RFC 6962 §3.3), the
// bytes that the extension 1.3.6.1.4.1.11129.2.4.2 holds in an OCTET STRING.
// An empty list is an error: the syntax has none.
func MarshalList(scts []SCT) ([]byte, error) {
	if len(scts) == 0 {
		return nil, errors.New("ctlog: a list of SCTs can't be empty")
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 128*len(scts)+2))
	b.AddUint16LengthPrefixed(func(list *cryptobyte.Builder) {
		for _, s := range scts {
			list.AddUint16LengthPrefixed(s.add)
		}
	})
	return b.Bytes()
}

// ParseList decodes what [MarshalList] encodes. An empty list, an SCT that
// [ParseSCT] refuses and trailing bytes are errors.
func ParseList(data []byte) ([]SCT, error) {
	var list cryptobyte.String
	input := cryptobyte.String(data)
	if !input.ReadUint16LengthPrefixed(&list) || !input.Empty() || list.Empty() {
		return nil, errors.New("ctlog: the list of SCTs is empty, cut short or has trailing bytes")
	}
	var out []SCT
	for !list.Empty() {
		var one cryptobyte.String
		if !list.ReadUint16LengthPrefixed(&one) {
			return nil, errors.New("ctlog: the list of SCTs is cut short")
		}
		s, err := ParseSCT(one)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// Verify checks the log's signature over the precertificate entry (RFC 6962
// §3.2). It returns [ErrSignature] when it does not hold. The log id is not
// signed: a caller compares it with the key's.
func (s SCT) Verify(pub *ecdsa.PublicKey, c Chain) error {
	if pub == nil {
		return errors.New("ctlog: no log key to verify the SCT with")
	}
	signed, err := c.SignedBytes(s.Timestamp, s.Extensions)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(signed)
	if !ecdsa.VerifyASN1(pub, digest[:], s.Signature) {
		return ErrSignature
	}
	return nil
}

// LeafIndex is the entry's position in the log, which a static-ct log puts into
// the extensions; false when there is none.
func (s SCT) LeafIndex() (uint64, bool) {
	index, found, err := parseExtensions(s.Extensions)
	return index, found && err == nil
}

// CheckExtensions returns an error when the extensions are not a list of
// extensions with at most one well-formed leaf index (c2sp.org/static-ct-api).
// An unknown extension is no error.
func (s SCT) CheckExtensions() error {
	_, _, err := parseExtensions(s.Extensions)
	return err
}

// LeafIndexExtension encodes the static-ct leaf index: `00 0005 <uint40>`.
func LeafIndexExtension(index uint64) ([]byte, error) {
	if index > maxLeafIndex {
		return nil, fmt.Errorf("ctlog: leaf index %d does not fit into 40 bits", index)
	}
	return []byte{
		extensionLeafIndex, 0, leafIndexLength,
		byte(index >> 32), byte(index >> 24), byte(index >> 16), byte(index >> 8), byte(index),
	}, nil
}

func parseExtensions(data []byte) (index uint64, found bool, err error) {
	for input := cryptobyte.String(data); !input.Empty(); {
		var kind uint8
		var value cryptobyte.String
		if !input.ReadUint8(&kind) || !input.ReadUint16LengthPrefixed(&value) {
			return 0, false, errors.New("ctlog: the SCT's extensions are cut short")
		}
		if kind != extensionLeafIndex {
			continue
		}
		if found || len(value) != leafIndexLength {
			return 0, false, errors.New("ctlog: the SCT's leaf index is not one 40-bit number")
		}
		found = true
		for _, b := range value {
			index = index<<8 | uint64(b)
		}
	}
	return index, found, nil
}

// SignedBytes is what a log signs for the chain's precertificate entry at a time
// in milliseconds since 1970: the digitally-signed struct of RFC 6962 §3.2.
func (c Chain) SignedBytes(timestamp uint64, extensions []byte) ([]byte, error) {
	if len(c.TBS) > maxVector24 || len(extensions) > maxVector16 {
		return nil, errors.New("ctlog: the certificate or the extensions are too long for a log")
	}
	b := make([]byte, 0, signedOverhead+len(c.TBS)+len(extensions))
	b = append(b, versionV1, certificateTimestamp)
	b = binary.BigEndian.AppendUint64(b, timestamp)
	b = binary.BigEndian.AppendUint16(b, entryPrecert)
	b = append(b, c.IssuerKeyHash[:]...)
	b = append(b, byte(len(c.TBS)>>16), byte(len(c.TBS)>>8), byte(len(c.TBS)))
	b = append(b, c.TBS...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(extensions)))
	return append(b, extensions...), nil
}

// LeafHash is the hash under which a log's tree holds the chain's precertificate
// entry, for the SCT that the log gave it (RFC 6962 §2.1 and §3.4).
func (c Chain) LeafHash(s SCT) ([32]byte, error) {
	// A MerkleTreeLeaf has the bytes that the SCT signs: both start with version v1
	// and a zero for their type.
	leaf, err := c.SignedBytes(s.Timestamp, s.Extensions)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(append([]byte{leafPrefix}, leaf...)), nil
}

func addVector16(b *cryptobyte.Builder, value []byte) {
	b.AddUint16LengthPrefixed(func(v *cryptobyte.Builder) { v.AddBytes(value) })
}
