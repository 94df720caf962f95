package extension

import (
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

// OIDSAN is the subjectAltName extension (RFC 5280 §4.2.1.6).
var OIDSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// The tags of a GeneralName (RFC 5280 §4.2.1.6): those that are texts, and those that are shown in hex.
var (
	textNames  = map[cbasn1.Tag]string{1: "email", 2: "dns", 6: "uri"}
	otherNames = map[cbasn1.Tag]string{4: "directory name", 8: "registered id"}
)

const (
	tagOtherName = 0
	tagIP        = 7
)

// SANs reads the bytes of the SAN: crypto/x509 parses URIs, and would show
// something other than what a verifier compares.
func SANs(cert *x509.Certificate) []SAN {
	list := []SAN{}
	for _, e := range cert.Extensions {
		if !e.Id.Equal(OIDSAN) {
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
	kind := "unknown name"
	switch number := tag &^ (class | constructed); {
	case tag&class != 0x80:
		kind = "malformed"
	case number == tagOtherName:
		return otherName(value)
	case textNames[number] != "":
		return SAN{textNames[number], string(value)}
	case number == tagIP:
		if ip, ok := netip.AddrFromSlice(value); ok {
			return SAN{"ip", ip.String()}
		}
		kind = "malformed ip"
	case otherNames[number] != "":
		kind = otherNames[number]
	}
	return SAN{kind, hex.EncodeToString(value)}
}

// otherName reads a username: OID, then an explicit [0] with a UTF8String.
func otherName(value cryptobyte.String) SAN {
	whole := value
	var oid asn1.ObjectIdentifier
	var explicit, text cryptobyte.String
	if value.ReadASN1ObjectIdentifier(&oid) && oid.Equal(OtherNameOID) &&
		value.ReadASN1(&explicit, cbasn1.Tag(0).Constructed().ContextSpecific()) && value.Empty() &&
		explicit.ReadASN1(&text, cbasn1.UTF8String) && explicit.Empty() {
		return SAN{"username", string(text)}
	}
	return SAN{"other name", hex.EncodeToString(whole)}
}
