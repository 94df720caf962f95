package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// token finds the identity token, prints what came of each source, and returns
// the name of the one that gave it.
func (r *request) token(ctx context.Context) (*client.Token, string, error) {
	token, attempts, err := client.FindToken(ctx, r.sources())
	failed := len(attempts) > 0 && attempts[len(attempts)-1].Outcome == client.OutcomeFailed
	if err == nil || (failed && len(attempts) > 1) { // otherwise the error tells the same
		r.say("identity token:")
		for _, a := range attempts {
			r.say(fmt.Sprintf("  %-18s %s", a.Source, a.Outcome))
		}
	}
	if err != nil {
		return nil, "", err
	}
	r.say(fmt.Sprintf("  says %q, by %q", token.Challenge(), token.Issuer))
	return token, attempts[len(attempts)-1].Source, nil
}

// sources is the one source that the command line names, or all that may be
// there without being named.
func (r *request) sources() []client.Source {
	browser := client.Source{Name: "browser login", Fetch: r.login((*client.Login).Browser)}
	switch {
	case r.tokenFile != "":
		return []client.Source{client.TokenFile(r.tokenFile)}
	case r.tokenEnv != "":
		return []client.Source{client.TokenEnv(r.tokenEnv, os.Getenv)}
	case r.tokenStdin:
		return []client.Source{client.TokenReader("standard input", r.In)}
	case r.device:
		return []client.Source{{Name: "device login", Fetch: r.login((*client.Login).Device)}}
	case r.browser:
		return []client.Source{browser}
	}
	if !r.interactive {
		browser.Fetch = func(context.Context) (string, error) {
			return "", &client.Absent{Reason: "not at a terminal (give --browser or --device to log in all the same)"}
		}
	}
	ambient := client.Ambient(os.Getenv, r.http, r.retry, r)
	if !r.caNamed { // whoever listens on the default port would get it
		for i := range ambient {
			ambient[i].Fetch = func(context.Context) (string, error) {
				return "", &client.Absent{Reason: "not looked for: no CA was named to send it to (--ca or " + caEnv + ")"}
			}
		}
	}
	return append(ambient, browser)
}

// login makes a source of a flow at the issuer.
func (r *request) login(flow func(*client.Login, context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		issuer, err := r.loginIssuer(ctx)
		if err != nil {
			return "", err
		}
		l := &client.Login{
			Issuer: issuer, ClientID: r.Ask(ctx, issuer), RedirectURL: r.redirectURL,
			HTTP: r.http, Plaintext: r.allowHTTP, Say: r.ask,
		}
		if !r.noBrowser {
			l.Open = openBrowser
		}
		if r.clientSecret != "" {
			secret, err := readInput(nil, r.clientSecret)
			if err != nil {
				return "", err
			}
			l.ClientSecret = strings.TrimRight(string(secret), "\r\n")
		}
		return flow(l, ctx)
	}
}

// loginIssuer is --issuer, or the single one that a CA on this machine accepts:
// a CA elsewhere doesn't choose where a person types a password.
func (r *request) loginIssuer(ctx context.Context) (string, error) {
	if r.issuer != "" {
		return r.issuer, nil
	}
	issuers, err := client.Issuers(ctx, r.http, r.retry, r.ca)
	if err != nil {
		return "", fmt.Errorf("asking the CA for its issuers, since no --issuer was given: %w", err)
	}
	u, err := url.Parse(r.ca)
	if err == nil && loopback.Host(u.Hostname()) && len(issuers) == 1 {
		only := issuers[0].URL
		if _, err := client.CheckURL("the issuer", only, r.allowHTTP); err != nil {
			return "", err
		}
		r.say("issuer " + only + ", the one that the CA accepts")
		return only, nil
	}
	var urls []string
	for _, i := range issuers {
		urls = append(urls, i.URL)
	}
	return "", usage("give --issuer URL with one of the CA's issuers that you trust to log you in",
		"no issuer to log in at was given; the CA accepts:\n%s", strings.Join(urls, "\n"))
}

// Named implements [client.Audience]: --client-id, or the audience by which the CA takes
// tokens of the issuer. It asks REST; the audience is that of every Sigstore service
// where nobody says.
func (r *request) Named(ctx context.Context, issuer string) string {
	if r.clientID != "" || r.grpc != "" {
		return cmp.Or(r.clientID, identity.SharedAudience)
	}
	issuers, _ := client.Issuers(ctx, r.http, r.retry, r.ca) // what is wrong with the CA the request for a certificate says
	for _, i := range issuers {
		if i.URL == issuer {
			return cmp.Or(i.Audience, identity.SharedAudience)
		}
	}
	return identity.SharedAudience
}

// Ask implements [client.Audience]. Of its own accord this program asks for a token for
// every Sigstore service or for the CA itself, and never for one that a CA could use at
// a third service of its choice.
func (r *request) Ask(ctx context.Context, issuer string) string {
	named := r.Named(ctx, issuer)
	if named == r.clientID || named == identity.SharedAudience {
		return named
	}
	own := strings.TrimSuffix(r.ca, "/") + "/" // others may be beside it on its host
	if u, err := url.Parse(named); err == nil && strings.HasPrefix(strings.TrimSuffix(named, "/")+"/", own) && !strings.Contains(u.Path+"/", "/../") {
		r.say("audience " + named + ", which the CA names as its own")
		return named
	}
	r.say(fmt.Sprintf("audience %s; the CA names %q for this issuer: where that is right, give --client-id %s", identity.SharedAudience, named, named))
	return identity.SharedAudience
}

// openBrowser shows the URL, which is http or https, in the person's browser.
func openBrowser(url string) error {
	name, args := "xdg-open", []string{url}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", url}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return errors.New(name + " is not installed")
	}
	cmd := exec.Command(path, args...) //nolint:gosec,noctx // no shell, and the client has checked the scheme; the browser outlives us
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release() // the browser outlives this command
}
