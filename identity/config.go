package identity

import (
	"time"

	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Type is what an issuer's tokens speak of; it decides the rule from claims to name.
type Type string

// The types of issuer.
const (
	TypeEmail      Type = "email"       // people: the name is the verified `email`
	TypeURI        Type = "uri"         // the name is `sub`, a URI under subject_domain
	TypeUsername   Type = "username"    // the name is `sub!subject_domain`
	TypeSPIFFE     Type = "spiffe"      // the name is `sub`, a SPIFFE ID in spiffe_trust_domain
	TypeKubernetes Type = "kubernetes"  // the name is the service account's URI
	TypeCI         Type = "ci-provider" // the name and the extensions come from a preset
)

// IssuerConfig is one OpenID Connect issuer, or one family of issuers, whose
// tokens are accepted.
type IssuerConfig struct {
	// URL is the issuer exactly as its tokens write it in `iss`, a final slash
	// included. Set either url or pattern.
	URL string `yaml:"url,omitempty"`
	// Pattern accepts a family of issuers: each `*` stands for one whole host
	// label (lower case) or path segment of letters, digits, `-` and `_`, as in
	// `https://oidc.eks.*.amazonaws.com/id/*`. An exact url wins over a pattern;
	// of two patterns the one with a fixed text where the other has `*` wins.
	Pattern string `yaml:"pattern,omitempty"`
	// Audiences lists the values of `aud` that are accepted; a token needs one
	// of them, exactly, and may name others beside it.
	Audiences []string `yaml:"audiences"`
	// Type is one of email, uri, username, spiffe, kubernetes, ci-provider.
	Type Type `yaml:"type"`
	// SubjectDomain is for uri the scheme and host that every subject begins
	// with (`https://example.com`), and for username the domain that is put
	// after the name (`example.com`).
	SubjectDomain string `yaml:"subject_domain,omitempty"`
	// SPIFFETrustDomain is for spiffe the one trust domain accepted (`example.org`).
	SPIFFETrustDomain string `yaml:"spiffe_trust_domain,omitempty"`
	// ChallengeClaim is what GetConfiguration tells clients to sign as the
	// proof: `email` or `sub`. Both are accepted from any token that has them.
	// The default is email for the type email, and sub for the others.
	ChallengeClaim string `yaml:"challenge_claim,omitempty"`
	// SkipEmailVerification is for email: don't ask for a true
	// `email_verified`. Only for an issuer that verifies every address and
	// doesn't send the claim: otherwise anybody can take any address.
	SkipEmailVerification bool `yaml:"skip_email_verification,omitempty"`
	// IssuerClaim is for email: where the claims hold the issuer to record in
	// place of the token's own, behind a broker: `$.federated_claims.connector_id`.
	IssuerClaim string `yaml:"issuer_claim,omitempty"`
	// Preset is for ci-provider: the name of a built-in rule set, such as github or gitlab.
	Preset string `yaml:"preset,omitempty"`
	// InlinePreset is for ci-provider: a rule set of your own in place of a built-in one.
	InlinePreset *presets.Preset `yaml:"inline_preset,omitempty"`
	// PresetConstants replaces constants of the preset, such as the `url` of a
	// GitHub Enterprise Server or of a self-hosted GitLab.
	PresetConstants map[string]string `yaml:"preset_constants,omitempty"`
	// CAFile is a PEM file with the certificate authorities that the issuer's
	// server certificate must chain to, in place of the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// Algorithms narrows the signature algorithms that are accepted. Empty
	// means all of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384,
	// ES512 and EdDSA.
	Algorithms []string `yaml:"algorithms,omitempty"`
	// MaxTokenLifetime is the longest time from `iat` to `exp`. The default is 24h.
	MaxTokenLifetime time.Duration `yaml:"max_token_lifetime,omitempty"`
	// Leeway is how far the issuer's clock may differ from ours. The default is
	// 60s, the most is 10m.
	Leeway time.Duration `yaml:"leeway,omitempty"`
	// AllowInsecureLoopback accepts an issuer url with http on a loopback
	// address, for development alone.
	AllowInsecureLoopback bool `yaml:"allow_insecure_loopback,omitempty"`
}
