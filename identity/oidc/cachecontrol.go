package oidc

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// How long keys serve before they are fetched again. An issuer says it with
// Cache-Control, within bounds: keys that it removes stop working within
// maxFresh while it can be reached, however long it meant them to be kept.
const (
	minFresh     = time.Minute
	defaultFresh = 10 * time.Minute
	maxFresh     = 30 * time.Minute
)

// freshFor reads how long an answer may be kept (RFC 9111 §4.2.1 and §5.2.2)
// by one that isn't a shared cache, less the age that it came with (§5.1).
func freshFor(h http.Header) time.Duration {
	fresh := defaultFresh
	for _, directive := range strings.Split(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return minFresh
		case "max-age":
			fresh = seconds(strings.Trim(value, `"`), minFresh)
		}
	}
	if age := h.Get("Age"); age != "" {
		fresh -= seconds(strings.TrimSpace(age), 0)
	}
	return min(max(fresh, minFresh), maxFresh)
}

// seconds is a delta-seconds (RFC 9111 §1.2.2), or what to take for something else.
func seconds(s string, otherwise time.Duration) time.Duration {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case err != nil && n == 0, s == "", s[0] == '+':
		return otherwise
	case n > 1<<31: // "the cache MUST consider the value to be 2147483648"
		n = 1 << 31
	}
	return time.Duration(n) * time.Second
}
