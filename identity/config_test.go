package identity

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestEveryFaultOfAnIssuerIsFound holds each slip to one fault at its path.
func TestEveryFaultOfAnIssuerIsFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*IssuerConfig)
		want   string
	}{
		"no url":              {func(c *IssuerConfig) { c.URL = "" }, "i.url: required"},
		"url and pattern":     {func(c *IssuerConfig) { c.Pattern = "https://*.a.example" }, "i.url: is set beside pattern"},
		"http":                {func(c *IssuerConfig) { c.URL = "http://issuer.example" }, "i.url: must be https"},
		"http on loopback":    {func(c *IssuerConfig) { c.URL = "http://127.0.0.1:5556" }, "i.url: must be https; for development"},
		"loopback elsewhere":  {func(c *IssuerConfig) { c.URL, c.AllowInsecureLoopback = "http://10.0.0.1", true }, "i.url: must be https: allow_insecure_loopback"},
		"loopback by name":    {func(c *IssuerConfig) { c.URL, c.AllowInsecureLoopback = "http://localhost.evil.example", true }, "i.url: must be https: allow_insecure_loopback"},
		"no host":             {func(c *IssuerConfig) { c.URL = "https:///x" }, "i.url: must be a URL"},
		"no scheme":           {func(c *IssuerConfig) { c.URL = "issuer.example" }, "i.url: must be a URL"},
		"upper case":          {func(c *IssuerConfig) { c.URL = "https://Issuer.example" }, "i.url: must have its host in lower case"},
		"default port":        {func(c *IssuerConfig) { c.URL = "https://issuer.example:443" }, "i.url: must leave out the default port"},
		"empty port":          {func(c *IssuerConfig) { c.URL = "https://issuer.example:" }, "i.url: must leave out the default port"},
		"user":                {func(c *IssuerConfig) { c.URL = "https://u@issuer.example" }, "i.url: must have no user"},
		"query":               {func(c *IssuerConfig) { c.URL = "https://issuer.example?x" }, "i.url: must have no user, query"},
		"fragment":            {func(c *IssuerConfig) { c.URL = "https://issuer.example#x" }, "i.url: must have no user, query"},
		"dots":                {func(c *IssuerConfig) { c.URL = "https://issuer.example/../x" }, "i.url: must have no path segment"},
		"not ASCII":           {func(c *IssuerConfig) { c.URL = "https://íssuer.example" }, "i.url: must be a URL"},
		"file":                {func(c *IssuerConfig) { c.URL = "file://host/x" }, "i.url: must be https"},
		"no audience":         {func(c *IssuerConfig) { c.Audiences = nil }, "i.audiences: required"},
		"empty audience":      {func(c *IssuerConfig) { c.Audiences = []string{""} }, "i.audiences[0]: must not be empty"},
		"audience twice":      {func(c *IssuerConfig) { c.Audiences = []string{"a", "a"} }, "i.audiences[1]: is listed twice"},
		"hostile audience":    {func(c *IssuerConfig) { c.Audiences = []string{"a\n"} }, "i.audiences[0]: must be at most"},
		"no type":             {func(c *IssuerConfig) { c.Type = "" }, "i.type: required: one of chainguard-identity, ci-provider, email, kubernetes, spiffe, uri, username"},
		"unknown type":        {func(c *IssuerConfig) { c.Type = "mail" }, `i.type: "mail" is unknown`},
		"uri without domain":  {func(c *IssuerConfig) { c.Type = TypeURI }, "i.subject_domain: required"},
		"uri, a bare domain":  {func(c *IssuerConfig) { c.Type, c.SubjectDomain = TypeURI, "example.com" }, "i.subject_domain: must be a scheme and host"},
		"uri with a path":     {func(c *IssuerConfig) { c.Type, c.SubjectDomain = TypeURI, "https://example.com/" }, "i.subject_domain: must be a scheme and host"},
		"uri, upper case":     {func(c *IssuerConfig) { c.Type, c.SubjectDomain = TypeURI, "https://Example.com" }, "i.subject_domain: must be a scheme and host"},
		"username, no domain": {func(c *IssuerConfig) { c.Type = TypeUsername }, "i.subject_domain: required"},
		"username, a URL":     {func(c *IssuerConfig) { c.Type, c.SubjectDomain = TypeUsername, "https://x" }, "i.subject_domain: must be a domain"},
		"email with a domain": {func(c *IssuerConfig) { c.SubjectDomain = "example.com" }, "i.subject_domain: has no meaning"},
		"spiffe, no domain":   {func(c *IssuerConfig) { c.Type = TypeSPIFFE }, "i.spiffe_trust_domain: required"},
		"spiffe, upper case":  {func(c *IssuerConfig) { c.Type, c.SPIFFETrustDomain = TypeSPIFFE, "Example.org" }, "i.spiffe_trust_domain: must be"},
		"spiffe, an ID":       {func(c *IssuerConfig) { c.Type, c.SPIFFETrustDomain = TypeSPIFFE, "spiffe://example.org" }, "i.spiffe_trust_domain: must be"},
		"ci without preset":   {func(c *IssuerConfig) { c.Type = TypeCI }, "i.preset: required"},
		"ci, unknown preset":  {func(c *IssuerConfig) { c.Type, c.Preset = TypeCI, "nope" }, `i.preset: "nope": no built-in preset has this name`},
		"ci, two presets":     {func(c *IssuerConfig) { c.Type, c.Preset, c.InlinePreset = TypeCI, "github", new(presets.Preset) }, "i.preset: is set beside inline_preset"},
		"ci, bad preset":      {func(c *IssuerConfig) { c.Type, c.InlinePreset = TypeCI, &presets.Preset{Name: "x", SAN: "{"} }, "i.inline_preset.san: the template doesn't close"},
		"ci, bad constant": {func(c *IssuerConfig) {
			c.Type, c.Preset, c.PresetConstants = TypeCI, "github", map[string]string{"uri": "x"}
		}, "i.preset_constants.uri: the preset github has no such constant"},
		"preset for email":        {func(c *IssuerConfig) { c.Preset = "github" }, "i.preset: has no meaning"},
		"issuer claim":            {func(c *IssuerConfig) { c.IssuerClaim = "federated_claims" }, "i.issuer_claim: must be a path"},
		"challenge claim":         {func(c *IssuerConfig) { c.ChallengeClaim = "name" }, "i.challenge_claim: must be email or sub"},
		"algorithm none":          {func(c *IssuerConfig) { c.Algorithms = []string{"RS256", "none"} }, `i.algorithms[1]: "none" is not accepted`},
		"algorithm HS256":         {func(c *IssuerConfig) { c.Algorithms = []string{"HS256"} }, `i.algorithms[0]: "HS256" is not accepted`},
		"negative lifetime":       {func(c *IssuerConfig) { c.MaxTokenLifetime = -1 }, "i.max_token_lifetime: must not be negative"},
		"long leeway":             {func(c *IssuerConfig) { c.Leeway = time.Hour }, "i.leeway: must be from 0 to 10m0s"},
		"networks, no CIDR":       {func(c *IssuerConfig) { c.AllowNetworks = []string{"10.0.0.0/8", "10.0.0.1"} }, "i.allow_networks[1]: must be a network"},
		"networks, host bits":     {func(c *IssuerConfig) { c.AllowNetworks = []string{"10.0.0.1/8"} }, "i.allow_networks[0]: has bits beyond its length; did you mean 10.0.0.0/8?"},
		"networks, mapped":        {func(c *IssuerConfig) { c.AllowNetworks = []string{"::ffff:10.0.0.0/104"} }, "i.allow_networks[0]: must be a network"},
		"networks, everything":    {func(c *IssuerConfig) { c.AllowNetworks = []string{"0.0.0.0/0"} }, "i.allow_networks[0]: is every address"},
		"key hosts, a URL":        {func(c *IssuerConfig) { c.JWKSHosts = []string{"https://k.example"} }, "i.jwks_hosts[0]: must be a host"},
		"key hosts, empty":        {func(c *IssuerConfig) { c.JWKSHosts = []string{""} }, "i.jwks_hosts[0]: must be a host"},
		"key hosts, a path":       {func(c *IssuerConfig) { c.JWKSHosts = []string{"k.example/x"} }, "i.jwks_hosts[0]: must be a host"},
		"key hosts, upper case":   {func(c *IssuerConfig) { c.JWKSHosts = []string{"K.example"} }, "i.jwks_hosts[0]: must be a host"},
		"keys by http":            {func(c *IssuerConfig) { c.JWKSURL = "http://issuer.example/keys" }, "i.jwks_url: must be an https URL"},
		"keys by user":            {func(c *IssuerConfig) { c.JWKSURL = "https://u@issuer.example/keys" }, "i.jwks_url: must be an https URL"},
		"keys' place and hosts":   {func(c *IssuerConfig) { c.JWKSURL, c.JWKSHosts = "https://k.example/", []string{"k.example"} }, "i.jwks_hosts: has no meaning beside jwks_url"},
		"no text, keys elsewhere": {func(c *IssuerConfig) { c.URL, c.JWKSURL = "an issuer", "https://k.example/" }, "i.url: must be 1 to 1024 bytes"},
		"chainguard, no URL":      {func(c *IssuerConfig) { c.Type, c.URL, c.JWKSURL = TypeChainguard, "issuer", "https://k.example/" }, "i.url: must be a URL"},
		"chainguard, alias":       {func(c *IssuerConfig) { c.Type, c.Aliases = TypeChainguard, []string{"a"} }, "i.aliases: has no meaning"},
		"alias of a pattern":      {func(c *IssuerConfig) { c.URL, c.Pattern, c.Aliases = "", "https://*.b.example", []string{"a"} }, "i.aliases: has no meaning"},
		"alias twice":             {func(c *IssuerConfig) { c.Aliases = []string{"a", "a"} }, "i.aliases[1]: is listed twice"},
		"alias of itself":         {func(c *IssuerConfig) { c.Aliases = []string{c.URL} }, "i.aliases[0]: is listed twice"},
		"hostile alias":           {func(c *IssuerConfig) { c.Aliases = []string{"a b"} }, "i.aliases[0]: must be 1 to 1024 bytes"},
		"bearer without a host": {func(c *IssuerConfig) {
			c.URL, c.JWKSURL, c.BearerTokenFile = "issuer", "https://k.example/", "token"
		}, "i.bearer_token_file: has no meaning here"},
		"keys in a file, and CA":    {func(c *IssuerConfig) { c.JWKSFile, c.CAFile = "jwks.json", "ca.pem" }, "i.ca_file: has no meaning beside jwks_file"},
		"keys in a file, and where": {func(c *IssuerConfig) { c.JWKSFile, c.JWKSURL = "jwks.json", "https://k.example/" }, "i.jwks_url: has no meaning beside jwks_file"},
		"keys of a pattern":         {func(c *IssuerConfig) { c.URL, c.Pattern, c.JWKSFile = "", "https://*.b.example", "jwks.json" }, "i.jwks_file: has no meaning for a pattern"},
		"token of a pattern":        {func(c *IssuerConfig) { c.URL, c.Pattern, c.BearerTokenFile = "", "https://*.b.example", "token" }, "i.bearer_token_file: has no meaning for a pattern"},
		"keys too young":            {func(c *IssuerConfig) { c.MaxKeysAge = time.Second }, "i.max_keys_age: must be from 1m0s"},
		"keys too old":              {func(c *IssuerConfig) { c.MaxKeysAge = 1000 * time.Hour }, "i.max_keys_age: must be from 1m0s"},
		"negative age":              {func(c *IssuerConfig) { c.MaxTokenAge = -1 }, "i.max_token_age: must not be negative"},
		"empty party":               {func(c *IssuerConfig) { c.AuthorizedParties = []string{""} }, "i.authorized_parties[0]: must not be empty"},
		"hostile party":             {func(c *IssuerConfig) { c.AuthorizedParties = []string{"a\n"} }, "i.authorized_parties[0]: must be at most"},
		"pattern, no wildcard":      {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://a.example" }, "i.pattern: has no `*`"},
		"pattern, http":             {func(c *IssuerConfig) { c.URL, c.Pattern = "", "http://*.a.example" }, "i.pattern: must begin with https://"},
		"pattern, any host":         {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://*" }, "i.pattern: must write out the last two labels"},
		"pattern, any domain":       {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://*.com" }, "i.pattern: must write out the last two labels"},
		"pattern, half label":       {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://a*.b.example" }, "i.pattern: has a host label"},
		"pattern, half segment":     {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://a.b.example/x*" }, "i.pattern: has a path segment"},
		"pattern, dots":             {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://a.b.example/../*" }, "i.pattern: has a path segment"},
		"pattern, query":            {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://*.b.example/?x" }, "i.pattern: has a path segment"},
		"pattern, port":             {func(c *IssuerConfig) { c.URL, c.Pattern = "", "https://*.b.example:8443" }, "i.pattern: has a host label"},
		"pattern, loopback":         {func(c *IssuerConfig) { c.URL, c.Pattern, c.AllowInsecureLoopback = "", "https://*.b.example", true }, "i.allow_insecure_loopback: has no meaning"},
	} {
		config := emailIssuer()
		c.change(&config)
		var f setting.Faults
		compileOne("i", &config, &f)
		if err := f.Err(); f.Len() != 1 || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v; want one fault %q", name, err, c.want)
		}
	}
}

func TestAllFaultsAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	var f setting.Faults
	CheckIssuers("issuers", []IssuerConfig{emailIssuer(), emailIssuer(), {}}, &f)
	want := []string{
		`issuers[1].audiences[0]: "sigstore" is among the audiences of issuers[0] too, which is for the same issuer; keep one`,
		"issuers[2].url: required: the issuer as its tokens write it, or a pattern",
		"issuers[2].audiences: required: at least one, such as sigstore", "issuers[2].type: required: one of chainguard-identity, ci-provider, email, kubernetes, spiffe, uri, username",
		`issuers[2].allow: required: the condition under which a token of this issuer gets a certificate, such as claims.repository_owner == "acme"; "true" lets all of them`,
	}
	if got := strings.Split(f.Err().Error(), "\n"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	var none setting.Faults
	CheckIssuers("x.issuers", nil, &none)
	if none.Len() != 1 || !strings.HasPrefix(none.Err().Error(), "x.issuers: required") {
		t.Errorf("no issuers: %v", none.Err())
	}
	if _, err := NewVerifier(nil, Options{}); err == nil {
		t.Error("a verifier without issuers")
	}
}

func TestGoodIssuers(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"https://accounts.google.com", "https://x.auth0.com/", "https://login.microsoftonline.com/a-b/v2.0", "https://dex.example:8443/dex", "https://[2001:db8::1]/x", "https://kubernetes.default.svc"} {
		c := emailIssuer()
		c.URL = url
		var f setting.Faults
		if compileOne("i", &c, &f); f.Len() != 0 {
			t.Errorf("%s: %v", url, f.Err())
		}
	}
	for _, url := range []string{"http://localhost:5556", "http://127.0.0.1:5556/dex", "http://[::1]:1", "https://issuer.example"} {
		c := emailIssuer()
		c.URL, c.AllowInsecureLoopback = url, true
		var f setting.Faults
		if compileOne("i", &c, &f); f.Len() != 0 {
			t.Errorf("%s: %v", url, f.Err())
		}
	}
}

func TestKubernetesPatterns(t *testing.T) {
	t.Parallel()
	for pattern, issuers := range map[string][]string{
		"https://oidc.eks.*.amazonaws.com/id/*":                                 {"https://oidc.eks.eu-west-1.amazonaws.com/id/B02C93B6A2D30341AD01E1B6D48164CB"},
		"https://container.googleapis.com/v1/projects/*/locations/*/clusters/*": {"https://container.googleapis.com/v1/projects/p-1/locations/us-central1-a/clusters/c_1"},
		"https://*.oic.prod-aks.azure.com/*/*":                                  {"https://westeurope.oic.prod-aks.azure.com/9d6e-1/aa-2"},
		"https://*.oic.prod-aks.azure.com/*/*/":                                 {"https://westeurope.oic.prod-aks.azure.com/9d6e-1/aa-2/"},
		"https://oidc.prod-aks.azure.com/*":                                     {"https://oidc.prod-aks.azure.com/9d6e"},
		"https://oidc.prod-aks.azure.com/*/":                                    {"https://oidc.prod-aks.azure.com/9d6e/"},
	} {
		p, err := compilePattern(pattern)
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
			continue
		}
		for _, i := range issuers {
			if !p.match(i) || p.match(i+"x/") || p.match(i+"?") || p.match("x"+i) {
				t.Errorf("%s: %s", pattern, i)
			}
		}
	}
}

func TestIssuersAreDescribed(t *testing.T) {
	t.Parallel()
	configs := []IssuerConfig{
		emailIssuer(),
		{Pattern: "https://*.b.example.com", Type: TypeSPIFFE, Allow: "true", SPIFFETrustDomain: "example.org", Audiences: []string{"b", "c"}},
		{URL: "https://u.example", Type: TypeUsername, Allow: "true", SubjectDomain: "example.com", Audiences: []string{"sigstore"}, ChallengeClaim: "email"},
	}
	v, _, _ := verifier(t, configs...)
	type description struct{ url, pattern, audience, kind, challenge, trustDomain, domain string }
	var got []description
	for _, c := range v.Issuers() {
		got = append(got, description{c.URL, c.Pattern, c.Audiences[0], string(c.Type), c.ChallengeClaim, c.SPIFFETrustDomain, c.SubjectDomain})
	}
	want := []description{
		{url: "https://issuer.example", audience: "sigstore", kind: "email", challenge: "email"},
		{pattern: "https://*.b.example.com", audience: "b", kind: "spiffe", challenge: "sub", trustDomain: "example.org"},
		{url: "https://u.example", audience: "sigstore", kind: "username", challenge: "email", domain: "example.com"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if s := v.Status(); len(s) != 2 || s[0].Ready || s[0].Name != "https://issuer.example" {
		t.Errorf("status %+v", s)
	}
	configs[0].Audiences[0] = "changed"
	if v.Issuers()[0].Audiences[0] != "sigstore" {
		t.Error("the caller's list is the verifier's own")
	}
}
