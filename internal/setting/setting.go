// Package setting holds what the configuration structs of all packages share:
// the list that collects every fault of a configuration with its path, and the
// value types that the loader treats specially.
package setting

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

// Faults collects what is wrong with a configuration. Each package's
// Config.Check adds to it and goes on, so that a person reads all faults at once.
type Faults struct {
	list   []string
	causes []error
}

// Add records one fault: path as a person would write it (`issuers[3].audience`),
// then what is wrong and what is expected. An empty path is left out. It never takes
// a secret's value.
func (f *Faults) Add(path, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if path != "" {
		text = path + ": " + text
	}
	f.list = append(f.list, text)
	for _, a := range args {
		if err, ok := a.(error); ok {
			f.causes = append(f.causes, err)
		}
	}
}

// When is Add where something is wrong.
func (f *Faults) When(wrong bool, path, format string, args ...any) {
	if wrong {
		f.Add(path, format, args...)
	}
}

// Section adds the faults of a section's fields.
type Section struct {
	Path string
	*Faults
}

// Wrong adds a fault at a field where something is wrong.
func (s Section) Wrong(wrong bool, field, format string, args ...any) {
	s.When(wrong, Join(s.Path, field), format, args...)
}

// AddAll takes over the faults of an error that another collection made.
func (f *Faults) AddAll(e *FaultError) {
	f.list, f.causes = append(f.list, e.Faults...), append(f.causes, e.causes...)
}

// Join names a field as a person would, `ctlog.mode`; an empty path is the document itself.
func Join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// Index names an element of a list: `issuers[3]`.
func Index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// Len is the number of faults so far.
func (f *Faults) Len() int { return len(f.list) }

// Err is nil without faults; otherwise a *FaultError with all of them.
func (f *Faults) Err() error {
	if len(f.list) == 0 {
		return nil
	}
	return &FaultError{Faults: f.list, causes: f.causes}
}

// FaultError is a configuration that can't be used: one line a fault, in the
// order of the document's sections.
type FaultError struct {
	Faults []string
	causes []error // the errors that faults were made of
}

// Unwrap gives the errors that faults were made of.
func (e *FaultError) Unwrap() []error { return e.causes }

func (e *FaultError) Error() string { return strings.Join(e.Faults, "\n") }

// Path is a file or folder. The loader makes a relative one relative to the
// folder of the configuration file, so what a package sees is absolute or
// relative to the working directory of the process.
type Path string

// Inside reports whether p is folder or below it, by name. An empty path is nowhere.
func (p Path) Inside(folder Path) bool {
	rel, err := filepath.Rel(filepath.Clean(string(folder)), filepath.Clean(string(p)))
	return p != "" && folder != "" && err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// KeyRef names a private key for ca/kms: `file:issuing.key.pem`, or the URI of
// a KMS key. The loader resolves the path of a relative `file:` reference as it does a [Path].
type KeyRef string

// Secret says where a secret is: in an environment variable or a file. It never
// holds the secret itself, so a configuration can be printed.
type Secret struct {
	// Env is the name of an environment variable that holds the secret; one final new line is cut off.
	Env string `yaml:"env,omitempty"`
	// File is a file that holds the secret; one final new line is cut off. Nobody but its owner and
	// the groups of the process may use it.
	File Path `yaml:"file,omitempty"`
}

// IsZero reports whether no secret is named.
func (s Secret) IsZero() bool { return s == Secret{} }

// Check adds a fault when both places are named.
func (s Secret) Check(path string, f *Faults) {
	f.When(s.Env != "" && s.File != "", path, "names both env and file; keep one")
}

// Read fetches the secret, without a final end of line, which editors and shells add. An
// empty secret is an error: a variable that is not set is more often a slip than a wish.
// The error names the place, never the value.
func (s Secret) Read() (b []byte, err error) {
	where := "environment variable " + s.Env
	switch {
	case s.Env != "":
		if b = []byte(os.Getenv(s.Env)); len(b) == 0 {
			return nil, fmt.Errorf("%s is not set or empty", where)
		}
	case s.File != "":
		where = "the secret file " + string(s.File)
		if b, err = secretfile.Read(string(s.File)); err != nil {
			return nil, fmt.Errorf("reading the secret: %w", err)
		}
	default:
		return nil, errors.New("no secret is named: set env or file")
	}
	if b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r")); len(b) == 0 {
		return nil, fmt.Errorf("%s holds nothing, or an empty line", where)
	}
	return b, nil
}

// CheckWindow adds a fault to a section whose end isn't after its start.
func CheckWindow(path string, start, end time.Time, f *Faults) {
	f.When(!end.IsZero() && !end.After(start), Join(path, "end"), "must be after start")
}

// CheckName wants a name for programs, and one that isn't in seen, where it goes.
func CheckName(path, name string, seen map[string]bool, f *Faults) {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	f.When(name == "" || len(name) > 64 || strings.Trim(name, letters) != "", Join(path, "name"), "%q isn't 1 to 64 lower-case letters, digits and -", name)
	f.When(seen[name], Join(path, "name"), "%s is the name of another one; each has its own", name)
	seen[name] = true
}

// CheckURL wants an absolute URL without query, user or fragment; https unless
// plain http is allowed or stays on this machine.
func CheckURL(path, raw string, allowHTTP bool, f *Faults) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		f.Add(path, "required")
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		f.Add(path, "%q is not an http or https URL", raw)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		f.Add(path, "can't have user, query or fragment")
	case u.Host != strings.ToLower(u.Host):
		f.Add(path, "must have its host in lower case")
	case u.Scheme == "http" && !allowHTTP && !loopback.Host(u.Hostname()):
		f.Add(path, "must be https")
	}
}

// List is what can be chosen from, in words.
func List[T ~string](all []T) string {
	words := make([]string, len(all))
	for i, one := range all {
		words[i] = string(one)
	}
	return strings.Join(words, ", ")
}
