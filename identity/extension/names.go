package extension

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"net/netip"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// SAN is one entry of the subject alternative name.
type SAN struct {
	Type  string `json:"type"` // email, uri, username, dns, ip, other name, …
	Value string `json:"value"`
}

// oidSAN is the subjectAltName extension (RFC 5280 §4.2.1.6).
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// The tags of a GeneralName (RFC 5280 §4.2.1.6).
const (
	tagOtherName     = 0
	tagEmail         = 1
	tagDNS           = 2
	tagDirectoryName = 4
	tagURI           = 6
	tagIP            = 7
	tagRegisteredID  = 8
)

// SANs reads the bytes of the SAN: crypto/x509 parses URIs, and would show
// something other than what a verifier compares.
func SANs(cert *x509.Certificate) []SAN {
	list := []SAN{}
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		input, entries := cryptobyte.String(e.Value), cryptobyte.String(nil)
		if !input.ReadASN1(&entries, cbasn1.SEQUENCE) || !input.Empty() {
			return append(list, SAN{"malformed", hex.EncodeToString(e.Value)})
		}
		for !entries.Empty() {
			rest := entries
			var value cryptobyte.String
			var tag cbasn1.Tag
			if !entries.ReadAnyASN1(&value, &tag) {
				list = append(list, SAN{"malformed", hex.EncodeToString(rest)})
				break
			}
			list = append(list, san(tag, value))
		}
	}
	return list
}

func san(tag cbasn1.Tag, value cryptobyte.String) SAN {
	const class, constructed = 0xc0, 0x20 // X.690 §8.1.2
	if tag&class != 0x80 {
		return SAN{"malformed", hex.EncodeToString(value)}
	}
	switch number := tag &^ (class | constructed); number {
	case tagOtherName:
		return otherName(value)
	case tagEmail:
		return SAN{"email", string(value)}
	case tagDNS:
		return SAN{"dns", string(value)}
	case tagURI:
		return SAN{"uri", string(value)}
	case tagIP:
		if ip, ok := netip.AddrFromSlice(value); ok {
			return SAN{"ip", ip.String()}
		}
		return SAN{"malformed ip", hex.EncodeToString(value)}
	case tagDirectoryName:
		return SAN{"directory name", hex.EncodeToString(value)}
	case tagRegisteredID:
		return SAN{"registered id", hex.EncodeToString(value)}
	default:
		return SAN{"unknown name", hex.EncodeToString(value)}
	}
}

// otherName reads a username: OID, then an explicit [0] with a UTF8String.
func otherName(value cryptobyte.String) SAN {
	whole := bytes.Clone(value)
	var oid asn1.ObjectIdentifier
	var explicit, text cryptobyte.String
	if value.ReadASN1ObjectIdentifier(&oid) && oid.Equal(OtherNameOID) &&
		value.ReadASN1(&explicit, cbasn1.Tag(0).Constructed().ContextSpecific()) && value.Empty() &&
		explicit.ReadASN1(&text, cbasn1.UTF8String) && explicit.Empty() {
		return SAN{"username", string(text)}
	}
	return SAN{"other name", hex.EncodeToString(whole)}
}
