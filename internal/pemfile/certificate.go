package pemfile

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"

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

// certificateAlgorithm is the algorithmFault of a certificate's key (RFC 5280 §4.1).
func certificateAlgorithm(der []byte) error {
	var c struct {
		TBS struct {
			Version                                      int `asn1:"optional,explicit,tag:0"`
			Serial, Signature, Issuer, Validity, Subject asn1.RawValue
			Key                                          struct{ Algorithm pkix.AlgorithmIdentifier }
		}
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		return nil //nolint:nilerr // it isn't the algorithm
	}
	return algorithmFault(c.TBS.Key.Algorithm, "have it issued again for a key with a named curve (`openssl pkey -in KEY -ec_param_enc named_curve -out NEW.pem`)")
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
		if set := fromPKCS7(block.Bytes); len(set) > 0 {
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
	if set := fromPKCS7(b); len(set) > 0 {
		return inOrder(set), nil
	}
	if bytes.HasPrefix(b, []byte{0x30, 0x80}) { // of a length that isn't stated
		return nil, errPKCS7
	}
	found, _ = elements(b) // isDER has seen them
	if _, err := x509.ParseCertificate(found[0]); err != nil && certificateAlgorithm(found[0]) == nil {
		return nil, unreadable(b, certificates)
	}
	return found, nil
}

var errPKCS7 = errors.New("is PKCS #7 without certificates that can be read: `openssl pkcs7 -in FILE -print_certs -out NEW.pem`, with -inform DER where it isn't PEM")

// oidSignedData is RFC 5652 §5.1.
var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// fromPKCS7 takes the certificates out of SignedData (RFC 5652 §5.1). Its signatures
// count for nothing: as files with certificates are used there are none.
func fromPKCS7(b []byte) [][]byte {
	var content struct {
		Kind   asn1.ObjectIdentifier
		Signed struct {
			Version             int
			Algorithms, Content asn1.RawValue
			Certificates        asn1.RawValue `asn1:"tag:0"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(b, &content); err != nil || !content.Kind.Equal(oidSignedData) {
		return nil
	}
	set, err := elements(content.Signed.Certificates.Bytes)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(set, func(der []byte) bool { return der[0] != sequence }) // others are attribute certificates
}

// inOrder puts a set of certificates into the order of a chain: each followed by
// its issuer. Where they aren't one chain they stay as they are.
func inOrder(set [][]byte) [][]byte {
	all, err := x509.ParseCertificates(bytes.Join(set, nil))
	if err != nil {
		return set
	}
	issuerOf := func(c *x509.Certificate) *x509.Certificate {
		for _, issuer := range all {
			if bytes.Equal(c.RawIssuer, issuer.RawSubject) && !bytes.Equal(c.RawSubject, issuer.RawSubject) {
				return issuer
			}
		}
		return nil
	}
	for _, first := range all {
		var chain []*x509.Certificate
		var ders [][]byte
		for c := first; c != nil && !slices.Contains(chain, c); c = issuerOf(c) {
			chain, ders = append(chain, c), append(ders, c.Raw)
		}
		if len(chain) == len(set) {
			return ders
		}
	}
	return set
}
