package proof

import (
	"bytes"
	"cmp"
	"encoding/pem"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

var pemBegin = []byte("-----BEGIN ")

// pemSpace is what may surround a PEM block: final new lines, CRLF, blanks.
const pemSpace = " \t\r\n"

// The PEM labels of RFC 7468 §7 and §13 that are accepted.
const (
	labelPublicKey = "PUBLIC KEY"
	labelCSR       = "CERTIFICATE REQUEST"
	labelNewCSR    = "NEW CERTIFICATE REQUEST" // what older tools write; RFC 7468 §7 lets parsers read it
)

// notKeys says of other PEM types what was sent in a public key's place.
var notKeys = map[string]string{
	"CERTIFICATE":    isCertificate,
	labelCSR:         isRequest,
	labelNewCSR:      isRequest,
	"RSA PUBLIC KEY": "this is a PKCS#1 public key: send a SubjectPublicKeyInfo (PEM type PUBLIC KEY; openssl rsa -RSAPublicKey_in -pubout makes one)",
}

const (
	isCertificate = "this is a certificate, not a public key: send its public key alone"
	isRequest     = "this is a certificate request, not a public key: send it as certificateSigningRequest"
)

// decodeKey takes the PEM off a public key. What has no PEM is returned as it
// is, to be read as DER.
func decodeKey(in []byte) ([]byte, error) {
	if len(in) == 0 {
		return nil, fault.New(fault.KeyMalformed, "the public key is missing: send it as PEM or DER SubjectPublicKeyInfo")
	}
	if !bytes.Contains(in, pemBegin) {
		return in, nil
	}
	block, err := onlyBlock(in, fault.KeyMalformed, labelPublicKey, "text stands before the PEM block of the public key: send the block alone")
	switch {
	case err != nil:
		return nil, err
	case block.Type != labelPublicKey:
		return nil, fault.New(fault.KeyMalformed, "%s", cmp.Or(notKeys[block.Type], "the PEM type of the public key is wrong: expected PUBLIC KEY"))
	}
	return block.Bytes, nil
}

// decodeCSR takes the PEM off a certificate request.
func decodeCSR(in []byte) ([]byte, error) {
	if len(in) == 0 {
		return nil, fault.New(fault.CSRMalformed, "the certificate request is missing: send one in PEM")
	}
	block, err := onlyBlock(in, fault.CSRMalformed, labelCSR, "the certificate request is not PEM: expected one block that starts with -----BEGIN "+labelCSR+"-----")
	switch {
	case err != nil:
		return nil, err
	case block.Type != labelCSR && block.Type != labelNewCSR:
		return nil, fault.New(fault.CSRMalformed, "the PEM type of the certificate request is wrong: expected %s", labelCSR)
	}
	return block.Bytes, nil
}

// onlyBlock decodes one PEM block, and refuses anything beside it; before says what
// is wrong where it isn't the first thing. pem.Decode alone would skip a broken first
// block and return a second one, so blocks are counted before it is asked.
func onlyBlock(in []byte, reason fault.Reason, label, before string) (*pem.Block, error) {
	text := bytes.TrimLeft(in, pemSpace)
	switch {
	case hasPrivatePEM(in):
		return nil, errPrivateKey(reason)
	case !bytes.HasPrefix(text, pemBegin):
		return nil, fault.New(reason, "%s", before)
	case bytes.Count(text, pemBegin) != 1:
		return nil, fault.New(reason, "more than one PEM block was sent: send one %s", label)
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fault.New(reason, "the PEM block can't be decoded: expected one complete %s", label)
	case len(block.Headers) != 0:
		return nil, fault.New(reason, "the PEM block has headers: expected a plain %s", label) // RFC 7468 §2
	case len(bytes.Trim(rest, pemSpace)) != 0:
		return nil, fault.New(reason, "text follows the PEM block: send one %s alone", label)
	}
	return block, nil
}

// hasPrivatePEM reports whether any PEM block in the input is a private key of
// any format: PKCS#8, PKCS#1, SEC 1, OpenSSH, encrypted or not.
func hasPrivatePEM(in []byte) bool {
	for line := range bytes.Lines(in) {
		if bytes.Contains(line, pemBegin) && bytes.Contains(line, []byte("PRIVATE KEY")) {
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
