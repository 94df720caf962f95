package identity

import (
	"slices"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// forAudience finds, among the entries for the token's issuer, the one that
// accepts an audience of the token, and that audience. A token that two of them
// accept is refused: which rules it is under would be anybody's choice.
func forAudience(entries []*issuer, c claim.Set) (found *issuer, audience string, err error) {
	for _, i := range entries {
		a, err := checkAudience(c, i.config.Audiences)
		switch {
		case err != nil:
		case found != nil:
			return nil, "", fault.New(fault.TokenAudience, "the identity token is for the audiences %s and %s, which stand for different rules here; get one that is for either alone",
				claim.Quote(audience), claim.Quote(a))
		default:
			found, audience = i, a
		}
	}
	if found != nil {
		return found, audience, nil
	}
	_, err = checkAudience(c, audiencesOf(entries))
	return nil, "", err
}

func audiencesOf(entries []*issuer) (all []string) {
	for _, i := range entries {
		all = append(all, i.config.Audiences...)
	}
	return all
}

// checkAudience finds the first of the accepted audiences that the token
// names. `aud` is one string or an array of them (RFC 7519 §4.1.3). An array
// is accepted when it holds one of ours, exactly, whatever else it holds: a
// token is often for several services. Any of those could present it here, so
// ours should be an audience that no other service shares; see checkParty.
func checkAudience(c claim.Set, accepted []string) (string, error) {
	aud := c.Get("aud")
	var named []claim.Value
	switch aud.Kind() {
	case claim.String:
		named = []claim.Value{aud}
	case claim.Array:
		named = aud.Elements()
	case claim.Missing:
	default:
		return "", claim.Malformed("its aud must be a string or an array of strings")
	}
	found := ""
	for _, v := range named {
		if v.Kind() != claim.String {
			return "", claim.Malformed("its aud must be a string or an array of strings")
		}
		if found == "" && slices.Contains(accepted, v.Literal()) {
			found = v.Literal()
		}
	}
	if found == "" {
		expected, actual := claim.QuoteAll(accepted), quoteValues(named)
		return "", fault.New(fault.TokenAudience, "the identity token is for the audience %s; expected %s", actual, expected).
			With("expected", expected).With("actual", actual)
	}
	return found, nil
}

// checkParty checks `azp`, the party that a token was issued to (OpenID Connect
// Core §3.1.3.7, steps 4 and 5), where a token is for several audiences: it is
// an accepted audience itself, or listed. Where parties are listed, such a
// token must name one, and the one that another token names counts as well.
func checkParty(c claim.Set, audiences, parties []string) error {
	several := len(c.Get("aud").Elements()) > 1
	if !several && len(parties) == 0 {
		return nil
	}
	azp := c.Get("azp")
	switch azp.Kind() {
	case claim.Missing:
		if !several || len(parties) == 0 {
			return nil
		}
		return fault.New(fault.TokenAudience, "the identity token is for several audiences and has no azp, which this issuer's tokens then need")
	case claim.String:
		if party := azp.Literal(); slices.Contains(audiences, party) || slices.Contains(parties, party) {
			return nil
		}
		expected, actual := claim.QuoteAll(slices.Concat(audiences, parties)), claim.Quote(azp.Literal())
		return fault.New(fault.TokenAudience, "the identity token was issued to the party %s (azp); expected %s", actual, expected).
			With("expected", expected).With("actual", actual)
	default:
		return claim.Malformed("its azp must be a string")
	}
}

func quoteValues(values []claim.Value) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.Literal()
	}
	return claim.QuoteAll(texts)
}
