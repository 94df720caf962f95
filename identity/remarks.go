package identity

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

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
