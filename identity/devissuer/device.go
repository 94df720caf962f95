package devissuer

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// deviceLifetime is how long a person has to enter the user code.
	deviceLifetime = 10 * time.Minute
	maxDevices     = 256
	// deviceInterval is the least time between polls that clients are told. It
	// is the shortest there is: the issuer is on the client's own machine.
	deviceInterval = time.Second
	// slowDown is what a poll that comes too early adds (RFC 8628 §3.5).
	slowDown = 5 * time.Second

	// userCodeLetters are 20 letters without vowels (RFC 8628 §6.1).
	userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"
	userCodeLength  = 8
)

// device is a device authorization under way, kept under its device code.
type device struct {
	login
	userCode        string // userCodeLength letters, without the hyphen
	interval        time.Duration
	polled          time.Time
	decided, denied bool
}

// startDevice is the device authorization endpoint (RFC 8628 §3.1 and §3.2).
// PKCE is used when the client asks for it, as Sigstore's clients do.
func (i *Issuer) startDevice(r *http.Request, values url.Values) (map[string]any, error) {
	client, err := clientOf(r, values)
	if err == nil && !hasScope(values.Get("scope"), "openid") {
		err = refuse("invalid_scope", "scope must hold openid")
	}
	if err == nil && values.Get("code_challenge") != "" {
		err = checkChallenge(values)
	}
	if err != nil {
		return nil, err
	}
	deviceCode, userCode := rand.Text(), newUserCode()
	i.devices.put(deviceCode, device{
		login:    login{clientID: client, nonce: values.Get("nonce"), challenge: values.Get("code_challenge")},
		userCode: userCode,
		interval: deviceInterval,
	})
	shown := userCode[:userCodeLength/2] + "-" + userCode[userCodeLength/2:]
	return map[string]any{
		"device_code":               deviceCode,
		"user_code":                 shown,
		"verification_uri":          i.url + pathDevice,
		"verification_uri_complete": i.url + pathDevice + "?user_code=" + shown,
		"expires_in":                int(deviceLifetime.Seconds()),
		"interval":                  int(deviceInterval.Seconds()),
	}, nil
}

// newUserCode makes a code that a person types: 20⁸ possibilities, each as likely.
func newUserCode() (code string) {
	for len(code) < userCodeLength {
		code += plainUserCode(rand.Text())
	}
	return code[:userCodeLength]
}

// plainUserCode takes case, hyphens and blanks out of what a person typed.
func plainUserCode(typed string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(userCodeLetters, c) {
			return c
		}
		return -1
	}, strings.ToUpper(typed))
}

// finishDevice takes the page: the person lets the device in, or refuses it.
func (i *Issuer) finishDevice(w http.ResponseWriter, _ *http.Request, values url.Values) {
	deny := values.Get("action") == "deny"
	who, wrong := readPerson(values)
	if wrong != "" && !deny {
		devicePage(w, http.StatusUnprocessableEntity, values, wrong)
		return
	}
	switch {
	case !i.decide(plainUserCode(values.Get("user_code")), who, deny):
		devicePage(w, http.StatusUnprocessableEntity, values, "This code is unknown, used or expired. Enter the code that the program shows.")
	case deny:
		servePage(w, http.StatusOK, page{Title: "Refused", Heading: "Sign-in refused", Text: "The program gets no token. You can close this page."})
	default:
		servePage(w, http.StatusOK, page{Title: "Signed in", Heading: "You are signed in", Text: "Go back to the program; it goes on by itself. You can close this page."})
	}
}

// decide lets the device with the user code in, or refuses it. It is false where no
// device waits with this code.
func (i *Issuer) decide(userCode string, who person, deny bool) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for d := range i.devices.live() {
		if d.userCode == userCode && !d.decided {
			d.person, d.decided, d.denied = who, true, deny
			return true
		}
	}
	return false
}

// redeemDevice answers a poll (RFC 8628 §3.4 and §3.5).
func (i *Issuer) redeemDevice(client string, values url.Values) (login, error) {
	code := values.Get("device_code")
	d, known := i.devices.get(code)
	switch {
	case !known:
		return login{}, refuse("invalid_grant", "the device code is unknown or used")
	case d == nil:
		return login{}, refuse("expired_token", "the device code has expired: start again")
	}
	early := i.now().Sub(d.polled) < d.interval/2 // half, for the network's jitter
	d.polled = i.now()
	switch {
	case d.clientID != client:
		return login{}, refuse("invalid_grant", "the device code was given to another client")
	case d.challenge != "" && !verifies(values.Get("code_verifier"), d.challenge):
		return login{}, refuse("invalid_grant", "code_verifier does not answer the code_challenge")
	case !d.decided && early:
		d.interval += slowDown
		return login{}, refuse("slow_down", "")
	case !d.decided:
		return login{}, refuse("authorization_pending", "")
	}
	i.devices.remove(code)
	if d.denied {
		return login{}, refuse("access_denied", "the person refused")
	}
	return d.login, nil
}
