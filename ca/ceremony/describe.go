package ceremony

import (
	"crypto/x509"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// keyName is a certificate's kind of key in words.
func keyName(c *x509.Certificate) string {
	a, err := kms.AlgorithmOf(c.PublicKey)
	if err != nil {
		return err.Error()
	}
	return string(a)
}

func pathLength(c *x509.Certificate) string {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return "not a CA certificate"
	case c.MaxPathLen > 0 || c.MaxPathLenZero:
		return fmt.Sprint(c.MaxPathLen)
	default:
		return "unlimited"
	}
}

func keyUsages(u x509.KeyUsage) (words []string) {
	for bit := x509.KeyUsageDigitalSignature; bit <= x509.KeyUsageDecipherOnly; bit <<= 1 { // RFC 5280 §4.2.1.3
		if u&bit != 0 {
			words = append(words, bit.String())
		}
	}
	return words
}

func usages(c *x509.Certificate) (words []string) {
	for _, u := range c.ExtKeyUsage {
		words = append(words, u.String())
	}
	for _, id := range c.UnknownExtKeyUsage {
		words = append(words, id.String())
	}
	return words
}
