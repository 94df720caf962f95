package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// Login gets a token from a person's login at an OpenID Connect issuer.
type Login struct {
	Issuer       string // checked by CheckURL
	ClientID     string // becomes the token's audience
	ClientSecret string // "" for a public client
	// RedirectURL is an http URL on a loopback address (RFC 8252 §7.3); port 0
	// or none takes a free one. "" is DefaultRedirectURL.
	RedirectURL string
	// HTTP speaks to the issuer.
	HTTP *http.Client
	// Plaintext allows endpoints of the issuer over http beyond loopback.
	Plaintext bool
	// Open shows a URL in the person's browser; nil leaves that to the person.
	Open func(url string) error
	// Say tells the person what to do, a line at a time.
	Say func(line string)
	// Now is the clock that the token's expiry is read against; nil is time.Now.
	Now func() time.Time
}

// DefaultRedirectURL is where the browser brings the code back to.
const DefaultRedirectURL = "http://127.0.0.1:0/auth/callback"

// Browser is the authorization code flow with PKCE (RFC 7636) in the person's
// browser. It waits for the person until ctx ends.
func (l *Login) Browser(ctx context.Context) (string, error) {
	ctx = oidc.ClientContext(ctx, l.HTTP)
	provider, config, offered, err := l.discover(ctx)
	if err == nil {
		err = l.checkEndpoint("authorization", config.Endpoint.AuthURL)
	}
	if err != nil {
		return "", err
	}
	back, err := listenForCode(ctx, l.RedirectURL)
	if err != nil {
		return "", err
	}
	defer back.close(ctx)

	config.RedirectURL = back.url
	verifier, nonce := oauth2.GenerateVerifier(), rand.Text()
	at := config.AuthCodeURL(back.state, oauth2.S256ChallengeOption(verifier), oidc.Nonce(nonce))
	l.Say("log in at " + at)
	if l.Open != nil {
		if err := l.Open(at); err != nil {
			l.Say("no browser could be opened (" + err.Error() + "): open the address yourself")
		}
	}
	code, err := back.wait(ctx, l.Issuer, offered.Issuer)
	if err != nil {
		return "", err
	}
	token, err := config.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		return "", l.oauthFault(ctx, "exchanging the code", err)
	}
	return l.identityToken(ctx, provider, token, nonce)
}

// Device is the device authorization grant (RFC 8628): the person logs in on
// any device with a short code. It polls until ctx or the code ends.
func (l *Login) Device(ctx context.Context) (string, error) {
	ctx = oidc.ClientContext(ctx, l.HTTP)
	provider, config, _, err := l.discover(ctx)
	if err != nil {
		return "", err
	}
	if config.Endpoint.DeviceAuthURL == "" {
		return "", problem(Misused, "use --browser instead", "the issuer %s has no device flow", l.Issuer)
	}
	if err := l.checkEndpoint("device authorization", config.Endpoint.DeviceAuthURL); err != nil {
		return "", err
	}
	verifier := oauth2.GenerateVerifier()
	grant, err := config.DeviceAuth(ctx, oauth2.S256ChallengeOption(verifier))
	if err != nil {
		return "", l.oauthFault(ctx, "starting the device flow", err)
	}
	l.Say(fmt.Sprintf("log in at %s with the code %s", grant.VerificationURI, grant.UserCode))
	if grant.VerificationURIComplete != "" {
		l.Say("or open " + grant.VerificationURIComplete)
	}
	token, err := config.DeviceAccessToken(ctx, grant, oauth2.VerifierOption(verifier))
	if err != nil {
		return "", l.oauthFault(ctx, "waiting for the login", err)
	}
	return l.identityToken(ctx, provider, token, "")
}

// discovered is what an issuer says of itself, beyond what the libraries read.
type discovered struct {
	Scopes  []string `json:"scopes_supported"`
	Methods []string `json:"token_endpoint_auth_methods_supported"`
	Issuer  bool     `json:"authorization_response_iss_parameter_supported"` // in every answer of the browser's: RFC 9207 §3
}

