package pkcs11

import (
	"strings"
	"testing"
)

// TestPKCS11References: the canonical form of what p11tool and pkcs11-tool show,
// and the exact error for the rest.
func TestPKCS11References(t *testing.T) {
	t.Parallel()
	const module = "?module-path=/usr/lib/softhsm/libsofthsm2.so"
	for _, tt := range []struct{ in, want, err string }{
		{in: "token=ca;object=issuing" + module, want: "pkcs11:token=ca;object=issuing" + module},
		{in: "object=issuing;token=ca" + module, want: "pkcs11:token=ca;object=issuing" + module},
		{in: "id=%01%ff" + module, want: "pkcs11:id=%01%FF" + module},
		{in: "id=ab" + module, want: "pkcs11:id=%61%62" + module},
		{in: "model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=84bb2e2a0b0c1f5e;token=my%20ca;id=%A0;object=r%3Bo;type=private" + module,
			want: "pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=84bb2e2a0b0c1f5e;token=my%20ca;id=%A0;object=r%3Bo;type=private" + module},
		{in: "slot-id=7;object=a&b" + module, want: "pkcs11:slot-id=7;object=a&b" + module},
		{in: "object=k%c3%a9y" + module, want: "pkcs11:object=k%C3%A9y" + module},
		{in: "object=a?module-path=/x.so&x-init-reserved=configdir='sql:/db'%20flags=optimizeSpace",
			want: "pkcs11:object=a?module-path=/x.so&x-init-reserved=configdir='sql:/db'%20flags=optimizeSpace"},

		{in: "", err: "names no library: add ?module-path=/usr/lib/softhsm/libsofthsm2.so, or where yours is"},
		{in: "object=a", err: "names no library: add ?module-path=/usr/lib/softhsm/libsofthsm2.so, or where yours is"},
		{in: module, err: "names no key: add object=LABEL or id=%01, as p11tool --list-privkeys shows them"},
		{in: "token=ca" + module, err: "names no key: add object=LABEL or id=%01, as p11tool --list-privkeys shows them"},
		{in: "object=a?module-path=softhsm.so", err: `attribute module-path: "softhsm.so" isn't absolute`},
		{in: "object=a" + module + "&pin-value=1234", err: "attribute pin-value isn't taken: a PIN never belongs in a URI: set the passphrase (env or file)"},
		{in: "object=a" + module + "&pin-source=file:/pin", err: "attribute pin-source isn't taken: name the PIN's place with the passphrase (env or file)"},
		{in: "object=a?module-name=softhsm2", err: "attribute module-name isn't taken: write the library's whole path as module-path"},
		{in: "library-version=2.6;object=a" + module, err: "attribute library-version isn't taken: remove it: module-path names the library"},
		{in: "object=a;object=b" + module, err: "attribute object comes twice"},
		{in: "object=" + module, err: "attribute object is empty: leave it out"},
		{in: "object" + module, err: "an attribute isn't of the form name=value"},
		{in: "object=a;" + module, err: "an attribute isn't of the form name=value"},
		{in: "object=%zz" + module, err: "attribute object: a % isn't followed by two hexadecimal digits"},
		{in: "object=%ff" + module, err: "attribute object: isn't UTF-8 text"},
		{in: "object=%00" + module, err: "attribute object: isn't UTF-8 text"},
		{in: "type=public;object=a" + module, err: `attribute type: "public": a signing key is of type private`},
		{in: "slot-id=0x1;object=a" + module, err: `attribute slot-id: "0x1" isn't a slot's decimal number`},
		{in: "slot-id=01;object=a" + module, err: `attribute slot-id: "01" isn't a slot's decimal number`},
		{in: "slot-id=-1;object=a" + module, err: `attribute slot-id: "-1" isn't a slot's decimal number`},
		{in: "module-path=/x.so;object=a", err: "attribute module-path is in the wrong part: what names the key comes before the ?, module-path after it"},
		{in: "object=a" + module + "&token=ca", err: "attribute token is in the wrong part: what names the key comes before the ?, module-path after it"},
		{in: "colour=red;object=a" + module, err: `attribute "colour" is unknown`},
		{in: "Object=a" + module, err: `attribute "Object" is unknown`}, // RFC 7512 §2.3: names are case-sensitive
		{in: "object=a" + module + "#frag", err: "has a fragment (#), which RFC 7512 doesn't know: write it as %23"},
	} {
		u, err := parseURI(tt.in)
		switch {
		case tt.err != "" && (err == nil || err.Error() != tt.err):
			t.Errorf("%q: %v; want the error %q", tt.in, err, tt.err)
		case tt.err == "" && err != nil:
			t.Errorf("%q: %v", tt.in, err)
		case tt.err == "" && u.String() != tt.want:
			t.Errorf("%q: canonical %q; want %q", tt.in, u, tt.want)
		}
	}
}

// FuzzPKCS11URI: a URI is refused, or has a canonical form that means the same.
func FuzzPKCS11URI(f *testing.F) {
	for _, s := range []string{
		"token=ca;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so",
		"id=%01%ff;type=private?module-path=/x.so&x-init-reserved=configdir='sql:/db'",
		"object=%zz", "a=b;c=d?e=f&g=h", "slot-id=1;object=%25?module-path=/%3f",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURI(s)
		if err != nil {
			return
		}
		again, err := parseURI(strings.TrimPrefix(u.String(), "pkcs11:"))
		if err != nil {
			t.Fatalf("%q: canonical %q: %v", s, u, err)
		}
		if len(again.values) != len(u.values) {
			t.Fatalf("%q: %v; again: %v", s, u.values, again.values)
		}
		for name, value := range u.values {
			if again.values[name] != value {
				t.Fatalf("%q: %s is %q, then %q", s, name, value, again.values[name])
			}
		}
	})
}
