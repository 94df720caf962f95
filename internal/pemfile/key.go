package pemfile

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/youmark/pkcs8"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

const privateKey = "a private key (PKCS #8, SEC 1 or PKCS #1, in PEM or DER)"

// PrivateKey reads the one private key of a file: PKCS #8 plain (RFC 5208 §5) or
// encrypted (§6), SEC 1 or PKCS #1. Certificates beside it are passed over. A nil
// passphrase is none; a plain key refuses one.
func PrivateKey(b, passphrase []byte) (crypto.Signer, error) {
	block, err := keyBlock(b)
	if err != nil {
		return nil, err
	}
	if block.Headers["DEK-Info"] != "" { // RFC 1421 §4.6.1.3, broken since
		return nil, errors.New("uses the old encryption of PEM: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW.pem`")
	}
	var key any
	switch block.Type {
	case "ENCRYPTED PRIVATE KEY":
		if passphrase == nil {
			return nil, errors.New("is encrypted: set the passphrase (`passphrase` in a configuration; --passphrase-file or --passphrase-env of this key on a command line)")
		}
		if key, err = decrypt(block.Bytes, passphrase); err != nil {
			return nil, err
		}
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "OPENSSH PRIVATE KEY":
		return nil, errors.New("is in OpenSSH's format: `ssh-keygen -p -m PKCS8 -f FILE` rewrites it")
	default:
		return nil, fmt.Errorf("holds a %q: %s is expected", block.Type, privateKey)
	}
	if err != nil {
		if known := keyAlgorithm(block); known != nil {
			return nil, known
		}
		return nil, fmt.Errorf("is damaged: restore it from a copy: %w", err)
	}
	if passphrase != nil && block.Type != "ENCRYPTED PRIVATE KEY" {
		return nil, errors.New("isn't encrypted, but a passphrase is set: encrypt it with `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW.pem`, or remove the passphrase")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("holds a key of type %T, which can't sign", key)
	}
	return signer, nil
}

// keyBlock is the one private key of a file, still encoded.
func keyBlock(b []byte) (*pem.Block, error) {
	text := plain(b)
	if !isPEM(text) {
		if label := keyLabel(b); label != "" {
			return &pem.Block{Type: label, Bytes: b}, nil
		}
		return nil, unreadable(b, privateKey)
	}
	all, err := blocks(text)
	if err != nil {
		return nil, err
	}
	var found *pem.Block
	for _, block := range all {
		switch {
		case !isPrivate(block.Type):
		case found == nil:
			found = block
		case !bytes.Equal(found.Bytes, block.Bytes):
			return nil, errors.New("holds more than one private key: keep one")
		}
	}
	switch {
	case found != nil:
		return found, nil
	case all[0].Type == "EC PARAMETERS":
		return nil, errors.New("holds EC parameters and no key")
	default:
		return nil, fmt.Errorf("holds a %q: %s is expected", all[0].Type, privateKey)
	}
}

// labels are the PEM labels of private keys, by the types of their first fields.
var labels = []struct {
	label  string
	fields []int
}{
	{"ENCRYPTED PRIVATE KEY", []int{asn1.TagSequence, asn1.TagOctetString}},        // RFC 5208 §6
	{"PRIVATE KEY", []int{asn1.TagInteger, asn1.TagSequence, asn1.TagOctetString}}, // RFC 5208 §5
	{"EC PRIVATE KEY", []int{asn1.TagInteger, asn1.TagOctetString}},                // RFC 5915 §3
	{"RSA PRIVATE KEY", []int{asn1.TagInteger, asn1.TagInteger}},                   // RFC 8017 §A.1.2
}

// keyLabel tells the PEM label of a private key in DER, or "".
func keyLabel(b []byte) string {
	var all []asn1.RawValue
	if rest, err := asn1.Unmarshal(b, &all); err != nil || len(rest) > 0 {
		return ""
	}
	tags := make([]int, len(all))
	for i, field := range all {
		tags[i] = field.Tag
	}
	for _, l := range labels {
		if len(tags) >= len(l.fields) && slices.Equal(tags[:len(l.fields)], l.fields) {
			return l.label
		}
	}
	return ""
}

