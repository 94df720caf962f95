package kms

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// gcpBackend keeps keys in Google Cloud KMS or Cloud HSM.
var gcpBackend = &backend{
	name: "gcp", title: "Google Cloud KMS", schemes: []string{"gcpkms"},
	claims: func(ref string) bool {
		return strings.HasPrefix(ref, "projects/") || strings.HasPrefix(ref, gcpFullName)
	},
	parse:       parseGCP,
	credentials: []Credential{CredentialEnv, CredentialWorkload, CredentialManaged, CredentialCLI},
}

// gcpFullName is what begins a full resource name: AIP-122.
const gcpFullName = "//cloudkms.googleapis.com/"

// gcpReference is a key, or one version of it, by its resource name.
type gcpReference struct {
	project, location, ring, key string
	version                      string // "" is the newest that is enabled, at Open
}

const gcpForm = "write gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K, with /cryptoKeyVersions/N for another than the newest"

// gcpParts are the collections of a resource name in their order, and the form
// of the names in them.
var gcpParts = []struct {
	collection string
	form       *regexp.Regexp
}{
	{"projects", regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$|^[0-9]{1,20}$`)}, // an ID, of a domain or not, or a number
	{"locations", regexp.MustCompile(`^[a-z0-9-]{1,40}$`)},
	{"keyRings", regexp.MustCompile(`^[a-zA-Z0-9_-]{1,63}$`)},
	{"cryptoKeys", regexp.MustCompile(`^[a-zA-Z0-9_-]{1,63}$`)},
	{"cryptoKeyVersions", regexp.MustCompile(`^[1-9][0-9]{0,9}$`)},
}

// parseGCP reads a resource name as the console copies it, bare, as a full
// resource name, or after `gcpkms:` or `gcpkms://`.
func parseGCP(ref string, _ Access) (reference, error) {
	name := strings.TrimPrefix(strings.TrimPrefix(ref, gcpFullName), "//")
	if name == "" {
		return nil, errors.New("names no key: " + gcpForm)
	}
	words := strings.Split(strings.TrimPrefix(name, "/"), "/")
	if len(words) != 8 && len(words) != 10 {
		return nil, errors.New("isn't the resource name of a key: " + gcpForm)
	}
	var values [5]string
	for i := 0; i < len(words); i += 2 {
		part := gcpParts[i/2]
		if words[i] != part.collection && (part.collection != "cryptoKeyVersions" || words[i] != "versions") { // gcloud's flag, and sigstore's form
			return nil, fmt.Errorf("has %q where %s is expected: %s", abridged(words[i]), part.collection, gcpForm)
		}
		if !part.form.MatchString(words[i+1]) {
			return nil, fmt.Errorf("%q isn't a name in %s", abridged(words[i+1]), part.collection)
		}
		values[i/2] = words[i+1]
	}
	return &gcpReference{values[0], values[1], values[2], values[3], values[4]}, nil
}

func (r *gcpReference) String() string { return "gcpkms://" + r.resource() }

// ringName, keyName and resource are resource names, as the API takes them.
func (r *gcpReference) ringName() string {
	return "projects/" + r.project + "/locations/" + r.location + "/keyRings/" + r.ring
}

func (r *gcpReference) keyName() string { return r.ringName() + "/cryptoKeys/" + r.key }

func (r *gcpReference) resource() string {
	if r.version == "" {
		return r.keyName()
	}
	return r.keyName() + "/cryptoKeyVersions/" + r.version
}
