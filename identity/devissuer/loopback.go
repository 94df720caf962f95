package devissuer

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// CheckLoopback refuses a listen address that others could reach: anything but
// `localhost:PORT` or a loopback address literal with a port. A missing host
// means every interface and is refused.
func CheckLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("the development issuer's address %q: expected HOST:PORT: %w", addr, err)
	}
	if !loopback.Host(host) {
		return fmt.Errorf("the development issuer's address %q is not loopback: it vouches for anybody, so bind it to 127.0.0.1 or [::1]", addr)
	}
	return nil
}

// hostOf is the host of a Host header or an address, without port and brackets.
func hostOf(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
}

// local lets only this machine's own programs and pages in: the caller's
// address and the name it used must be loopback, and a browser's request must
// come from a page of this origin or from the person themselves.
func local(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection() // for POST: Sec-Fetch-Site, else Origin
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this request comes from a page of another origin", http.StatusForbidden)
	}))
	return crossOrigin.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !loopback.Host(hostOf(r.RemoteAddr)):
			http.Error(w, "the development issuer answers this machine alone", http.StatusForbidden)
		case !loopback.Host(hostOf(r.Host)):
			// RFC 9110 §15.5.20. A page under another name that now resolves
			// to loopback is of that name's origin, so it could read the answer.
			http.Error(w, "the Host is not loopback: use localhost, 127.0.0.1 or [::1]", http.StatusMisdirectedRequest)
		default:
			next.ServeHTTP(w, r)
		}
	}))
}

// fromAnotherPage reports whether a browser sent the request for a page of
// another origin (Fetch Metadata, or the Origin header of older browsers).
func fromAnotherPage(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "none", "same-origin":
		return false
	case "":
		origin := r.Header.Get("Origin")
		return origin != "" && origin != "http://"+r.Host
	default:
		return true
	}
}

// outOfBand is the redirect URI of clients that can't listen: the code is shown
// to the person, who copies it.
const outOfBand = "urn:ietf:wg:oauth:2.0:oob"

// acceptedRedirect reports whether a code may be sent to the URI: http on
// loopback, any port and path (RFC 8252 §7.3), or outOfBand.
func acceptedRedirect(uri string) bool {
	if uri == outOfBand {
		return true
	}
	u, err := url.Parse(uri)
	return err == nil && u.Scheme == "http" && loopback.Host(u.Hostname()) &&
		u.User == nil && u.Fragment == "" && !strings.Contains(uri, "#")
}
