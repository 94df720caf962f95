package identity

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// forAudience finds, among the entries for the token's issuer, the one that
// accepts an audience of the token, and that audience. A token that two of them
// accept is refused: which rules it is under would be anybody's choice.
func forAudience(entries []*issuer, c claim.Set) (found *issuer, audience string, err error) {
	for _, i := range entries {
		a, err := checkAudience(c, i.config.Audiences)
		if err != nil {
			continue
		}
		if found != nil {
			return nil, "", fault.New(fault.TokenAudience, "the identity token is for the audiences %s and %s, which stand for different rules here; get one that is for either alone",
				claim.Quote(audience), claim.Quote(a))
		}
		found, audience = i, a
	}
	if found == nil {
		_, err = checkAudience(c, audiencesOf(entries))
	}
	return found, audience, err
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
	named := []claim.Value{aud}
	switch aud.Kind() {
	case claim.Array:
		named = aud.Elements()
	case claim.Missing:
		named = nil
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
	several, azp := len(c.Get("aud").Elements()) > 1, c.Get("azp")
	switch party := azp.Literal(); {
	case len(parties) == 0 && (!several || azp.Kind() == claim.Missing), !several && azp.Kind() == claim.Missing:
		return nil
	case azp.Kind() == claim.Missing:
		return fault.New(fault.TokenAudience, "the identity token is for several audiences and has no azp, which this issuer's tokens then need")
	case azp.Kind() != claim.String:
		return claim.Malformed("its azp must be a string")
	case slices.Contains(audiences, party) || slices.Contains(parties, party):
		return nil
	default:
		expected, actual := claim.QuoteAll(slices.Concat(audiences, parties)), claim.Quote(party)
		return fault.New(fault.TokenAudience, "the identity token was issued to the party %s (azp); expected %s", actual, expected).
			With("expected", expected).With("actual", actual)
	}
}

func quoteValues(values []claim.Value) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.Literal()
	}
	return claim.QuoteAll(texts)
}

// maxNumericDate is the end of the year 9999, in seconds since 1970.
const maxNumericDate = 253402300799

// checkTimes checks exp, nbf and iat (RFC 7519 §4.1.4–6) with a leeway for the
// issuer's clock. exp is required. The lifetime counts from iat, or from now
// where the token has none.
func checkTimes(c claim.Set, now time.Time, leeway, maxLifetime time.Duration) error {
	exp, present, err := numericDate(c, "exp")
	switch {
	case err != nil:
		return err
	case !present:
		return claim.Malformed("it has no exp; a token without an end is not accepted")
	case !now.Before(exp.Add(leeway)):
		return fault.New(fault.TokenExpired, "the identity token expired %s ago; get a new one", now.Sub(exp).Round(time.Second))
	}
	start := now
	for _, name := range []string{"nbf", "iat"} {
		t, present, err := numericDate(c, name)
		switch {
		case err != nil:
			return err
		case present && t.After(now.Add(leeway)):
			return fault.New(fault.TokenNotYetValid, "the identity token's %s is %s in the future; check the clocks", name, t.Sub(now).Round(time.Second))
		case present && name == "iat":
			start = t
		}
	}
	if lifetime := exp.Sub(start); lifetime > maxLifetime {
		return fault.New(fault.TokenLifetime, "the identity token is valid for %s; at most %s is accepted from this issuer", lifetime.Round(time.Second), maxLifetime)
	}
	return nil
}

// checkAge refuses a token that was issued too long ago, or that doesn't say
// when, where most limits it.
func checkAge(c claim.Set, now time.Time, leeway, most time.Duration) error {
	if most == 0 {
		return nil
	}
	iat, present, err := numericDate(c, "iat")
	switch age := now.Sub(iat); {
	case err != nil:
		return err
	case !present:
		return claim.Malformed("it has no iat, which this issuer's tokens need")
	case age > most+leeway:
		return fault.New(fault.TokenExpired, "the identity token was issued %s ago; at most %s is accepted from this issuer; get a new one", age.Round(time.Second), most)
	}
	return nil
}

// numericDate is a time in seconds since 1970, a fraction cut off (RFC 7519 §2).
func numericDate(c claim.Set, name string) (t time.Time, present bool, err error) {
	v := c.Get(name)
	if v.Kind() == claim.Missing {
		return time.Time{}, false, nil
	}
	if v.Kind() != claim.Number {
		return time.Time{}, true, claim.Malformed("its " + name + " must be a number and is " + v.Kind().String())
	}
	seconds, err := strconv.ParseFloat(v.Literal(), 64)
	if err != nil || math.Signbit(seconds) || seconds > maxNumericDate {
		return time.Time{}, true, claim.Malformed("its " + name + " is out of range")
	}
	return time.Unix(int64(seconds), 0), true, nil
}
