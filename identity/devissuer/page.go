package devissuer

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

var (
	pageTemplate = template.Must(template.New("page").Parse(pageHTML))
	// styleHash lets the one style element in; no other style, script, image,
	// font or frame is let in.
	styleHash = func() string {
		sum := sha256.Sum256([]byte(pageCSS))
		return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
	}()
)

// page is what a page shows; what is empty isn't shown.
type page struct {
	Title, Heading, Text string
	Problem              string   // what is wrong with the form's input
	Code                 string   // a code to copy
	Form                 *signIn  // the sign-in form
	Links                []string // the issuer's addresses
	Redirect             string   // where the form's answer redirects to
}

// signIn is the sign-in form of both flows.
type signIn struct {
	Action      string
	Hidden      []field
	Email, Name string
	Device      bool // ask for the user code, and offer to refuse
	UserCode    string
}

type field struct{ Name, Value string }

func loginPage(w http.ResponseWriter, status int, values url.Values, problem string) {
	f := &signIn{Action: pathAuthorize, Email: values.Get("email"), Name: values.Get("name")}
	if f.Email == "" {
		f.Email = values.Get("login_hint") // OpenID Connect Core 1.0 §3.1.2.1
	}
	for _, name := range authorizeParams {
		if v := values.Get(name); v != "" {
			f.Hidden = append(f.Hidden, field{name, v})
		}
	}
	servePage(w, status, page{Title: "Sign in", Heading: "Sign in", Problem: problem, Form: f,
		Text: values.Get("client_id") + " asks who you are.", Redirect: values.Get("redirect_uri")})
}

func devicePage(w http.ResponseWriter, status int, values url.Values, problem string) {
	servePage(w, status, page{Title: "Connect a program", Heading: "Connect a program", Problem: problem,
		Text: "Check that the code is the one that your program shows.",
		Form: &signIn{Action: pathDevice, Device: true, UserCode: values.Get("user_code"),
			Email: values.Get("email"), Name: values.Get("name")}})
}

func problemPage(w http.ResponseWriter, text string) {
	servePage(w, http.StatusBadRequest, page{Title: "Can't sign in", Heading: "This sign-in can't go on", Text: text})
}

func (i *Issuer) showIndex(w http.ResponseWriter, _ *http.Request) {
	servePage(w, http.StatusOK, page{Title: "Issuer", Heading: "Development issuer",
		Text: "This issuer believes everybody. It is for development on this machine alone.",
		Links: []string{i.url + pathDiscovery, i.url + pathKeys, i.url + pathDevice,
			i.url + pathDirect + "?email=alice@example.com"}})
}

// servePage writes a page. Browsers apply form-action to where a form's answer
// redirects as well, so the client's redirect URI is named when there is one.
func servePage(w http.ResponseWriter, status int, p page) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, struct {
		page
		Style template.CSS
	}{p, template.CSS(pageCSS)}); err != nil { // #nosec G203 -- our own embedded style
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src '"+styleHash+
		"'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"+formTarget(p.Redirect))
	h.Set("X-Frame-Options", "DENY")
	// Not no-referrer: it would make browsers send "Origin: null" with the form.
	h.Set("Referrer-Policy", "same-origin")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // a failed write means that the client went away
}

// formTarget is the origin of a redirect URI as a CSP source. CSP has no syntax for
// IPv6 literals, so for one the scheme stands alone: the URI has been checked to be
// on loopback.
func formTarget(redirect string) string {
	u, err := url.Parse(redirect)
	switch {
	case err != nil || u.Host == "":
		return ""
	case strings.Contains(u.Host, "["):
		return " http:"
	default:
		return " http://" + u.Host
	}
}
