package identity

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// standardClaims are in any token (RFC 7519 §4.1, OpenID Connect Core §2). What is
// Missing may be of several kinds.
var standardClaims = map[string]claim.Kind{
	"iss": claim.String, "sub": claim.String, "aud": claim.Missing, "azp": claim.String, "jti": claim.String,
	"exp": claim.Number, "iat": claim.Number, "nbf": claim.Number,
}

// ConditionRemarks says what in the conditions of a configuration compiles and is
// likely a slip all the same: a claim that the issuer isn't known to send, a value
// of another kind than it is compared with, a mail address compared in the case of
// its letters, and a name whose host a claim chooses. The configuration was checked
// and found without faults.
func ConditionRemarks(issuersPath string, issuers []IssuerConfig, denyPath string, deny []policy.Deny) []string {
	var all []string
	var known []map[string]claim.Kind
	for i := range issuers {
		c, at := &issuers[i], setting.Index(issuersPath, i)
		claims := knownClaims(c)
		known = append(known, claims)
		if claims != nil {
			all = append(all, remarksOnAllow(at+".allow", c.Allow, claims)...)
			for n, one := range c.Profiles {
				all = append(all, remarksOnAllow(setting.Index(at+".profiles", n)+".when", one.When, claims)...)
			}
		}
		if c.InlinePreset != nil && !bindsHost(c, at) {
			all = append(all, at+".inline_preset.san: a claim of the token chooses the host of the name, so tokens of this issuer can name anything anywhere; begin it with a constant, or set san_prefix")
		}
	}
	for i, one := range deny {
		all = append(all, remarksOnDeny(setting.Index(denyPath, i)+".when", one.When, known)...)
	}
	return all
}

// knownClaims is what the issuer is known to send, or nil where its tokens may have
// any claim.
func knownClaims(c *IssuerConfig) map[string]claim.Kind {
	var known map[string]claim.Kind
	switch c.Type {
	case TypeKubernetes:
		known = map[string]claim.Kind{"kubernetes.io": claim.Object}
	case TypeCI:
		preset := c.InlinePreset
		if preset == nil {
			preset, _ = presets.Load(c.Preset) // a fault of the configuration where it doesn't exist
		}
		if preset != nil {
			known = preset.Known()
		}
	}
	if known != nil {
		maps.Copy(known, standardClaims)
	}
	return known
}

func bindsHost(c *IssuerConfig, at string) bool {
	var f setting.Faults
	return c.InlinePreset.SANPrefix != "" || c.InlinePreset.Compile(at, c.PresetConstants, at, &f).FixesHost()
}

func remarksOnAllow(at, condition string, known map[string]claim.Kind) (all []string) {
	reads, _ := policy.Reads(condition)
	for _, r := range reads {
		name := r.Path[0]
		kind, sent := known[name]
		if !sent {
			all = append(all, fmt.Sprintf("%s: this issuer isn't known to send the claim %s%s", at, claim.Quote(name), suggestion(name, known)))
		} else if text := misfit(r, kind); text != "" {
			all = append(all, at+": "+text)
		}
	}
	return once(all)
}

// remarksOnDeny looks at a rule above issuers that know these claims, nil for one
// that may send any.
func remarksOnDeny(at, condition string, issuers []map[string]claim.Kind) (all []string) {
	reads, san := policy.Reads(condition)
	union, open := map[string]claim.Kind{}, false
	for _, known := range issuers {
		maps.Copy(union, known)
		open = open || known == nil
	}
	for _, r := range reads {
		name := r.Path[0]
		kind, sent := union[name]
		switch hint := suggestion(name, union); {
		case !sent && !open:
			all = append(all, fmt.Sprintf("%s: no issuer here is known to send the claim %s, so the rule may never refuse anybody%s", at, claim.Quote(name), hint))
		case !sent && hint != "" && name != "email": // which people's issuers send
			all = append(all, fmt.Sprintf("%s: the issuers whose claims are known don't send the claim %s%s", at, claim.Quote(name), hint))
		case misfit(r, kind) != "":
			all = append(all, at+": "+misfit(r, kind))
		}
	}
	for _, r := range slices.Concat(reads, san) {
		if (r.Address || len(r.Path) == 1 && r.Path[0] == "email" && r.Wants == claim.String) && !r.Folded {
			all = append(all, at+": compares a mail address in the case of its letters, and many providers take it in any: compare principal.san.lowerAscii() with a text in lower case")
		}
	}
	return once(all)
}

// once is each remark once, in order.
func once(remarks []string) []string { return slices.Compact(slices.Sorted(slices.Values(remarks))) }

// misfit is what is wrong with a read of a claim of this kind, where the kind is
// known of the whole claim.
func misfit(r policy.Read, kind claim.Kind) string {
	if len(r.Path) > 1 {
		return ""
	}
	return r.Misfit(kind)
}

func suggestion(name string, known map[string]claim.Kind) string {
	if near := strict.Nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
		return "; did you mean " + near + "?"
	}
	return ""
}

// SharedAudience is the audience that stock Sigstore clients ask their issuer for
// where nobody tells them another. Every Sigstore service accepts it.
const SharedAudience = "sigstore"

// Remarks says of each issuer of the list at path what works and has a price that
// its operator should know. The list was checked and found without faults.
func Remarks(path string, issuers []IssuerConfig) []string {
	var all []string
	for i := range issuers {
		at, c := setting.Index(path, i), &issuers[i]
		if n := slices.Index(c.Audiences, SharedAudience); n >= 0 {
			remedy := "allow bounds whose; one_time lets each be used once"
			if c.OneTime {
				remedy = "allow bounds whose, and one_time is set"
			}
			all = append(all, fmt.Sprintf("%s: %s is the audience of every Sigstore service: one that is sent a token can use it at another, this CA among them (%s); where clients let you choose, name one of this CA's own, such as its URL",
				setting.Index(at+".audiences", n), SharedAudience, remedy))
		}
		if longest := cmp.Or(c.MaxTokenLifetime, defaultLifetime); c.MaxTokenAge >= longest {
			all = append(all, fmt.Sprintf("%s.max_token_age: bounds nothing, since no token may be valid for longer than %s (max_token_lifetime); it asks for iat alone", at, longest))
		}
		if k := c.keys(); c.BearerTokenFile != "" && !k.SendsBearer() {
			all = append(all, at+".bearer_token_file: is never sent: it is for requests to the issuer's own host, and jwks_url is on another")
		}
	}
	return all
}
