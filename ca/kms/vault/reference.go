package vault

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// reference is a key of a transit engine.
type reference struct {
	mount, name string
	version     int // 0 is the latest at Open
}

// The names that Vault takes: framework.GenericNameRegex for keys, and path
// segments of the same letters for mounts.
var (
	nameForm  = regexp.MustCompile(`^\w([\w.-]*\w)?$`)
	mountForm = regexp.MustCompile(`^\w([\w.-]*\w)?(/\w([\w.-]*\w)?)*$`)
)

const form = "write hashivault://MOUNT/keys/NAME, with ?version=N for another than the latest"

// parse reads `//MOUNT/keys/NAME[?version=N]`; `//NAME` alone is a key of
// the mount `transit`, as Vault's own default is.
func parse(rest string, _ kms.Access) (kms.Reference, error) {
	path, query, asked := strings.Cut(rest, "?")
	path, ok := strings.CutPrefix(path, "//")
	if !ok || path == "" {
		return nil, errors.New("names no key: " + form)
	}
	r := &reference{mount: "transit", name: path}
	if i := strings.LastIndex(path, "/keys/"); i >= 0 {
		r.mount, r.name = path[:i], path[i+len("/keys/"):]
	} else if strings.Contains(path, "/") {
		return nil, errors.New("has no /keys/ between mount and name: " + form)
	}
	switch {
	case !mountForm.MatchString(r.mount):
		return nil, fmt.Errorf("%q isn't the path of a mount: %s", kms.Abridged(r.mount), form)
	case !nameForm.MatchString(r.name):
		return nil, fmt.Errorf("%q isn't a key's name: letters, digits, _ . and - between them", kms.Abridged(r.name))
	case !asked:
		return r, nil
	}
	number, ok := strings.CutPrefix(query, "version=")
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil || n < 1 || strconv.FormatInt(n, 10) != number {
		return nil, fmt.Errorf("%q isn't version=N, N from 1", kms.Abridged(query))
	}
	r.version = int(n)
	return r, nil
}

func (r *reference) String() string {
	s := "hashivault://" + r.mount + "/keys/" + r.name
	if r.version > 0 {
		s += "?version=" + strconv.Itoa(r.version)
	}
	return s
}

// path is where an operation on the key is.
func (r *reference) path(operation string) string { return r.mount + "/" + operation + "/" + r.name }
