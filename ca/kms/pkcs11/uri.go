// Package pkcs11 opens and makes keys in smart cards, HSMs and whatever else has a
// PKCS #11 module. It needs cgo and the build tag pkcs11: without them, references
// are read, and opening one says how to build Mayfly.
package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
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

// attributes are the attributes that are known, in the order of the
// canonical form: RFC 7512 §2.3, path attributes first. What a library says of
// itself (library-*) says nothing about a key and isn't among them.
var attributes = []struct {
	name  string
	query bool
	check func(value string) error
}{
	{"slot-id", false, checkSlotID},
	{"slot-manufacturer", false, checkText},
	{"slot-description", false, checkText},
	{"model", false, checkText},
	{"manufacturer", false, checkText},
	{"serial", false, checkText},
	{"token", false, checkText},
	{"id", false, nil}, // bytes
	{"object", false, checkText},
	{"type", false, checkPrivate},
	{"module-path", true, checkModulePath},
	// Not of RFC 7512: what p11-kit's configuration calls x-init-reserved, the
	// string that NSS wants in C_Initialize.
	{"x-init-reserved", true, checkText},
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
	if err := u.addAll(path, ";", false); err != nil {
		return nil, err
	}
	if err := u.addAll(query, "&", true); err != nil {
		return nil, err
	}
	switch {
	case u.values[attributeModulePath] == "":
		return nil, errors.New("names no library: add ?module-path=/usr/lib/softhsm/libsofthsm2.so, or where yours is")
	case u.values[attributeID] == "" && u.values[attributeObject] == "":
		return nil, errors.New("names no key: add object=LABEL or id=%01, as p11tool --list-privkeys shows them")
	}
	return u, nil
}

// addAll takes the attributes of the path or of the query.
func (u *uri) addAll(list, separator string, query bool) error {
	if list == "" {
		return nil
	}
	for attribute := range strings.SplitSeq(list, separator) {
		name, raw, ok := strings.Cut(attribute, "=")
		if !ok || name == "" {
			return errors.New("an attribute isn't of the form name=value")
		}
		if err := u.add(name, raw, query); err != nil {
			return err
		}
	}
	return nil
}

func (u *uri) add(name, raw string, query bool) error {
	if fix, ok := refused[name]; ok {
		return fmt.Errorf("attribute %s isn't taken: %s", name, fix)
	}
	for _, known := range attributes {
		if known.name != name {
			continue
		}
		if known.query != query {
			return fmt.Errorf("attribute %s is in the wrong part: what names the key comes before the ?, module-path after it", name)
		}
		if _, twice := u.values[name]; twice { // RFC 7512 §2.3
			return fmt.Errorf("attribute %s comes twice", name)
		}
		value, err := url.PathUnescape(raw)
		if err != nil {
			return fmt.Errorf("attribute %s: a %% isn't followed by two hexadecimal digits", name)
		}
		if value == "" {
			return fmt.Errorf("attribute %s is empty: leave it out", name)
		}
		if known.check != nil {
			if err := known.check(value); err != nil {
				return fmt.Errorf("attribute %s: %w", name, err)
			}
		}
		u.values[name] = value
		return nil
	}
	return fmt.Errorf("attribute %q is unknown", name)
}

func checkText(value string) error {
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
		return errors.New("isn't UTF-8 text")
	}
	return nil
}

func checkPrivate(value string) error {
	if value != "private" {
		return fmt.Errorf("%q: a signing key is of type private", value)
	}
	return nil
}

func checkSlotID(value string) error {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != value {
		return fmt.Errorf("%q isn't a slot's decimal number", value)
	}
	return nil
}

func checkModulePath(value string) error {
	if err := checkText(value); err != nil {
		return err
	}
	if !filepath.IsAbs(value) {
		return fmt.Errorf("%q isn't absolute", value)
	}
	return nil
}

// String is the canonical form: the attributes in a fixed order, as few
// characters encoded as RFC 7512 §2.3 allows, and every byte of id encoded.
func (u *uri) String() string {
	var b strings.Builder
	b.WriteString("pkcs11:")
	inPath, inQuery := 0, 0
	for _, known := range attributes {
		value, ok := u.values[known.name]
		if !ok {
			continue
		}
		switch {
		case known.query && inQuery == 0:
			b.WriteByte('?')
		case known.query:
			b.WriteByte('&')
		case inPath > 0:
			b.WriteByte(';')
		}
		if known.query {
			inQuery++
		} else {
			inPath++
		}
		b.WriteString(known.name + "=" + escape(value, known.name == attributeID, known.query))
	}
	return b.String()
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
