// Package presets holds the rules from a CI vendor's claims to a certificate's
// name and extensions. The rules are data: each built-in preset is a YAML file
// in this folder, and adding a vendor is adding a file.
package presets

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// Preset is the rules of one CI vendor, as data.
//
// A template is text with names in braces: `{url}/{repository}`. A name is a
// constant, a variable or else a claim of the token; a name that is two of
// these is a fault, so a claim never overrides a constant. Every claim that a
// template names must be in the token and not be empty, except in extensions
// that are left out then.
type Preset struct {
	// Name is what an issuer's preset setting says; letters, digits and `-`.
	Name string `yaml:"name"`
	// Description says in a line which vendor this is.
	Description string `yaml:"description,omitempty"`
	// Issuers lists the vendor's public issuers, for people. It configures nothing.
	Issuers []string `yaml:"issuers,omitempty"`
	// Constants are fixed texts, such as the vendor's url. An issuer can replace
	// the value of each, and add none.
	Constants map[string]string `yaml:"constants,omitempty"`
	// WholeNumbers lists the claims that may be a JSON number as well as a
	// string; they are written in digits alone. Every other claim is a string.
	WholeNumbers []string `yaml:"whole_numbers,omitempty"`
	// Segments lists the claims that are one segment of a path: one with `/`, `?`,
	// `#`, `@` or a backslash in it is refused, and so are `.` and `..`.
	Segments []string `yaml:"segments,omitempty"`
	// Fixed gives the text that a claim must be wherever the token has it: for a
	// vendor whose tokens also say which host they come from.
	Fixed map[string]string `yaml:"fixed,omitempty"`
	// Booleans lists the claims that may be a JSON boolean, read as `true` or `false`.
	Booleans []string `yaml:"booleans,omitempty"`
	// Variables are texts that depend on a claim. The first case that holds
	// gives the value; where none does, the variable is missing as a claim can be.
	Variables map[string][]Case `yaml:"variables,omitempty"`
	// SAN is the template of the certificate's name, a URI. What a URI can't hold
	// is percent-encoded, so no claim in it may hold a `%`; a template of one claim
	// alone takes the URI that the claim is, byte for byte.
	SAN string `yaml:"san"`
	// SANPrefix, where set, is the template of what the name must begin with:
	// for a vendor whose claim writes the host itself.
	SANPrefix string `yaml:"san_prefix,omitempty"`
	// Extensions gives the template of each extension that is always written. Where
	// a template is a name alone, and what it names is empty or null, the extension
	// is left out.
	Extensions map[string]string `yaml:"extensions,omitempty"`
	// OptionalExtensions gives the templates of those left out when one of
	// their claims is missing or empty. A claim of a wrong type is refused all the same.
	OptionalExtensions map[string]string `yaml:"optional_extensions,omitempty"`
	// Claims lists the claims that the vendor is known to send, by their kind: text,
	// number, boolean, list or object. `mayfly check` holds conditions against it;
	// without it nothing is known.
	Claims map[string][]string `yaml:"claims,omitempty"`
}

// Case is one value that a variable may take.
type Case struct {
	// Claim is what the case looks at. Without it the case always holds, and is the last.
	Claim string `yaml:"claim,omitempty"`
	// Equals is what the claim must be; the claim must then be in the token.
	// Without it the case holds when the claim is there and not empty.
	Equals string `yaml:"equals,omitempty"`
	// Suffix is what the claim must end with; the claim must then be in the token.
	Suffix string `yaml:"suffix,omitempty"`
	// Value is the template of the variable; it names claims and constants.
	Value string `yaml:"value"`
}

// claimKinds are the keys of Preset.Claims.
var claimKinds = map[string]claim.Kind{"text": claim.String, "number": claim.Number, "boolean": claim.Bool, "list": claim.Array, "object": claim.Object}

// Known is the kind of each claim that the vendor is known to send, or nil where
// nothing is known of it.
func (p *Preset) Known() map[string]claim.Kind {
	if len(p.Claims) == 0 {
		return nil
	}
	known := map[string]claim.Kind{}
	for kind, names := range p.Claims {
		for _, name := range names {
			known[name] = claimKinds[kind]
		}
	}
	return known
}

//go:embed *.yaml
var files embed.FS

// Names lists the built-in presets in order.
func Names() []string {
	names, _ := fs.Glob(files, "*.yaml") // it fails for a malformed pattern alone
	for i, name := range names {
		names[i] = strings.TrimSuffix(name, ".yaml")
	}
	return names
}

// errUnknown is [Load]'s error for a name that no built-in preset has.
var errUnknown = errors.New("no built-in preset has this name")

// Load reads a built-in preset. The files are part of the program, and a test reads
// them strictly. The error is that the name is unknown, or wraps the fault of a file.
func Load(name string) (*Preset, error) {
	b, err := files.ReadFile(name + ".yaml")
	if err != nil {
		return nil, errUnknown
	}
	p := new(Preset)
	if err := yaml.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("preset %s: %w", name, err)
	}
	return p, nil
}
