package pemfile

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

const certificates = "a certificate (X.509, in PEM, DER or PKCS #7)"

// Certificates reads a file of certificates and nothing else. One that is there
// twice counts once. Those of PKCS #7, a set, come with each one's issuer after it,
// as far as they are a chain. There is at least one.
func Certificates(b []byte) ([]*x509.Certificate, error) {
	all, err := read(b, false)
	if err != nil {
		return nil, err
	}
	var distinct []*x509.Certificate
	for _, c := range all {
		if !slices.ContainsFunc(distinct, c.Equal) {
			distinct = append(distinct, c)
		}
	}
	return distinct, nil
}

// CertificatesAmong reads the certificates of a file as they come. It may hold other
// things too, such as their key.
func CertificatesAmong(b []byte) ([]*x509.Certificate, error) { return read(b, true) }

// PoolFile is [Pool] of the file at path; nil, which is the system's own, for no path.
// Its errors name the file.
func PoolFile(path setting.Path) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // tls.Config's own way to say "the system's"
	}
	b, err := os.ReadFile(string(path))
	if err != nil {
		return nil, err
	}
	pool, err := Pool(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pool, nil
}

// Pool reads a file of trusted certificates. Those that are whole and that Go can't
// read, of a curve that it doesn't know, say, are left out where there are others:
// bundles of whole systems have such, and nothing is trusted by leaving one out.
func Pool(b []byte) (*x509.CertPool, error) {
	ders, err := raw(b, false)
	if err != nil {
		return nil, err
	}
	pool, found := x509.NewCertPool(), false
	for i, der := range ders {
		c, parseErr := x509.ParseCertificate(der)
		switch {
		case parseErr == nil:
			pool.AddCert(c)
			found = true
		case !isDER(der):
			return nil, certificateFault(i, der, parseErr)
		default:
			err = errors.Join(err, certificateFault(i, der, parseErr))
		}
	}
	if !found {
		return nil, err
	}
	return pool, nil
}

func read(b []byte, among bool) ([]*x509.Certificate, error) {
	ders, err := raw(b, among)
	if err != nil {
		return nil, err
	}
	all := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if all[i], err = x509.ParseCertificate(der); err != nil {
			return nil, certificateFault(i, der, err)
		}
	}
	return all, nil
}

// certificateFault says why the certificate of an index can't be read.
func certificateFault(i int, der []byte, err error) error {
	if known := certificateAlgorithm(der); known != nil {
		return fmt.Errorf("certificate %d %w", i+1, known)
	}
	return fmt.Errorf("certificate %d can't be read: restore it from a copy, or have it issued again: %w", i+1, err)
}

// raw takes the certificates out of a file.
func raw(b []byte, among bool) ([][]byte, error) {
	text := plain(b)
	if !isPEM(text) {
		return rawDER(b)
	}
	all, err := blocks(text)
	if err != nil {
		return nil, err
	}
	var found [][]byte
	for _, block := range all {
		if found, err = fromBlock(found, block, among); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, errors.New("holds no certificate: " + certificates + " is expected")
	}
	return found, nil
}

// fromBlock adds what certificates a PEM block holds.
func fromBlock(found [][]byte, block *pem.Block, among bool) ([][]byte, error) {
	switch block.Type {
	case "CERTIFICATE", "X509 CERTIFICATE", "PKCS7", "CMS": // RFC 7468 §5.1, §8, §9; tools mix them up
		if set, ok := fromPKCS7(block.Bytes); ok {
			return append(found, inOrder(set)...), nil
		}
		if block.Type == "PKCS7" || block.Type == "CMS" {
			return nil, errPKCS7
		}
		return append(found, block.Bytes), nil
	case "TRUSTED CERTIFICATE":
		return nil, errors.New(`holds a "TRUSTED CERTIFICATE", which is OpenSSL's own: ` + "`openssl x509 -in FILE -out NEW.pem`")
	}
	switch {
	case among:
		return found, nil
	case isPrivate(block.Type):
		return nil, errPrivateKey
	default:
		return nil, fmt.Errorf("holds a %q: only certificates belong here", block.Type)
	}
}

// rawDER takes certificates out of DER: one after another, or of PKCS #7.
func rawDER(b []byte) (found [][]byte, err error) {
	if !isDER(b) || isPKCS12(b) {
		return nil, unreadable(b, certificates)
	}
	if set, ok := fromPKCS7(b); ok {
		if len(set) == 0 {
			return nil, errPKCS7
		}
		return inOrder(set), nil
	}
	if bytes.HasPrefix(b, []byte{0x30, 0x80}) { // of a length that isn't stated
		return nil, errPKCS7
	}
	rest := cryptobyte.String(b)
	for !rest.Empty() {
		var der cryptobyte.String
		rest.ReadASN1Element(&der, cryptobyteasn1.SEQUENCE) // isDER has seen it
		if _, err := x509.ParseCertificate(der); err != nil && certificateAlgorithm(der) == nil && len(found) == 0 {
			return nil, unreadable(b, certificates)
		}
		found = append(found, der)
	}
	return found, nil
}

var errPKCS7 = errors.New("is PKCS #7 without certificates that can be read: `openssl pkcs7 -in FILE -print_certs -out NEW.pem`, with -inform DER where it isn't PEM")

// oidSignedData is RFC 5652 §5.1.
var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// fromPKCS7 takes the certificates out of SignedData (RFC 5652 §5.1). Its signatures
// count for nothing: as files with certificates are used there are none.
func fromPKCS7(b []byte) (set [][]byte, ok bool) {
	var content, explicit, signed, list cryptobyte.String
	var kind asn1.ObjectIdentifier
	input := cryptobyte.String(b)
	context0 := cryptobyteasn1.Tag(0).ContextSpecific().Constructed()
	if !input.ReadASN1(&content, cryptobyteasn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidSignedData) ||
		!content.ReadASN1(&explicit, context0) || !explicit.ReadASN1(&signed, cryptobyteasn1.SEQUENCE) ||
		!signed.SkipASN1(cryptobyteasn1.INTEGER) || !signed.SkipASN1(cryptobyteasn1.SET) || !signed.SkipASN1(cryptobyteasn1.SEQUENCE) ||
		!signed.ReadASN1(&list, context0) {
		return nil, false
	}
	for !list.Empty() {
		var der cryptobyte.String
		var tag cryptobyteasn1.Tag
		if !list.ReadAnyASN1Element(&der, &tag) {
			return nil, false
		}
		if tag == cryptobyteasn1.SEQUENCE { // others are attribute certificates
			set = append(set, der)
		}
	}
	return set, len(set) > 0
}

// inOrder puts a set of certificates into the order of a chain: each followed by
// its issuer. Where they aren't one chain they stay as they are.
func inOrder(set [][]byte) [][]byte {
	parsed := make([]*x509.Certificate, len(set))
	for i, der := range set {
		var err error
		if parsed[i], err = x509.ParseCertificate(der); err != nil {
			return set
		}
	}
	issuerOf := func(i int) int {
		for j, c := range parsed {
			if j != i && bytes.Equal(parsed[i].RawIssuer, c.RawSubject) && !bytes.Equal(c.RawSubject, parsed[i].RawSubject) {
				return j
			}
		}
		return -1
	}
	issues := make([]bool, len(set))
	for i := range set {
		if j := issuerOf(i); j >= 0 {
			issues[j] = true
		}
	}
	for first := range set {
		var chain [][]byte
		for i := first; i >= 0 && !issues[first] && len(chain) < len(set); i = issuerOf(i) {
			chain = append(chain, set[i])
		}
		if len(chain) == len(set) {
			return chain
		}
	}
	return set
}