func (l *Login) discover(ctx context.Context) (provider *oidc.Provider, config *oauth2.Config, offered discovered, err error) {
	provider, err = oidc.NewProvider(ctx, l.Issuer)
	if err != nil {
		var mismatch *oidc.IssuerMismatchError
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return nil, nil, offered, ctx.Err()
		case errors.As(err, &mismatch):
			return nil, nil, offered, problem(Unverified, "give --issuer exactly as the issuer writes it",
				"the issuer at %s calls itself %q", l.Issuer, mismatch.Provided)
		}
		return nil, nil, offered, problem(Unavailable, "check --issuer: its discovery document is at /.well-known/openid-configuration",
			"the issuer %s can't be used", l.Issuer).because(err)
	}
	if err := provider.Claims(&offered); err != nil {
		return nil, nil, offered, problem(Unverified, "report it to the operator of the issuer", "the issuer's discovery document is malformed").because(err)
	}
	config = &oauth2.Config{ClientID: l.ClientID, ClientSecret: l.ClientSecret, Endpoint: provider.Endpoint(), Scopes: []string{oidc.ScopeOpenID}}
	if len(offered.Scopes) == 0 || slices.Contains(offered.Scopes, "email") {
		config.Scopes = append(config.Scopes, "email")
	}
	// Finding the style out by trial would send a code, which works once, twice.
	config.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	if l.ClientSecret != "" && (len(offered.Methods) == 0 || slices.Contains(offered.Methods, "client_secret_basic")) {
		config.Endpoint.AuthStyle = oauth2.AuthStyleInHeader // OpenID Connect Discovery §3: the default
	}
	return provider, config, offered, l.checkEndpoint("token", config.Endpoint.TokenURL)
}

// checkEndpoint keeps a discovery document from sending a person or a code to a
// scheme that a browser or a shell would act on, or over plaintext.
func (l *Login) checkEndpoint(what, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err == nil && u.Host != "" && (u.Scheme == "https" || (u.Scheme == "http" && (l.Plaintext || loopback.Host(u.Hostname())))) {
		return nil
	}
	return problem(Unverified, "report it to the operator of the issuer",
		"the issuer %s names a %s endpoint that is not an https URL", l.Issuer, what)
}

func (l *Login) oauthFault(ctx context.Context, doing string, err error) error {
	var answered *oauth2.RetrieveError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return problem(Unavailable, "try again, or give a longer --timeout", "%s took too long", doing)
	case errors.As(err, &answered) && answered.ErrorCode != "":
		// The body of a refusal is known to hold no token; its description is for the person.
		return problem(Refused, "", "%s: the issuer refused: %s", doing, oneLine(answered.ErrorCode+" "+answered.ErrorDescription))
	case errors.As(err, &answered) && answered.Response != nil:
		kind := Refused
		if passing(answered.Response.StatusCode) {
			kind = Unavailable
		}
		return problem(kind, "", "%s: the issuer answered %d", doing, answered.Response.StatusCode)
	default:
		return problem(Unavailable, "", "%s at %s failed", doing, l.Issuer).because(err)
	}
}

// identityToken takes the ID token out of the answer and checks it as OpenID
// Connect Core §3.1.3.7 asks: signature, issuer, audience, expiry and nonce.
func (l *Login) identityToken(ctx context.Context, provider *oidc.Provider, token *oauth2.Token, nonce string) (string, error) {
	raw, ok := token.Extra("id_token").(string)
	if !ok || raw == "" {
		return "", problem(Unverified, "check that the client may use the scope openid", "the issuer answered without an identity token")
	}
	id, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: l.ClientID, Now: l.Now}).Verify(ctx, raw)
	if err != nil {
		return "", problem(Unverified, "", "the issuer's identity token is not valid").because(err)
	}
	if nonce != "" && subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return "", problem(Unverified, "", "the issuer's identity token belongs to another login (its nonce differs)")
	}
	return raw, nil
}

