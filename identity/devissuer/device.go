package devissuer

import (
	"crypto/rand"
	"fmt"
	"math/big"
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
	userCode string // userCodeLength letters, without the hyphen
	interval time.Duration
	polled   time.Time
	state    deviceState
}

type deviceState uint8

const (
	devicePending deviceState = iota
	deviceApproved
	deviceDenied
)

// startDevice is the device authorization endpoint (RFC 8628 §3.1 and §3.2).
// PKCE is used when the client asks for it, as Sigstore's clients do.
func (i *Issuer) startDevice(r *http.Request, values url.Values) (map[string]any, error) {
	client, problem := clientOf(r, values)
	if problem == nil && !hasScope(values.Get("scope"), "openid") {
		problem = refuse("invalid_scope", "scope must hold openid")
	}
	if problem == nil && values.Get("code_challenge") != "" {
		problem = checkChallenge(values)
	}
	if problem != nil {
		return nil, problem
	}
	userCode, err := newUserCode()
	if err != nil {
		return nil, err
	}
	deviceCode := rand.Text()
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

// newUserCode makes a code that a person types: 20⁸ possibilities.
func newUserCode() (string, error) {
	var b strings.Builder
	for range userCodeLength {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(userCodeLetters))))
		if err != nil {
			return "", fmt.Errorf("devissuer: making a user code: %w", err)
		}
		b.WriteByte(userCodeLetters[n.Int64()])
	}
	return b.String(), nil
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

// showDevice is the page on which a person enters the user code (RFC 8628 §3.3).
func showDevice(w http.ResponseWriter, _ *http.Request, values url.Values) {
	devicePage(w, http.StatusOK, values, "")
}

// finishDevice takes the page: the person lets the device in, or refuses it.
func (i *Issuer) finishDevice(w http.ResponseWriter, _ *http.Request, values url.Values) {
	deny := values.Get("action") == "deny"
	who, wrong := readPerson(values)
	if wrong != "" && !deny {
		devicePage(w, http.StatusUnprocessableEntity, values, wrong)
		return
	}
	typed := plainUserCode(values.Get("user_code"))
	code := i.devices.find(func(d device) bool { return d.userCode == typed && d.state == devicePending })
	decided := false
	i.devices.change(code, func(d *device) bool {
		if d.state == devicePending {
			decided = true
			d.person, d.state = who, deviceApproved
			if deny {
				d.person, d.state = person{}, deviceDenied
			}
		}
		return true
	})
	switch {
	case !decided:
		devicePage(w, http.StatusUnprocessableEntity, values, "This code is unknown, used or expired. Enter the code that the program shows.")
	case deny:
		servePage(w, http.StatusOK, page{Title: "Refused", Heading: "Sign-in refused", Text: "The program gets no token. You can close this page."})
	default:
		servePage(w, http.StatusOK, page{Title: "Signed in", Heading: "You are signed in", Text: "Go back to the program; it goes on by itself. You can close this page."})
	}
}

// redeemDevice answers a poll (RFC 8628 §3.4 and §3.5).
func (i *Issuer) redeemDevice(client string, values url.Values) (login, *oauthError) {
	var done login
	var problem *oauthError
	now := i.now()
	known, expired := i.devices.change(values.Get("device_code"), func(d *device) (keep bool) {
		early := now.Sub(d.polled) < d.interval/2 // half, for the network's jitter
		d.polled = now
		switch {
		case d.clientID != client:
			problem = refuse("invalid_grant", "the device code was given to another client")
			return true
		case d.challenge != "" && !verifies(values.Get("code_verifier"), d.challenge):
			problem = refuse("invalid_grant", "code_verifier does not answer the code_challenge")
			return true
		case d.state == deviceDenied:
			problem = refuse("access_denied", "the person refused")
			return false
		case d.state == deviceApproved:
			done = d.login
			return false
		case early:
			d.interval += slowDown
			problem = refuse("slow_down", "")
			return true
		default:
			problem = refuse("authorization_pending", "")
			return true
		}
	})
	switch {
	case !known:
		problem = refuse("invalid_grant", "the device code is unknown or used")
	case expired:
		problem = refuse("expired_token", "the device code has expired: start again")
	}
	return done, problem
}
