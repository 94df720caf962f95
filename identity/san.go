package identity

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// Limits of a mail address (RFC 5321 §4.5.3.1), and of
// the other names.
const (
	maxLocalPart = 64
	maxDomain    = 255
	maxUsername  = 255
)

// atext is what a mail address's local part may hold beside letters and digits (RFC 5322 §3.2.3).
const atext = "!#$%&'*+-/=?^_`{|}~"

// checkEmail accepts a Mailbox whose local part is a Dot-string (RFC 5321
// §4.1.2) and whose domain is of letters, digits and hyphens: what RFC 5280
// §4.2.1.6 lets an rfc822Name be, and no quoting that two readers may read in
// two ways.
func checkEmail(name, s string) error {
	local, domain, found := strings.Cut(s, "@")
	switch {
	case !found || local == "" || domain == "":
		return claim.Invalid(name, "is not a mail address: one local part, @ and a domain are expected")
	case len(local) > maxLocalPart || len(domain) > maxDomain:
		return claim.Invalid(name, "is longer than a mail address can be")
	}
	for _, atom := range strings.Split(local, ".") {
		if atom == "" || !all(atom, func(c byte) bool { return alphanumeric(c) || strings.IndexByte(atext, c) >= 0 }) {
			return claim.Invalid(name, "is not a mail address in plain form: letters, digits and "+atext+" are accepted before the @, with single dots between them")
		}
	}
	if !domainName(domain) {
		return claim.Invalid(name, "is not a mail address in plain form: after its one @ a domain of letters, digits and hyphens is expected")
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

var domainForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// domainName accepts letters, digits and inner hyphens in labels of at most 63
// bytes (RFC 1123 §2.1), in either case.
func domainName(s string) bool { return len(s) <= maxDomain && domainForm.MatchString(s) }

// checkUsername accepts printable ASCII without space, comma, `!` and `@`: what
// comes before the `!` can then be told from the domain, and from a mail address.
func checkUsername(name, s string) error {
	switch {
	case len(s) > maxUsername:
		return claim.Invalid(name, "is longer than a username can be")
	case strings.Contains(s, "@"):
		return claim.Invalid(name, "must be a username and looks like a mail address")
	case !all(s, func(c byte) bool { return c > ' ' && c < 0x7f && c != '!' && c != ',' }):
		return claim.Invalid(name, "must be a username of printable ASCII without space, comma and exclamation mark")
	}
	return nil
}

// checkURI accepts an absolute URI in the characters of RFC 3986 §2 that goes
// into a certificate byte for byte: with a host, without user, and without dot
// segments in any spelling.
func checkURI(name, s string) error {
	if plainURI(s) {
		return nil
	}
	if !all(s, uriByte) {
		return claim.Invalid(name, "gives a name with a character that a URI can't hold")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.String() != s:
		return claim.Invalid(name, "doesn't give a well-formed URI")
	case u.Scheme == "" || u.Host == "" || u.User != nil:
		return claim.Invalid(name, "must give a URI with a scheme and a host and without user")
	case dotSegments(u.EscapedPath()):
		return claim.Invalid(name, "gives a URI whose path has a segment `.` or `..`, or an encoded dot or slash")
	}
	return nil
}

// plainURI reports whether scheme, host and path are of characters that every reader
// takes as they are, as those of most names are: checkURI finds nothing wrong with it.
func plainURI(s string) bool {
	rest, ok := strings.CutPrefix(s, "https://")
	at := strings.IndexByte(rest, '/')
	return ok && at > 0 && all(rest[:at], func(c byte) bool { return alphanumeric(c) || c == '.' || c == '-' }) &&
		all(rest[at:], func(c byte) bool { return alphanumeric(c) || strings.IndexByte("-._/@", c) >= 0 }) && !dotSegments(rest[at:])
}

// encodeURI percent-encodes what a URI can't hold of a text that vendors' names
// were put into: as Fulcio does, whose names go through url.Parse and String. The
// text's own percent signs must not come from a name. Two texts never give one
// URI: what is encoded is decoded again and compared.
func encodeURI(name, raw string) (string, error) {
	if plainURI(raw) {
		return raw, nil
	}
	if all(raw, uriByte) && !strings.Contains(raw, "%") {
		return raw, checkURI(name, raw)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", claim.Invalid(name, "doesn't give a well-formed URI")
	}
	encoded := u.String()
	if err := checkURI(name, encoded); err != nil {
		return "", err
	}
	back, err := url.PathUnescape(encoded)
	if want, fault := url.PathUnescape(raw); err != nil || fault != nil || back != want {
		return "", claim.Invalid(name, "gives a URI that could be taken for another one")
	}
	return encoded, nil
}

// uriByte is the unreserved, reserved and percent characters of RFC 3986 §2.
func uriByte(c byte) bool {
	return alphanumeric(c) || strings.IndexByte("-._~:/?#[]@!$&'()*+,;=%", c) >= 0
}

var encodedDot = regexp.MustCompile(`(?i)%(2e|2f|5c)`) // a dot, a slash and a backslash

// dotSegments looks for the segments `.` and `..` in the path of a URL with a host, and
// for dots and slashes that are percent-encoded: some reader decodes them.
func dotSegments(path string) bool {
	return strings.Contains(path, "/./") || strings.Contains(path, "/../") || strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..") ||
		strings.Contains(path, "%") && encodedDot.MatchString(path)
}
