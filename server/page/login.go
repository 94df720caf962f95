package page

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"google.golang.org/grpc/peer"

	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// Rights says who may read: access.Access.
type Rights interface {
	Grant(ctx context.Context, want access.Right, token string, from netip.Addr) (access.Grant, error)
}

const (
	loginPath, callbackPath, logoutPath = "/login", "/login/callback", "/logout"

	loginTime      = 10 * time.Minute // to sign in at the provider
	defaultSession = time.Hour
	maxReturn      = 2048 // bytes of the address to go back to
)

// The cookies.
const (
	sessionCookie = "session"
	loginCookie   = "login"
)

// visitor is who asks: in a session, somebody who was found to be a reader.
type visitor struct {
	Who  string `json:"who"`
	Rule string `json:"rule"`
}

// attempt is a login under way.
type attempt struct {
	State    string `json:"state"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"`
	Return   string `json:"return"`
}

// provider is where people sign in. It is found at the first login: while it is down
// all else goes on.
type provider struct {
	config   LoginConfig
	callback string
	client   *http.Client
	mu       sync.Mutex // guards found
	found    *oidc.Provider
}

// find discovers the provider, once.
func (p *provider) find(ctx context.Context) (*oidc.Provider, *oauth2.Config, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found == nil {
		// It remembers the context for later fetches of keys, which outlive this request.
		found, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.config.Issuer)
		if err != nil {
			return nil, nil, fault.New(fault.IssuerUnavailable, "Nobody can sign in now: the provider %s doesn't answer as it should. Try again.", p.config.Issuer).Because(err)
		}
		p.found = found
	}
	c := &oauth2.Config{ClientID: p.config.ClientID, Endpoint: p.found.Endpoint(), RedirectURL: p.callback, Scopes: append([]string{oidc.ScopeOpenID}, p.config.Scopes...)}
	if len(p.config.Scopes) == 0 {
		c.Scopes = append(c.Scopes, "email")
	}
	if !p.config.ClientSecret.IsZero() {
		secret, err := p.config.ClientSecret.Read()
		if err != nil {
			return nil, nil, fmt.Errorf("page: the client's secret: %w", err)
		}
		c.ClientSecret = string(secret)
	}
	return p.found, c, nil
}

// redeem makes an ID token of a code, which is the one of this attempt.
func (p *provider) redeem(ctx context.Context, code string, a attempt) (string, error) {
	found, client, err := p.find(ctx)
	if err != nil {
		return "", err
	}
	refused := func(cause error) error {
		return fault.New(fault.TokenMalformed, "Signing in failed: the provider's answer isn't one to this attempt. Sign in again.").Because(cause)
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := client.Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return "", refused(err)
	}
	raw, _ := token.Extra("id_token").(string)
	verified, err := found.Verifier(&oidc.Config{ClientID: p.config.ClientID}).Verify(ctx, raw)
	if err != nil {
		return "", refused(err)
	}
	if subtle.ConstantTimeCompare([]byte(verified.Nonce), []byte(a.Nonce)) != 1 {
		return "", refused(errors.New("another nonce"))
	}
	return raw, nil
}

// admit says who may see the page; the failure tells a stranger why they may not.
func (p *Page) admit(r *http.Request) (visitor, error) {
	switch p.o.Config.Access {
	case Open:
		return visitor{}, nil
	case Loopback:
		// A name of its own could be a foreign page's, which has a browser read this
		// one (DNS rebinding); a proxy speaks for whoever it likes.
		host := (&url.URL{Host: r.Host}).Hostname()
		if address(r.Context()).IsLoopback() && loopback.Host(host) && r.Header.Get("X-Forwarded-For")+r.Header.Get("Forwarded")+r.Header.Get("Via") == "" {
			return visitor{}, nil
		}
		return visitor{}, fault.New(fault.AccessDenied, "This page is for people at the machine itself, by the address localhost or 127.0.0.1. Its operators can let others sign in, with page.access: login.")
	}
	who, ok := get[visitor](p.cookies, r, sessionCookie, p.o.CA.Rules())
	if !ok {
		return who, fault.New(fault.TokenMissing, "This page shows who got certificates, so it is for people whom the CA's operators let read that. Sign in, and you are told whether you are one.")
	}
	return who, nil
}

// address is the client's, as the server found it out.
func address(ctx context.Context) netip.Addr {
	from, ok := peer.FromContext(ctx)
	if !ok || from.Addr == nil {
		return netip.Addr{}
	}
	if at, err := netip.ParseAddrPort(from.Addr.String()); err == nil {
		return at.Addr().Unmap()
	}
	at, _ := netip.ParseAddr(from.Addr.String())
	return at.Unmap()
}

// login sends somebody to the provider.
func (p *Page) login(w http.ResponseWriter, r *http.Request) error {
	_, client, err := p.provider.find(r.Context())
	if err != nil {
		return err
	}
	a := attempt{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Return: local(r.URL.Query().Get("return"))}
	if err := put(p.cookies, w, loginCookie, "", a, loginTime); err != nil {
		return err
	}
	http.Redirect(w, r, client.AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), http.StatusSeeOther)
	return nil
}

// local is an address on this page, and the feed's for any other.
func local(to string) string {
	u, err := url.Parse(to)
	if err != nil || len(to) > maxReturn || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n\t") || u.Host != "" || u.Scheme != "" {
		return "/"
	}
	return to
}

// callback is where the provider sends somebody back to.
func (p *Page) callback(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	a, ok := get[attempt](p.cookies, r, loginCookie, "")
	p.cookies.drop(w, loginCookie)
	if !ok || subtle.ConstantTimeCompare([]byte(a.State), []byte(q.Get("state"))) != 1 {
		return fault.New(fault.TokenMissing, "This isn't the answer to a login that this browser began, or it took longer than ten minutes. Sign in again.")
	}
	if q.Get("code") == "" {
		return fault.New(fault.AccessDenied, "The provider let nobody sign in. Sign in again, or ask the provider's operators.").Because(fmt.Errorf("the provider answered %q", q.Get("error")))
	}
	token, err := p.provider.redeem(r.Context(), q.Get("code"), a)
	if err != nil {
		return err
	}
	g, err := p.o.Rights.Grant(r.Context(), access.Read, token, address(r.Context()))
	if err != nil {
		p.o.Logger.LogAttrs(r.Context(), slog.LevelInfo, "the page refused somebody who signed in", slog.String("issuer", g.Issuer), slog.String("subject", g.Subject), slog.Any("error", err))
		return err
	}
	life := p.o.Config.Login.Session
	if life == 0 {
		life = defaultSession
	}
	if err := put(p.cookies, w, sessionCookie, p.o.CA.Rules(), visitor{Who: g.SAN, Rule: g.Rule}, life); err != nil {
		return err
	}
	http.Redirect(w, r, a.Return, http.StatusSeeOther)
	return nil
}

// logout ends a session.
func (p *Page) logout(w http.ResponseWriter, r *http.Request) error {
	p.cookies.drop(w, sessionCookie)
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}
