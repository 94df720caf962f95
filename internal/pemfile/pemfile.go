// Package pemfile reads certificates, keys and certificate requests as other tools
// write them: PEM (RFC 7468) with text around the blocks, bag attributes, a byte
// order mark, UTF-16 or any ends of line; DER; and the certificates of PKCS #7.
// It is the one reader of all that an operator hands over. What it can't read it
// names, with the command that converts it; damage is never passed over.
//
// Every error continues a sentence that begins with the name of the file, which
// FILE stands for in a command. None repeats what the file holds.
package pemfile

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	begin = "-----BEGIN "
	end   = "-----END "
)

// isPEM reports whether a text has a PEM block, or what is left of one.
func isPEM(text []byte) bool {
	return bytes.Contains(text, []byte(begin)) || bytes.Contains(text, []byte(end))
}

// plain is the text of a file with one way to end a line, and without a byte order
// mark and white space around a line. What is DER stays as it is.
func plain(b []byte) []byte {
	if isDER(b) {
		return b
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if len(b) < 2 {
			break
		}
		if first := order.Uint16(b); first == 0xfeff || first > 0 && first < 0x100 { // UTF-16, with or without a mark
			units := make([]uint16, len(b)/2)
			for i := range units {
				units[i] = order.Uint16(b[2*i:])
			}
			b = []byte(string(utf16.Decode(units)))
			break
		}
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
	// What `cat` makes of files without a final new line.
	b = bytes.ReplaceAll(b, []byte("-----"+begin), []byte("-----\n"+begin))
	lines := bytes.Split(b, []byte("\n"))
	for i := range lines {
		lines[i] = bytes.TrimSpace(lines[i])
	}
	return bytes.Join(lines, []byte("\n"))
}

// blocks takes every PEM block out of a text that has been made plain. The package
// encoding/pem would go on to the next block at one that is damaged.
func blocks(text []byte) ([]*pem.Block, error) {
	var all []*pem.Block
	for len(text) > 0 {
		at := bytes.Index(text, []byte(begin))
		if outside := text[:max(at, 0)]; at < 0 && bytes.Contains(text, []byte(end)) || bytes.Contains(outside, []byte(end)) {
			return nil, fmt.Errorf("has the end of a PEM block without its beginning after block %d: restore it from a copy", len(all))
		}
		if at < 0 {
			break
		}
		block, rest := pem.Decode(text[at:])
		if block == nil || bytes.Count(text[at:len(text)-len(rest)], []byte(begin)) != 1 {
			hint := ""
			if bytes.Contains(text[at:], []byte(`\n`)) {
				hint = "; its ends of line are written as \\n, which `printf '%b' \"$(cat FILE)\" > NEW.pem` mends"
			}
			return nil, fmt.Errorf("isn't whole PEM at block %d: restore it from a copy%s", len(all)+1, hint)
		}
		all, text = append(all, block), rest
	}
	return all, nil
}

// sequence begins every SEQUENCE in DER.
const sequence = 0x30

// elements are the values of ASN.1 that b has one after the other.
func elements(b []byte) (all [][]byte, err error) {
	for len(b) > 0 {
		var one asn1.RawValue
		if b, err = asn1.Unmarshal(b, &one); err != nil {
			return nil, err
		}
		all = append(all, one.FullBytes)
	}
	return all, nil
}

// isDER reports whether b is one value or several of ASN.1, each a SEQUENCE, or
// begins like one whose length isn't stated (BER).
func isDER(b []byte) bool {
	if bytes.HasPrefix(b, []byte{sequence, 0x80}) {
		return true
	}
	all, err := elements(b)
	return err == nil && len(all) > 0 && !slices.ContainsFunc(all, func(one []byte) bool { return one[0] != sequence })
}

// foreign are formats that are neither PEM nor what is wanted in DER, by how a file
// of them begins, and what makes PEM of them.
var foreign = []struct{ prefix, what string }{
	{"\xfe\xed\xfe\xed", "is a Java keystore: `keytool -importkeystore -srckeystore FILE -destkeystore NEW.p12 -deststoretype PKCS12`, and `openssl pkcs12 -in NEW.p12 -out NEW.pem`"},
	{"ssh-", "is a key in OpenSSH's format: `ssh-keygen -e -m PKCS8 -f FILE > NEW.pem` for a public one"},
	{"ecdsa-sha2-", "is a key in OpenSSH's format: `ssh-keygen -e -m PKCS8 -f FILE > NEW.pem` for a public one"},
	{"---- BEGIN SSH2 ", "is a key in SSH's format: `ssh-keygen -i -f FILE | ssh-keygen -e -m PKCS8 -f /dev/stdin > NEW.pem`"},
}

// unreadable says what b is, which is neither PEM nor what is wanted in DER.
func unreadable(b []byte, want string) error {
	text := plain(b)
	if len(bytes.TrimSpace(text)) == 0 {
		return fmt.Errorf("is empty: %s is expected", want)
	}
	for _, f := range foreign {
		if bytes.HasPrefix(text, []byte(f.prefix)) {
			return errors.New(f.what)
		}
	}
	if isPKCS12(b) {
		return errors.New("is PKCS #12 (.p12, .pfx): `openssl pkcs12 -in FILE -nokeys -out CERTIFICATES.pem` and " +
			"`openssl pkcs12 -in FILE -nocerts | openssl pkcs8 -topk8 -v2 aes-256-cbc -out KEY.pem`")
	}
	bare := bytes.ReplaceAll(text, []byte("\n"), nil)
	if der, err := base64.StdEncoding.DecodeString(string(bare)); err == nil && isDER(der) {
		return fmt.Errorf("is base64 without the lines of PEM: `base64 -d FILE > NEW.der`; %s is expected", want)
	}
	if isDER(b) {
		return fmt.Errorf("is DER, and not of %s", want)
	}
	return fmt.Errorf("holds no PEM block: %s is expected", want)
}

// isPKCS12 reports whether b begins as RFC 7292 §4 says: version 3, then a ContentInfo.
func isPKCS12(b []byte) bool {
	var pfx struct {
		Version int
		Content struct{ Type asn1.ObjectIdentifier }
	}
	_, err := asn1.Unmarshal(b, &pfx)
	return bytes.HasPrefix(b, []byte{sequence, 0x80, 0x02, 0x01, 0x03}) || err == nil && pfx.Version == 3
}

func isPrivate(label string) bool { return strings.HasSuffix(label, "PRIVATE KEY") }

// errPrivateKey is of a private key where none belongs.
var errPrivateKey = errors.New("holds a private key: keep keys in a file of their own, and treat this one as exposed if others could read it")

// maxOne is the largest file of one public key or request, in bytes, with the words
// that tools write before it.
const maxOne = 64 << 10

// only is the one thing of some kinds that a file holds, in DER: a block with one of
// the labels, or the whole file. More than one are an error, but the same twice isn't.
func only(b []byte, want string, labels ...string) ([]byte, error) {
	if len(b) > maxOne {
		return nil, fmt.Errorf("is larger than %d bytes: %s alone is expected", maxOne, want)
	}
	text := plain(b)
	if !isPEM(text) {
		if isDER(b) && !isPKCS12(b) {
			return b, nil
		}
		return nil, unreadable(b, want)
	}
	all, err := blocks(text)
	if err != nil {
		return nil, err
	}
	var found []byte
	for _, block := range all {
		switch {
		case isPrivate(block.Type):
			return nil, errPrivateKey
		case !slices.Contains(labels, block.Type):
			return nil, fmt.Errorf("holds a %q: %s is expected%s", block.Type, want, conversions[block.Type])
		case found != nil && !bytes.Equal(found, block.Bytes):
			return nil, fmt.Errorf("holds more than one PEM block: exactly one is expected, %s", want)
		}
		found = block.Bytes
	}
	return found, nil
}

// conversions make a public key of other blocks.
var conversions = map[string]string{
	"RSA PUBLIC KEY":      " (`openssl rsa -RSAPublicKey_in -in FILE -pubout -out NEW.pem`)",
	"CERTIFICATE":         " (`openssl x509 -in FILE -noout -pubkey > NEW.pem`)",
	"CERTIFICATE REQUEST": " (`openssl req -in FILE -noout -pubkey > NEW.pem`)",
}

// Request is the one certificate request (RFC 2986) of a file, in DER.
func Request(b []byte) ([]byte, error) {
	return only(b, "a certificate request", "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
}

// IsRequest reports whether the first PEM block of a file is a certificate request.
func IsRequest(b []byte) bool {
	_, first, _ := bytes.Cut(plain(b), []byte(begin))
	return bytes.HasPrefix(first, []byte("CERTIFICATE REQUEST-")) || bytes.HasPrefix(first, []byte("NEW CERTIFICATE REQUEST-"))
}
