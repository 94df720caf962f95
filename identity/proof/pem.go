package proof

import (
	"bytes"
	"encoding/pem"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

const (
	pemBegin = "-----BEGIN "
	// pemSpace is what may surround a PEM block: final new lines, CRLF, blanks.
	pemSpace = " \t\r\n"
)

// The PEM labels of RFC 7468 §7 and §13 that are accepted.
const (
	labelPublicKey = "PUBLIC KEY"
	labelCSR       = "CERTIFICATE REQUEST"
	labelNewCSR    = "NEW CERTIFICATE REQUEST" // what older tools write; RFC 7468 §7 lets parsers read it
)

// decodeKey takes the PEM off a public key. What has no PEM is returned as it
// is, to be read as DER.
func decodeKey(in []byte) ([]byte, error) {
	if len(in) == 0 {
		return nil, fault.New(fault.KeyMalformed, "the public key is missing: send it as PEM or DER SubjectPublicKeyInfo")
	}
	if hasPrivatePEM(in) {
		return nil, errPrivateKey(fault.KeyMalformed)
	}
	text := bytes.TrimLeft(in, pemSpace)
	if !bytes.HasPrefix(text, []byte(pemBegin)) {
		if bytes.Contains(in, []byte(pemBegin)) {
			return nil, fault.New(fault.KeyMalformed, "text stands before the PEM block of the public key: send the block alone")
		}
		return in, nil
	}
	block, err := onlyBlock(text, fault.KeyMalformed, labelPublicKey)
	if err != nil {
		return nil, err
	}
	switch block.Type {
	case labelPublicKey:
		return block.Bytes, nil
	case "CERTIFICATE":
		return nil, errCertificate()
	case labelCSR, labelNewCSR:
		return nil, fault.New(fault.KeyMalformed, "this is a certificate request, not a public key: send it as certificateSigningRequest")
	case "RSA PUBLIC KEY":
		return nil, fault.New(fault.KeyMalformed,
			"this is a PKCS#1 public key: send a SubjectPublicKeyInfo (PEM type PUBLIC KEY; openssl rsa -RSAPublicKey_in -pubout makes one)")
	default:
		return nil, fault.New(fault.KeyMalformed, "the PEM type of the public key is wrong: expected PUBLIC KEY")
	}
}

// decodeCSR takes the PEM off a certificate request.
func decodeCSR(in []byte) ([]byte, error) {
	if len(in) == 0 {
		return nil, fault.New(fault.CSRMalformed, "the certificate request is missing: send one in PEM")
	}
	if hasPrivatePEM(in) {
		return nil, errPrivateKey(fault.CSRMalformed)
	}
	text := bytes.TrimLeft(in, pemSpace)
	if !bytes.HasPrefix(text, []byte(pemBegin)) {
		return nil, fault.New(fault.CSRMalformed, "the certificate request is not PEM: expected one block that starts with -----BEGIN %s-----", labelCSR)
	}
	block, err := onlyBlock(text, fault.CSRMalformed, labelCSR)
	if err != nil {
		return nil, err
	}
	if block.Type != labelCSR && block.Type != labelNewCSR {
		return nil, fault.New(fault.CSRMalformed, "the PEM type of the certificate request is wrong: expected %s", labelCSR)
	}
	return block.Bytes, nil
}

// onlyBlock decodes text, which starts with a PEM block, and refuses anything
// beside that one block. pem.Decode alone would skip a broken first block and
// return a second one, so blocks are counted before it is asked.
func onlyBlock(text []byte, reason fault.Reason, label string) (*pem.Block, error) {
	if bytes.Count(text, []byte(pemBegin)) != 1 {
		return nil, fault.New(reason, "more than one PEM block was sent: send one %s", label)
	}
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, fault.New(reason, "the PEM block can't be decoded: expected one complete %s", label)
	}
	if len(block.Headers) != 0 {
		return nil, fault.New(reason, "the PEM block has headers: expected a plain %s", label) // RFC 7468 §2
	}
	if len(bytes.Trim(rest, pemSpace)) != 0 {
		return nil, fault.New(reason, "text follows the PEM block: send one %s alone", label)
	}
	return block, nil
}

// hasPrivatePEM reports whether any PEM block in the input is a private key of
// any format: PKCS#8, PKCS#1, SEC 1, OpenSSH, encrypted or not.
func hasPrivatePEM(in []byte) bool {
	private := []byte("PRIVATE KEY")
	if !bytes.Contains(in, private) {
		return false
	}
	for line := range bytes.Lines(in) {
		if bytes.Contains(line, []byte(pemBegin)) && bytes.Contains(line, private) {
			return true
		}
	}
	return false
}

// errPrivateKey warns a person who sent a private key. The advice matters: the
// key has left their machine.
func errPrivateKey(reason fault.Reason) *fault.Error {
	return fault.New(reason, "this is a private key; send only the public key, and stop using this private key: it has left your machine")
}

func errCertificate() *fault.Error {
	return fault.New(fault.KeyMalformed, "this is a certificate, not a public key: send its public key alone")
}
