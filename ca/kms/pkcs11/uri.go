// Package pkcs11 opens and makes keys in smart cards, HSMs and whatever else has a
// PKCS #11 module. It needs cgo and the build tag pkcs11: without them, references
// are read, and opening one says how to build Mayfly.
package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// Backend keeps keys on tokens. The PIN is the passphrase.
func Backend() *kms.Backend {
	return &kms.Backend{
		Name: "pkcs11", Title: "PKCS #11", URISchemes: []string{"pkcs11"}, Parse: parse,
		CannotSeal: "PKCS #11 can't seal here: name a key in AWS KMS, Azure, Google Cloud KMS or Vault, or let this key sign (mode direct)",
	}
}

func parse(rest string, _ kms.Access) (kms.Reference, error) {
	u, err := parseURI(rest)
	if err != nil {
		return nil, fmt.Errorf("PKCS #11 URI: %w", err)
	}
	return u, nil
}

// uri is an RFC 7512 URI of a private key and of the module that holds it.
// An empty attribute matches anything.
type uri struct {
	values map[string]string // decoded, by attribute name
}

// attribute is one that is known.
type attribute struct {
	name  string
	query bool
	form  string // of its value, a regular expression
	fault string // what another value is told
}

// attributes are all of them, in the order of the canonical form: RFC 7512 §2.3,
// path attributes first. What a library says of itself (library-*) says nothing
// about a key and isn't among them.
var attributes = []attribute{
	{"slot-id", false, `^(0|[1-9][0-9]{0,9})$`, "%q isn't a slot's decimal number"},
	{name: "slot-manufacturer"},
	{name: "slot-description"},
	{name: "model"},
	{name: "manufacturer"},
	{name: "serial"},
	{name: "token"},
	{name: attributeID}, // bytes
	{name: attributeObject},
	{"type", false, "^private$", "%q: a signing key is of type private"},
	{attributeModulePath, true, "^/", "%q isn't absolute"},
	// Not of RFC 7512: what p11-kit's configuration calls x-init-reserved, the
	// string that NSS wants in C_Initialize.
	{name: attributeReserved, query: true},
}

// The attributes that the backend reads by name.
const (
	attributeID         = "id"
	attributeObject     = "object"
	attributeSlotID     = "slot-id"
	attributeModulePath = "module-path"
	attributeReserved   = "x-init-reserved"
)

// refused are attributes of RFC 7512 that aren't taken, with the fix.
var refused = map[string]string{
	"pin-value":            "a PIN never belongs in a URI: set the passphrase (env or file)",
	"pin-source":           "name the PIN's place with the passphrase (env or file)",
	"module-name":          "write the library's whole path as module-path",
	"library-manufacturer": "remove it: module-path names the library",
	"library-description":  "remove it: module-path names the library",
	"library-version":      "remove it: module-path names the library",
}

// parseURI reads what follows `pkcs11:`. Errors never repeat a value that
// may be a PIN.
func parseURI(rest string) (*uri, error) {
	if strings.Contains(rest, "#") {
		return nil, errors.New("has a fragment (#), which RFC 7512 doesn't know: write it as %23")
	}
	u := &uri{values: make(map[string]string)}
	path, query, _ := strings.Cut(rest, "?")
	for _, part := range []struct {
		list, separator string
		query           bool
	}{{path, ";", false}, {query, "&", true}} {
		if part.list == "" {
			continue
		}
		for text := range strings.SplitSeq(part.list, part.separator) {
			if err := u.add(text, part.query); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case u.values[attributeModulePath] == "":
		return nil, errors.New("names no library: add ?module-path=/usr/lib/softhsm/libsofthsm2.so, or where yours is")
	case u.values[attributeID] == "" && u.values[attributeObject] == "":
		return nil, errors.New("names no key: add object=LABEL or id=%01, as p11tool --list-privkeys shows them")
	}
	return u, nil
}

// add takes one attribute of the path or of the query.
func (u *uri) add(text string, query bool) error {
	name, raw, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return errors.New("an attribute isn't of the form name=value")
	}
	if fix, ok := refused[name]; ok {
		return fmt.Errorf("attribute %s isn't taken: %s", name, fix)
	}
	i := slices.IndexFunc(attributes, func(a attribute) bool { return a.name == name })
	if i < 0 {
		return fmt.Errorf("attribute %q is unknown", kms.Abridged(name))
	}
	known := attributes[i]
	_, twice := u.values[name] // RFC 7512 §2.3
	value, err := url.PathUnescape(raw)
	switch {
	case known.query != query:
		return fmt.Errorf("attribute %s is in the wrong part: what names the key comes before the ?, module-path after it", name)
	case twice:
		return fmt.Errorf("attribute %s comes twice", name)
	case err != nil:
		return fmt.Errorf("attribute %s: a %% isn't followed by two hexadecimal digits", name)
	case value == "":
		return fmt.Errorf("attribute %s is empty: leave it out", name)
	case name != attributeID && (!utf8.ValidString(value) || strings.ContainsRune(value, 0)):
		return fmt.Errorf("attribute %s: isn't UTF-8 text", name)
	case known.form != "" && !regexp.MustCompile(known.form).MatchString(value):
		return fmt.Errorf("attribute %s: "+known.fault, name, kms.Abridged(value))
	}
	u.values[name] = value
	return nil
}

// String is the canonical form: the attributes in a fixed order, as few
// characters encoded as RFC 7512 §2.3 allows, and every byte of id encoded.
func (u *uri) String() string {
	var path, query []string
	for _, known := range attributes {
		value, ok := u.values[known.name]
		switch text := known.name + "=" + escape(value, known.name == attributeID, known.query); {
		case ok && known.query:
			query = append(query, text)
		case ok:
			path = append(path, text)
		}
	}
	return "pkcs11:" + strings.Join(path, ";") + "?" + strings.Join(query, "&") // which holds the library's path
}

// escape percent-encodes what an attribute may not hold as it is: RFC 7512
// §2.3, pk11-pchar and pk11-qchar.
func escape(value string, all, query bool) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	allowed := unreserved + ":[]@!$'()*+,=" + "&"
	if query {
		allowed = unreserved + ":[]@!$'()*+,=" + "/?|"
	}
	var b strings.Builder
	for _, c := range []byte(value) {
		if !all && strings.IndexByte(allowed, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