// callback is the loopback listener that the browser brings the code to.
type callback struct {
	url     string
	state   string
	path    string
	server  *http.Server
	results chan codeResult
	serving sync.WaitGroup
}

type codeResult struct{ code, issuer, fault string }

func listenForCode(ctx context.Context, redirect string) (*callback, error) {
	u, err := url.Parse(cmp.Or(redirect, DefaultRedirectURL))
	if err != nil || u.Scheme != "http" || !loopback.Host(u.Hostname()) || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, problem(Misused, "use something like "+DefaultRedirectURL, "the redirect URL is not a plain http URL on a loopback address")
	}
	address, port := u.Hostname(), cmp.Or(u.Port(), "0")
	if net.ParseIP(address) == nil {
		address = "127.0.0.1" // localhost may also be ::1; browsers try both
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address, port))
	if err != nil {
		return nil, problem(Failed, "choose another port with --redirect-url", "listening for the browser").because(err)
	}
	_, port, err = net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	u.Host = net.JoinHostPort(u.Hostname(), port)
	u.Path = cmp.Or(u.Path, "/")
	c := &callback{url: u.String(), path: u.Path, state: rand.Text(), results: make(chan codeResult, 1)}
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 32 << 10}
	c.serving.Go(func() { _ = c.server.Serve(listener) }) // always http.ErrServerClosed, by close
	return c, nil
}

// ServeHTTP takes the one answer whose state is ours. Any page in the person's
// browser can knock here; a knock without the state changes nothing.
func (c *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), http.Header{
		"Content-Type": {"text/html; charset=utf-8"}, "Cache-Control": {"no-store"}, "Connection": {"close"},
		"Referrer-Policy": {"no-referrer"}, "Content-Security-Policy": {"default-src 'none'"}, // the code is in the URL
	})
	q := r.URL.Query()
	if r.Method != http.MethodGet || r.URL.Path != c.path ||
		subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(c.state)) != 1 {
		http.Error(w, "this is not the answer that mayfly is waiting for", http.StatusBadRequest)
		return
	}
	result := codeResult{code: q.Get("code"), issuer: q.Get("iss")}
	text := "You are logged in. You may close this page and go back to the terminal."
	if result.code == "" {
		result.fault = cmp.Or(oneLine(q.Get("error")+" "+q.Get("error_description")), "neither a code nor an error came back")
		text = "The login failed. Go back to the terminal."
	}
	select {
	case c.results <- result:
	default: // a second answer
	}
	_, _ = io.WriteString(w, "<!doctype html><title>mayfly</title><p>"+text+"</p>\n") // a closed browser is no fault
}

// wait returns the code. issuer is compared with RFC 9207's iss, where it is given,
// and announced says that it must be: an answer without it is another issuer's (§2.4).
func (c *callback) wait(ctx context.Context, issuer string, announced bool) (string, error) {
	select {
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return "", ctx.Err()
		}
		return "", problem(Unavailable, "try again, or use --device on a machine without a browser", "nobody logged in in time")
	case r := <-c.results:
		switch {
		case r.fault != "":
			return "", problem(Refused, "", "the issuer refused the login: %s", r.fault)
		case r.issuer != "" && r.issuer != issuer:
			return "", problem(Unverified, "", "the login was answered by another issuer, %q", r.issuer)
		case r.issuer == "" && announced:
			return "", problem(Unverified, "log in again, in a fresh browser window; if it goes on, report it to the operator of the issuer",
				"the login's answer doesn't say that it is by %s, which announces that its answers do (iss)", issuer)
		}
		return r.code, nil
	}
}

// close ends the listener after the answers in flight, and waits for it.
func (c *callback) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if c.server.Shutdown(ctx) != nil {
		_ = c.server.Close() // best effort: the process goes on without it
	}
	c.serving.Wait()
}
