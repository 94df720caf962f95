package gcp

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// claims knows resource names without a URI scheme.
func claims(ref string) bool {
	return strings.HasPrefix(ref, "projects/") || strings.HasPrefix(ref, fullName)
}

// fullName is what begins a full resource name: AIP-122.
const fullName = "//cloudkms.googleapis.com/"

// reference is a key, or one version of it, by its resource name.
type reference struct {
	ring    string // the resource name of its key ring
	key     string
	version string // "" is the newest that is enabled, at Open
}

const form = "write gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K, with /cryptoKeyVersions/N for another than the newest"

// parts are the collections of a resource name in their order, and the form
// of the names in them.
var parts = []struct {
	collection string
	name       *regexp.Regexp
}{
	{"projects", regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$|^[0-9]{1,20}$`)}, // an ID, of a domain or not, or a number
	{"locations", regexp.MustCompile(`^[a-z0-9-]{1,40}$`)},
	{"keyRings", regexp.MustCompile(`^[a-zA-Z0-9_-]{1,63}$`)},
	{"cryptoKeys", regexp.MustCompile(`^[a-zA-Z0-9_-]{1,63}$`)},
	{"cryptoKeyVersions", regexp.MustCompile(`^[1-9][0-9]{0,9}$`)},
}

// parse reads a resource name as the console copies it, bare, as a full
// resource name, or after `gcpkms:` or `gcpkms://`.
func parse(ref string, _ kms.Access) (kms.Reference, error) {
	name := strings.TrimPrefix(strings.TrimPrefix(ref, fullName), "//")
	if name == "" {
		return nil, errors.New("names no key: " + form)
	}
	words := strings.Split(strings.TrimPrefix(name, "/"), "/")
	if len(words) != 8 && len(words) != 10 {
		return nil, errors.New("isn't the resource name of a key: " + form)
	}
	for i := 0; i < len(words); i += 2 {
		part := parts[i/2]
		if words[i] != part.collection && (part.collection != "cryptoKeyVersions" || words[i] != "versions") { // gcloud's flag, and sigstore's form
			return nil, fmt.Errorf("has %q where %s is expected: %s", kms.Abridged(words[i]), part.collection, form)
		}
		if !part.name.MatchString(words[i+1]) {
			return nil, fmt.Errorf("%q isn't a name in %s", kms.Abridged(words[i+1]), part.collection)
		}
	}
	r := &reference{ring: strings.Join(words[:6], "/"), key: words[7]}
	if len(words) == 10 {
		r.version = words[9]
	}
	return r, nil
}

func (r *reference) String() string { return "gcpkms://" + r.resource() }

// keyName and resource are resource names, as the API takes them.
func (r *reference) keyName() string { return r.ring + "/cryptoKeys/" + r.key }

func (r *reference) resource() string {
	if r.version == "" {
		return r.keyName()
	}
	return r.keyName() + "/cryptoKeyVersions/" + r.version
}
