package kms

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Credential names where the right to use a key comes from. Only the one that
// is named is looked at.
type Credential string

// The credentials. Not every backend has each.
const (
	CredentialEnv      Credential = "env"              // environment variables of the vendor's own names
	CredentialWorkload Credential = "workload"         // a token that the platform mounts: Kubernetes, ECS
	CredentialManaged  Credential = "managed-identity" // the machine's, from the cloud's metadata address
	CredentialProfile  Credential = "profile"          // a profile in the vendor's configuration file
	CredentialCLI      Credential = "cli"              // what the vendor's command line is logged in as
	CredentialFile     Credential = "file"             // a token in a file that something else keeps fresh, such as Vault Agent
	CredentialAuto     Credential = "auto"             // the first of the others that is set up
)

// knownCredentials are all of them, in the order that errors list them.
var knownCredentials = []Credential{CredentialEnv, CredentialWorkload, CredentialManaged, CredentialProfile, CredentialCLI, CredentialFile, CredentialAuto}

// Access says how a key is reached, beside its reference. The zero value is
// enough for `file:`.
type Access struct {
	// Credential names where the right to use a key in a KMS comes from: `env`,
	// `workload` (a token that Kubernetes or ECS mounts), `managed-identity` (the
	// machine's), `profile`, `cli`, `file` (Vault's), or `auto`, which takes the
	// first that is set up and logs which. Required for a KMS; nothing else than what is named is tried.
	Credential Credential `yaml:"credential,omitempty"`
	// Profile is the profile of `credential: profile` in the vendor's
	// configuration file; `default` if empty.
	Profile string `yaml:"profile,omitempty"`
	// Identity is the client ID of a user-assigned managed identity, where the
	// machine has several.
	Identity string `yaml:"identity,omitempty"`
	// Region is the AWS region of a key that isn't named by an ARN; if empty,
	// AWS_REGION. One that contradicts the ARN is a fault.
	Region string `yaml:"region,omitempty"`
	// Cloud is the Azure cloud: `public`, `usgovernment` or `china`. It completes
	// a short vault name, and one that contradicts a full name is a fault.
	Cloud string `yaml:"cloud,omitempty"`
	// Endpoint is the URL of the KMS where it isn't the vendor's usual one, such
	// as a private endpoint: https, or http on this machine's loopback interface.
	Endpoint string `yaml:"endpoint,omitempty"`
	// IdentityEndpoint is where identities come from where that isn't the
	// vendor's usual URL: AWS STS, or Azure's authority host.
	IdentityEndpoint string `yaml:"identity_endpoint,omitempty"`
	// CAFile is a PEM file of the certificate authorities that the KMS's own
	// certificate is verified by, in place of the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// Vault is what only HashiCorp Vault and OpenBao have.
	Vault VaultAccess `yaml:"vault,omitempty"`
	// Replicas are further references to the same key (AWS multi-Region keys,
	// Managed HSM regions). All must show one public key; when one fails, the
	// next is used, and that is logged.
	Replicas []Replica `yaml:"replicas,omitempty"`
}

// VaultAccess is what only HashiCorp Vault and OpenBao have.
type VaultAccess struct {
	// Namespace is the namespace that the transit engine is mounted in; if
	// empty, VAULT_NAMESPACE.
	Namespace string `yaml:"namespace,omitempty"`
	// TokenFile holds Vault's token for `credential: file`. With `credential:
	// workload` it is where Kubernetes mounts the service account's token; if
	// empty, /var/run/secrets/kubernetes.io/serviceaccount/token.
	TokenFile setting.Path `yaml:"token_file,omitempty"`
	// Role is the role of Vault's Kubernetes login, for `credential: workload`.
	Role string `yaml:"role,omitempty"`
	// AuthMount is the path that Vault's Kubernetes login is mounted at; `kubernetes` if empty.
	AuthMount string `yaml:"auth_mount,omitempty"`
}

// Replica is one more place of a key.
type Replica struct {
	// Key is the reference, in the same form as the key's own.
	Key setting.KeyRef `yaml:"key"`
	// Region is this replica's, as the key's own `region`.
	Region string `yaml:"region,omitempty"`
	// Endpoint is this replica's, as the key's own `endpoint`.
	Endpoint string `yaml:"endpoint,omitempty"`
}

// at is the access to one replica: its own place, everything else as for the key.
func (a Access) at(r Replica) Access {
	a.Region, a.Endpoint, a.Replicas = r.Region, r.Endpoint, nil
	return a
}

// CheckAccess adds every fault of a as the access to key, whose own path is
// path+".key". It reads nothing, not even the environment.
func (all Registry) CheckAccess(a *Access, path string, key setting.KeyRef, f *setting.Faults) {
	f.When(a.Credential != "" && !slices.Contains(knownCredentials, a.Credential), setting.Join(path, "credential"), "%q is unknown: one of %s", a.Credential, setting.List(knownCredentials))
	f.When(a.Profile != "" && a.Credential != CredentialProfile, setting.Join(path, "profile"), "belongs to `credential: profile`: set that, or remove it")
	checkEndpoint(setting.Join(path, "endpoint"), a.Endpoint, f)
	checkEndpoint(setting.Join(path, "identity_endpoint"), a.IdentityEndpoint, f)
	for _, b := range all {
		if b.CheckAccess != nil {
			b.CheckAccess(a, path, f)
		}
	}
	if key != "" {
		all.checkKey(*a, path, key, f)
	}
	for i, r := range a.Replicas {
		at := setting.Index(setting.Join(path, "replicas"), i)
		checkEndpoint(setting.Join(at, "endpoint"), r.Endpoint, f)
		all.checkKey(a.at(r), at, r.Key, f)
	}
}

// checkKey adds the faults of one reference.
func (all Registry) checkKey(a Access, path string, key setting.KeyRef, f *setting.Faults) {
	b, _, err := all.parse(string(key), a)
	if err != nil {
		f.Add(setting.Join(path, "key"), "%v", err)
		return
	}
	at := setting.Join(path, "credential")
	switch err := b.supports(a.Credential); {
	case err != nil && a.Credential == "":
		f.Add(at, "required for a key in %s: one of %s", b.Title, setting.List(b.Credentials))
	case err != nil && slices.Contains(knownCredentials, a.Credential):
		f.Add(at, "%v", err)
	}
}

func checkEndpoint(path, endpoint string, f *setting.Faults) {
	if _, err := ParseEndpoint(endpoint); err != nil && endpoint != "" {
		f.Add(path, "%v", err)
	}
}

// ParseEndpoint wants https, so that neither digests nor tokens travel in the
// clear; loopback is where tests and sidecars listen.
func ParseEndpoint(endpoint string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(endpoint, "/"))
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("isn't the URL of a service: write https://HOST[:PORT]")
	case u.Scheme == "https", u.Scheme == "http" && loopback.Host(u.Hostname()):
		return u, nil
	default:
		return nil, errors.New("must be https: plain http is for this machine's loopback interface alone")
	}
}
