package pemfile

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/youmark/pkcs8"
	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
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

// keyLabel tells the PEM label of a private key in DER by its first fields.
func keyLabel(b []byte) string {
	var fields cryptobyte.String
	input := cryptobyte.String(b)
	if !input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !input.Empty() {
		return ""
	}
	if !fields.PeekASN1Tag(cryptobyteasn1.INTEGER) {
		var algorithm cryptobyte.String
		if fields.ReadASN1(&algorithm, cryptobyteasn1.SEQUENCE) && fields.PeekASN1Tag(cryptobyteasn1.OCTET_STRING) {
			return "ENCRYPTED PRIVATE KEY"
		}
		return ""
	}
	fields.SkipASN1(cryptobyteasn1.INTEGER)
	switch {
	case fields.PeekASN1Tag(cryptobyteasn1.OCTET_STRING):
		return "EC PRIVATE KEY" // RFC 5915 §3
	case fields.PeekASN1Tag(cryptobyteasn1.INTEGER):
		return "RSA PRIVATE KEY" // RFC 8017 §A.1.2
	case fields.SkipASN1(cryptobyteasn1.SEQUENCE) && fields.PeekASN1Tag(cryptobyteasn1.OCTET_STRING):
		return "PRIVATE KEY"
	}
	return ""
}

// keyAlgorithm is the algorithmFault of a private key.
func keyAlgorithm(block *pem.Block) error {
	const convert = "`openssl pkey -in FILE -ec_param_enc named_curve -out NEW.pem`"
	var fields, algorithm cryptobyte.String
	input := cryptobyte.String(block.Bytes)
	if !input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !fields.SkipASN1(cryptobyteasn1.INTEGER) {
		return nil
	}
	if block.Type == "EC PRIVATE KEY" {
		if fields.SkipASN1(cryptobyteasn1.OCTET_STRING) && fields.ReadASN1(&algorithm, cryptobyteasn1.Tag(0).ContextSpecific().Constructed()) {
			return curveFault(algorithm, convert)
		}
		return nil
	}
	if !fields.ReadASN1(&algorithm, cryptobyteasn1.SEQUENCE) {
		return nil
	}
	return algorithmFault(algorithm, convert)
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
		return nil, fmt.Errorf("can't be decrypted: check the passphrase; if it is right, the key is of a kind that isn't supported (%s): %w", accepted, err)
	}
	return key, nil
}

// encryptionFault says what of an encrypted key's scheme isn't supported.
func encryptionFault(der []byte) error {
	const damaged = "is damaged: restore it from a copy: its encryption can't be read"
	unknown := func(what string, oid asn1.ObjectIdentifier) error {
		return fmt.Errorf("is encrypted with %s %s, which isn't supported: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW.pem`", what, oid)
	}
	var outer, algorithm, parameters, kdf, cipher, data, iv cryptobyte.String
	var scheme, derive, encrypt asn1.ObjectIdentifier
	input := cryptobyte.String(der)
	if !input.ReadASN1(&outer, cryptobyteasn1.SEQUENCE) || !outer.ReadASN1(&algorithm, cryptobyteasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&scheme) || !outer.ReadASN1(&data, cryptobyteasn1.OCTET_STRING) {
		return errors.New(damaged)
	}
	if !scheme.Equal(oidPBES2) {
		return unknown("the scheme", scheme)
	}
	if !algorithm.ReadASN1(&parameters, cryptobyteasn1.SEQUENCE) || !parameters.ReadASN1(&kdf, cryptobyteasn1.SEQUENCE) ||
		!kdf.ReadASN1ObjectIdentifier(&derive) || !parameters.ReadASN1(&cipher, cryptobyteasn1.SEQUENCE) || !cipher.ReadASN1ObjectIdentifier(&encrypt) {
		return errors.New(damaged)
	}
	shape, ok := keyCiphers[encrypt.String()]
	switch {
	case !keyDerivers[derive.String()]:
		return unknown("the key derivation", derive)
	case !ok:
		return unknown("the cipher", encrypt)
	case !cipher.ReadASN1(&iv, cryptobyteasn1.OCTET_STRING) || len(iv) != shape.iv || len(data) == 0 || len(data)%shape.step != 0:
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
	var fields, algorithm cryptobyte.String
	input := cryptobyte.String(spki)
	if input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) && fields.ReadASN1(&algorithm, cryptobyteasn1.SEQUENCE) {
		if known := algorithmFault(algorithm, "`openssl pkey -pubin -in FILE -ec_param_enc named_curve -pubout -out NEW.pem`"); known != nil {
			return nil, nil, known
		}
	}
	return nil, nil, fmt.Errorf("holds no public key that can be read: restore it from a copy: %w", err)
}
