package identity

import (
	"math"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// maxNumericDate is the end of the year 9999, in seconds since 1970.
const maxNumericDate = 253402300799

// checkTimes checks exp, nbf and iat (RFC 7519 §4.1.4–6) with a leeway for the
// issuer's clock. exp is required. The lifetime counts from iat, or from now
// where the token has none.
func checkTimes(c claim.Set, now time.Time, leeway, maxLifetime time.Duration) error {
	exp, present, err := numericDate(c, "exp")
	if err != nil {
		return err
	}
	if !present {
		return claim.Malformed("it has no exp; a token without an end is not accepted")
	}
	if !now.Before(exp.Add(leeway)) {
		return fault.New(fault.TokenExpired, "the identity token expired %s ago; get a new one", now.Sub(exp).Round(time.Second))
	}
	start := now
	for _, name := range []string{"nbf", "iat"} {
		t, present, err := numericDate(c, name)
		if err != nil {
			return err
		}
		if !present {
			continue
		}
		if t.After(now.Add(leeway)) {
			return fault.New(fault.TokenNotYetValid, "the identity token's %s is %s in the future; check the clocks", name, t.Sub(now).Round(time.Second))
		}
		if name == "iat" {
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
	if err != nil {
		return err
	}
	if !present {
		return claim.Malformed("it has no iat, which this issuer's tokens need")
	}
	if age := now.Sub(iat); age > most+leeway {
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