// The algorithms of keys on a curve (RFC 5480 §2.1.1), of RSA (RFC 8017), and Ed25519,
// which is read, and refused elsewhere where it can't be used.
var (
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// named is the object identifier in words.
func named(oid asn1.ObjectIdentifier, kind string) string {
	return "the " + kind + " " + cmp.Or(pubkey.Unsupported[oid.String()], oid.String())
}

// algorithmFault says what about the algorithm of a key can't be used; nil where it
// isn't that. convert makes a key with a named curve.
func algorithmFault(a pkix.AlgorithmIdentifier, convert string) error {
	switch {
	case a.Algorithm.Equal(oidRSA), a.Algorithm.Equal(oidEd25519):
		return nil
	case a.Algorithm.Equal(oidEC):
		return curveFault(a.Parameters.FullBytes, convert)
	}
	return fmt.Errorf("holds a key of %s, which isn't supported: %s", named(a.Algorithm, "algorithm"), pubkey.Accepted)
}

// curveFault does the same for ECParameters (RFC 5480 §2.1.1).
func curveFault(parameters []byte, convert string) error {
	var oid asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(parameters, &oid); err == nil {
		if _, known := pubkey.NamedCurve(oid); known {
			return nil
		}
		return fmt.Errorf("holds a key on %s, which isn't supported: %s", named(oid, "curve"), pubkey.Accepted)
	}
	var spelled struct { // ANSI X9.62: ECParameters, version 1
		Version int
		Field   struct {
			Type  asn1.ObjectIdentifier
			Prime *big.Int
		}
	}
	if _, err := asn1.Unmarshal(parameters, &spelled); err != nil {
		return nil //nolint:nilerr // it isn't the algorithm
	}
	for _, c := range pubkey.Curves {
		if c.Params().P.Cmp(spelled.Field.Prime) == 0 {
			return fmt.Errorf("spells out the parameters of the curve %s, where RFC 5480 §2.1.1 wants its name: %s", c.Params().Name, convert)
		}
	}
	return errors.New("spells out the parameters of a curve that isn't supported: " + pubkey.Accepted)
}

// keyAlgorithm is the algorithmFault of a private key.
func keyAlgorithm(block *pem.Block) error {
	const convert = "`openssl pkey -in FILE -ec_param_enc named_curve -out NEW.pem`"
	if block.Type == "EC PRIVATE KEY" {
		var key struct {
			Version    int
			Key        []byte
			Parameters asn1.RawValue `asn1:"tag:0"`
		}
		_, _ = asn1.Unmarshal(block.Bytes, &key) // what can't be read is of no curve
		return curveFault(key.Parameters.Bytes, convert)
	}
	var key struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
	}
	if _, err := asn1.Unmarshal(block.Bytes, &key); err != nil {
		return nil //nolint:nilerr // it isn't the algorithm
	}
	return algorithmFault(key.Algorithm, convert)
}

// The parts of PBES2 (RFC 8018 §A.4), and the ciphers that are decrypted, with the
// length of what they take at the beginning and the step of what they encrypt.
var (
	oidPBES2    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	keyDerivers = map[string]bool{"1.2.840.113549.1.5.12": true /* PBKDF2 */, "1.3.6.1.4.1.11591.4.11": true /* scrypt, RFC 7914 §7 */}
	keyCiphers  = map[string]struct{ iv, step int }{
		"1.2.840.113549.3.7":     {8, 8},                                                                             // des-ede3-cbc
		"2.16.840.1.101.3.4.1.2": {16, 16}, "2.16.840.1.101.3.4.1.22": {16, 16}, "2.16.840.1.101.3.4.1.42": {16, 16}, // aes-cbc
		"2.16.840.1.101.3.4.1.6": {12, 1}, "2.16.840.1.101.3.4.1.26": {12, 1}, "2.16.840.1.101.3.4.1.46": {12, 1}, // aes-gcm
	}
)

// decrypt opens an encrypted PKCS #8 key. The library panics at some that are
// damaged, and calls every other fault a wrong password: both are seen before.
func decrypt(der, passphrase []byte) (any, error) {
	if err := encryptionFault(der); err != nil {
		return nil, err
	}
	key, err := pkcs8.ParsePKCS8PrivateKey(der, passphrase)
	if err != nil {
		return nil, fmt.Errorf("can't be decrypted: check the passphrase; if it is right, the key is of a kind that isn't supported (%s): %w", pubkey.Accepted, err)
	}
	return key, nil
}

// encryptionFault says what of an encrypted key's scheme isn't supported.
func encryptionFault(der []byte) error {
	const damaged = "is damaged: restore it from a copy: its encryption can't be read"
	unknown := func(what string, oid asn1.ObjectIdentifier) error {
		return fmt.Errorf("is encrypted with %s %s, which isn't supported: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW.pem`", what, oid)
	}
	var key struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	if _, err := asn1.Unmarshal(der, &key); err != nil {
		return errors.New(damaged)
	}
	if !key.Algorithm.Algorithm.Equal(oidPBES2) {
		return unknown("the scheme", key.Algorithm.Algorithm)
	}
	var scheme struct{ KDF, Cipher pkix.AlgorithmIdentifier }
	if _, err := asn1.Unmarshal(key.Algorithm.Parameters.FullBytes, &scheme); err != nil {
		return errors.New(damaged)
	}
	var iv []byte
	_, err := asn1.Unmarshal(scheme.Cipher.Parameters.FullBytes, &iv)
	shape, ok := keyCiphers[scheme.Cipher.Algorithm.String()]
	switch {
	case !keyDerivers[scheme.KDF.Algorithm.String()]:
		return unknown("the key derivation", scheme.KDF.Algorithm)
	case !ok:
		return unknown("the cipher", scheme.Cipher.Algorithm)
	case err != nil || len(iv) != shape.iv || len(key.Data) == 0 || len(key.Data)%shape.step != 0:
		return errors.New(damaged)
	}
	return nil
}

// PublicKey reads the one public key of a file, as a SubjectPublicKeyInfo in DER.
func PublicKey(b []byte) (spki []byte, key crypto.PublicKey, err error) {
	if spki, err = only(b, "a public key (SubjectPublicKeyInfo)", "PUBLIC KEY"); err != nil {
		return nil, nil, err
	}
	if key, err = x509.ParsePKIXPublicKey(spki); err == nil {
		return spki, key, nil
	}
	var info struct{ Algorithm pkix.AlgorithmIdentifier }
	if _, unread := asn1.Unmarshal(spki, &info); unread == nil {
		if known := algorithmFault(info.Algorithm, "`openssl pkey -pubin -in FILE -ec_param_enc named_curve -pubout -out NEW.pem`"); known != nil {
			return nil, nil, known
		}
	}
	return nil, nil, fmt.Errorf("holds no public key that can be read: restore it from a copy: %w", err)
}
