package azure

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// reference is a key in a vault or a managed HSM. Its String is the key
// identifier, as the portal shows it.
type reference struct {
	host          string // in lower case
	place         *place
	name, version string // the version is "" for the latest at Open
}

func (r reference) String() string {
	s := "https://" + r.host + "/keys/" + r.name
	if r.version != "" {
		s += "/" + r.version
	}
	return s
}

// place is one kind of host, by its suffix.
type place struct {
	suffix string
	cloud  string // as Access.Cloud names it
	scope  string // of the tokens that are for it
}

// places: Key Vault documentation, "Vault and Managed HSM DNS suffixes".
// A short name is of the first place of its cloud.
var places = []*place{
	{".vault.azure.net", "public", "https://vault.azure.net/.default"},
	{".managedhsm.azure.net", "public", "https://managedhsm.azure.net/.default"},
	{".vault.usgovcloudapi.net", "usgovernment", "https://vault.usgovcloudapi.net/.default"},
	{".managedhsm.usgovcloudapi.net", "usgovernment", "https://managedhsm.usgovcloudapi.net/.default"},
	{".vault.azure.cn", "china", "https://vault.azure.cn/.default"},
	{".managedhsm.azure.cn", "china", "https://managedhsm.azure.cn/.default"},
}

// The names of Azure: Key Vault documentation, "Objects, identifiers and versioning".
var (
	vaultForm     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{1,22})[a-z0-9]$`)
	hsmRegionForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,22}[a-z0-9](\.[a-z0-9]{3,30})?$`) // HSM regions have hosts of their own
	nameForm      = regexp.MustCompile(`^[a-zA-Z0-9-]{1,127}$`)
	versionForm   = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

const forms = "write the key identifier that the portal shows: https://VAULT.vault.azure.net/keys/NAME[/VERSION]"

// claims knows key identifiers without a scheme; what else begins with
// https:// is refused with Azure's words, since nobody else has such references.
func claims(ref string) bool {
	lower := strings.ToLower(ref)
	return strings.HasPrefix(lower, "https://") || strings.HasPrefix(lower, "http://") || strings.HasPrefix(lower, "/subscriptions/")
}

// parse reads a key identifier, bare or after azurekms:, and
// azurekms://VAULT[.SUFFIX]/[keys/]NAME[/VERSION].
func parse(ref string, a kms.Access) (kms.Reference, error) {
	lower := strings.ToLower(ref)
	full := strings.HasPrefix(lower, "https://")
	switch {
	case strings.HasPrefix(lower, "/subscriptions/"):
		return nil, errors.New("is a resource ID: " + forms)
	case strings.HasPrefix(lower, "http://"):
		return nil, errors.New("is plain http: " + forms)
	case full:
		ref = ref[len("https://"):]
	default:
		ref = strings.TrimPrefix(strings.TrimPrefix(ref, "//"), "/")
	}
	u, err := url.Parse("https://" + ref)
	switch {
	case err != nil || u.Host == "":
		return nil, errors.New("names no key: " + forms)
	case strings.ContainsAny(u.Host, "=;"):
		return nil, errors.New("has attributes: " + forms)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.RawPath != "":
		return nil, errors.New("has more than host and path: " + forms)
	case u.Port() != "" && u.Port() != "443":
		return nil, fmt.Errorf("has the port %s: leave it out, and set the endpoint apart", kms.Abridged(u.Port()))
	}
	var r reference
	if r.host, r.place, err = hostOf(strings.ToLower(u.Hostname()), a); err != nil {
		return nil, err
	}
	r.name, r.version, err = parsePath(u.Path, full)
	return r, err
}

// hostOf finds the cloud of a whole host name, and completes a short one.
func hostOf(host string, a kms.Access) (string, *place, error) {
	first := slices.IndexFunc(places, func(p *place) bool { return p.cloud == a.Cloud })
	switch short := !strings.Contains(host, "."); {
	case a.Cloud != "" && first < 0:
		return "", nil, fmt.Errorf("cloud %q is unknown: one of public, usgovernment, china", kms.Abridged(a.Cloud))
	case short && first < 0:
		return "", nil, fmt.Errorf("%q is a short name: write %s%s, or set the cloud", kms.Abridged(host), kms.Abridged(host), places[0].suffix)
	case short:
		host += places[first].suffix
	}
	for _, place := range places {
		vault, ok := strings.CutSuffix(host, place.suffix)
		switch {
		case !ok:
		case !vaultForm.MatchString(vault) && (!strings.HasPrefix(place.suffix, ".managedhsm") || !hsmRegionForm.MatchString(vault)):
			return "", nil, fmt.Errorf("%q isn't a vault's name: 3 to 24 letters, digits and '-'", kms.Abridged(vault))
		case a.Cloud != "" && a.Cloud != place.cloud:
			return "", nil, fmt.Errorf("%s is in the cloud %s, but the cloud is set to %s: remove it", host, place.cloud, a.Cloud)
		default:
			return host, place, nil
		}
	}
	return "", nil, fmt.Errorf("%s isn't a host of Azure Key Vault or Managed HSM: %s", kms.Abridged(host), forms)
}

// parsePath reads /keys/NAME[/VERSION]; unless full, `keys` may be missing. One
// slash at the end is forgiven.
func parsePath(path string, full bool) (name, version string, err error) {
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/"), "/")
	switch {
	case parts[0] == "keys" && len(parts) > 1:
		parts = parts[1:]
	case parts[0] == "secrets" || parts[0] == "certificates":
		return "", "", fmt.Errorf("names one of the %s: name the key of that name, under /keys/", parts[0])
	case full || parts[0] == "" || parts[0] == "keys":
		return "", "", errors.New("names no key: " + forms)
	}
	if name = parts[0]; len(parts) > 1 {
		version = parts[1]
	}
	switch {
	case len(parts) > 2:
		return "", "", errors.New("has more than a key and a version: " + forms)
	case !nameForm.MatchString(name):
		return "", "", fmt.Errorf("%q isn't a key's name: letters, digits and '-'", kms.Abridged(name))
	case len(parts) == 2 && !versionForm.MatchString(version):
		return "", "", fmt.Errorf("%q isn't a version: 32 hexadecimal digits are", kms.Abridged(version))
	}
	return name, version, nil
}
