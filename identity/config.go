package identity

import (
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/identity/policy"
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
	// TypeChainguard names an identity of Chainguard's by issuer and subject.
	TypeChainguard Type = "chainguard-identity"
)

// IssuerConfig is one OpenID Connect issuer, or many issuers of one pattern, whose
// tokens are accepted.
type IssuerConfig struct {
	// URL is the issuer exactly as its tokens write it in `iss`, a final slash
	// included. Where jwks_url or jwks_file says where its keys are, it may be any
	// text, such as the `http://adfs.example.com/adfs/services/trust` of an AD FS.
	// Set either url or pattern.
	URL string `yaml:"url,omitempty"`
	// Aliases lists other texts that this issuer's tokens have as `iss`, such as
	// `accounts.google.com`. Certificates and rules have url in their place.
	Aliases []string `yaml:"aliases,omitempty"`
	// Pattern accepts a family of issuers: each `*` stands for one whole host
	// label (lower case) or path segment of letters, digits, `-` and `_`, as in
	// `https://oidc.eks.*.amazonaws.com/id/*`. An exact url wins over a pattern;
	// of two patterns the one with a fixed text where the other has `*` wins.
	Pattern string `yaml:"pattern,omitempty"`
	// Audiences lists the values of `aud` that are accepted; a token needs one
	// of them, exactly, and may name others beside it. Several entries may have
	// the same url or pattern when no audience is in two of them: the audience
	// then decides which of them a token is for, and a token for two is refused.
	Audiences []string `yaml:"audiences"`
	// Allow is the condition under which a token of this issuer gets a
	// certificate: an expression in CEL over the token's `claims`, over
	// `principal.san`, `.san_type`, `.subject`, `.issuer`, `.type` and
	// `.audience`, and `request.time`, as in
	// `claims.repository_owner == "acme" && principal.san.startsWith("https://github.com/acme/")`.
	// Where it can't be decided, as when it reads a claim that the token lacks,
	// the request is refused. Required: `"true"` lets everybody whom the issuer
	// vouches for have one.
	Allow string `yaml:"allow"`
	// Lifetime of this issuer's certificates, from 1m to max_lifetime, in whole
	// seconds. The default is ca.lifetime.
	Lifetime time.Duration `yaml:"lifetime,omitempty"`
	// MaxLifetime is the longest lifetime of this issuer's certificates, at most
	// 1h. The default is 10m, which then doesn't bound ca.lifetime.
	MaxLifetime time.Duration `yaml:"max_lifetime,omitempty"`
	// Profiles choose another lifetime by conditions; the first that holds counts.
	Profiles []policy.Profile `yaml:"profiles,omitempty"`
	// Type is one of email, uri, username, spiffe, kubernetes, ci-provider,
	// chainguard-identity.
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
	// server certificate must chain to, in place of the system's. It is read
	// again when it changes.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// AllowNetworks lists networks that the issuer's servers may be in beside
	// the public Internet, as in `10.20.0.0/16`. Connections to private,
	// loopback, link-local and other special addresses are refused otherwise,
	// whatever name leads there. An HTTP proxy that the environment names
	// (HTTPS_PROXY, NO_PROXY) may be anywhere, and resolves names by itself: it
	// needs a policy of its own.
	AllowNetworks []string `yaml:"allow_networks,omitempty"`
	// JWKSHosts lists hosts, each with a port unless it is 443, where the
	// issuer's discovery may say that its keys are. Its own host needn't be
	// listed, nor www.googleapis.com for https://accounts.google.com.
	JWKSHosts []string `yaml:"jwks_hosts,omitempty"`
	// JWKSURL is where the issuer's keys are, in place of discovery: for a
	// Kubernetes API server whose discovery names another host,
	// `https://kubernetes.default.svc/openid/v1/jwks`.
	JWKSURL string `yaml:"jwks_url,omitempty"`
	// JWKSFile is a JSON Web Key Set with the issuer's keys, in place of
	// fetching them, for a place without a way to the issuer. It is read again
	// every few seconds.
	JWKSFile setting.Path `yaml:"jwks_file,omitempty"`
	// BearerTokenFile holds a token that is sent with the requests to the
	// issuer's own host, and to no other: for a Kubernetes API server
	// `/var/run/secrets/kubernetes.io/serviceaccount/token`. It is read at each request.
	BearerTokenFile setting.Path `yaml:"bearer_token_file,omitempty"`
	// MaxKeysAge is how long the issuer's keys are used while fetching them
	// again keeps failing. The default is 6h, the least is 1m, the most is 168h.
	MaxKeysAge time.Duration `yaml:"max_keys_age,omitempty"`
	// Algorithms narrows the signature algorithms that are accepted. Empty
	// means all of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384,
	// ES512 and EdDSA, which is also called Ed25519.
	Algorithms []string `yaml:"algorithms,omitempty"`
	// MaxTokenLifetime is the longest time from `iat` to `exp`. The default is 24h.
	MaxTokenLifetime time.Duration `yaml:"max_token_lifetime,omitempty"`
	// MaxTokenAge is the longest time since `iat`, which every token then needs.
	// The default is no limit but max_token_lifetime.
	MaxTokenAge time.Duration `yaml:"max_token_age,omitempty"`
	// AuthorizedParties lists values of `azp`, the party that a token was issued
	// to, beside the audiences. A token for several audiences that has an `azp`
	// needs one of either. When any is listed, such a token must have an `azp`,
	// and the `azp` of a token for one audience is checked too.
	AuthorizedParties []string `yaml:"authorized_parties,omitempty"`
	// OneTime accepts each token once: a token that was good is refused from
	// then on, also when its request failed later, so a client that tries again
	// needs a new one. Tokens are remembered until they expire: in the server that
	// `replay` names, or else in the memory of the process, which replicas don't
	// share and a restart empties; it holds 200,000, and one issuer has at most the
	// half of what others leave. More are answered with 503 OVERLOADED.
	OneTime bool `yaml:"one_time,omitempty"`
	// Leeway is how far the issuer's clock may differ from ours. The default is
	// 60s, the most is 10m.
	Leeway time.Duration `yaml:"leeway,omitempty"`
	// AllowInsecureLoopback accepts an issuer url with http on a loopback
	// address, for development alone, and connections to loopback addresses.
	AllowInsecureLoopback bool `yaml:"allow_insecure_loopback,omitempty"`
}

// keys is the part of c that says how the issuer's keys are fetched. The caller
// keeps its lists.
func (c *IssuerConfig) keys() oidc.Config {
	return oidc.Config{
		URL: c.URL, Pattern: c.Pattern, CAFile: c.CAFile, AllowNetworks: slices.Clone(c.AllowNetworks),
		JWKSHosts: slices.Clone(c.JWKSHosts), JWKSURL: c.JWKSURL, JWKSFile: c.JWKSFile, BearerTokenFile: c.BearerTokenFile,
		MaxKeysAge: c.MaxKeysAge, AllowInsecureLoopback: c.AllowInsecureLoopback,
	}
}
