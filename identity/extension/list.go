package extension

import (
	"crypto/x509"
	"strings"
)

// Listed is one identity extension as it is shown.
type Listed struct {
	OID   string `json:"oid"`
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
	Fault string `json:"fault,omitempty"` // why it has no value
}

// Other is an extension of another arc.
type Other struct {
	OID      string `json:"oid"`
	Name     string `json:"name,omitempty"`
	Critical bool   `json:"critical"`
}

// List reads one extension at a time, so that a malformed one hides no other.
func List(cert *x509.Certificate) ([]Listed, []Other) {
	ours, others := []Listed{}, []Other{}
	for _, e := range cert.Extensions {
		oid := e.Id.String()
		if !strings.HasPrefix(oid, arc.String()+".") {
			others = append(others, Other{OID: oid, Name: Standard(oid), Critical: e.Critical})
			continue
		}
		x := Listed{OID: oid}
		switch r, value, err := one(e); {
		case err != nil:
			x.Fault = err.Error()
		case r == nil:
			x.Fault = "unknown"
		default:
			x.Name, x.Value = r.name, value
		}
		ours = append(ours, x)
	}
	return ours, others
}

// Usages are the key's usages, and what certificates call extended ones.
func Usages(cert *x509.Certificate) []string {
	return append(KeyUsages(cert), ExtKeyUsages(cert)...)
}

// KeyUsages are the key's usages.
func KeyUsages(cert *x509.Certificate) []string {
	list := []string{}
	for bit := x509.KeyUsageDigitalSignature; bit <= x509.KeyUsageDecipherOnly; bit <<= 1 { // RFC 5280 §4.2.1.3
		if cert.KeyUsage&bit != 0 {
			list = append(list, bit.String())
		}
	}
	return list
}

// ExtKeyUsages are the extended usages of the key.
func ExtKeyUsages(cert *x509.Certificate) (list []string) {
	for _, u := range cert.ExtKeyUsage {
		list = append(list, u.String())
	}
	for _, oid := range cert.UnknownExtKeyUsage {
		list = append(list, oid.String())
	}
	return list
}
