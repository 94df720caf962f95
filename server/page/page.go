// Package page is the site for people: who got certificates, what one of them says, whom
// to trust, and how the CA is. It is made whole on the server, works without JavaScript,
// and shows nothing to whoever may not read.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/semaphore"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/terminal"
	"github.com/mayfly-ca/mayfly/server"
	"github.com/mayfly-ca/mayfly/server/login"
)

// What one page may cost.
const (
	rendersAtOnce = 8
	onPage        = 50              // certificates
	showTime      = 2 * time.Second // of all that one page asks logs for

	maxQuery, maxPath = 8 << 10, 2 << 10 // bytes
)

// Index finds certificates: index.Index.
type Index interface {
	Search(ctx context.Context, q index.Query) (index.Page, error)
	Counts(ctx context.Context, since time.Time) ([]index.Count, error)
}

// Entries shows what logs hold: follow.Follower.
type Entries interface {
	Show(ctx context.Context, log [32]byte, index uint64) (follow.Shown, error)
}

// CA is what the page shows of the service.
type CA interface {
	// Trust is what clients are told to trust, and the first root of the TUF repository:
	// nil where there is none.
	Trust() (trustroot.History, []byte, error)
	Health(ctx context.Context) Health
	// Refusals are the last ones on record, the newest first.
	Refusals(ctx context.Context) ([]audit.Event, error)
}

// Health is how the CA is.
type Health struct {
	Dependencies []server.Standing
	Logs         []follow.Status
	Expiries     []Expiry // the first to come first
}

// Expiry is when something that issuing needs ends.
type Expiry struct {
	What string
	At   time.Time
}

// Options are what a Page works with. Index and Entries may be nil.
type Options struct {
	Config    Config
	PublicURL string
	CA        CA
	Index     Index
	Entries   Entries
	Login     *login.Login // for access login
	Timeout   time.Duration
	Now       func() time.Time
	Logger    *slog.Logger
}

// Page serves the site.
type Page struct {
	o       Options
	renders *semaphore.Weighted
	chart   chart
}

// New makes a Page.
func New(o Options) *Page {
	o.PublicURL = strings.TrimSuffix(o.PublicURL, "/")
	return &Page{o: o, renders: semaphore.NewWeighted(rendersAtOnce)}
}

// values are what a template shows.
type values map[string]any

// View is one page; all but the last are in the navigation.
type View struct {
	Path, Title, template string
	show                  func(*Page, *http.Request) (any, error)
}

const certificatesPath, assetsPath = "/certificates/", "/assets/"

var views = []View{
	{"/", "Issued", "feed", (*Page).feed},
	{"/search", "Search", "search", (*Page).search},
	{"/revocations", "Revoked", "search", (*Page).search},
	{"/refusals", "Refused", "refusals", (*Page).refusals},
	{"/trust", "Trust", "trust", (*Page).trust},
	{"/health", "Health", "health", (*Page).health},
	{certificatesPath, "Certificate", "certificate", (*Page).certificate},
}

// Paths are those beside /, each with its method.
func (p *Page) Paths() map[string]string {
	all := map[string]string{assetsPath: http.MethodGet}
	for _, v := range views[1:] {
		all[v.Path] = http.MethodGet
	}
	if p.o.Login != nil {
		all[login.Path], all[login.Callback], all[login.Logout] = http.MethodGet, http.MethodGet, http.MethodPost
	}
	return all
}

//go:embed site
var site embed.FS

// templates are each page within the layout. A mistake in one ends every test.
var templates = sync.OnceValue(func() map[string]*template.Template {
	layout := template.Must(template.New("layout.html").Funcs(template.FuncMap{
		"date":  func(t time.Time) string { return t.UTC().Format("2 January 2006") },
		"time":  func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"args":  func(all ...any) []any { return all },
		"bare":  func(s string) string { return strings.TrimPrefix(s, "https://") },
		"count": func(n any) string { i, _ := strconv.ParseInt(fmt.Sprint(n), 10, 64); return humanize.Comma(i) },
		"asset": func(name string) string {
			b, _ := site.ReadFile("site/" + name) // the address changes with what is in it
			sum := sha256.Sum256(b)
			return assetsPath + name + "?v=" + hex.EncodeToString(sum[:6])
		},
	}).ParseFS(site, "site/layout.html", "site/parts.html"))
	all := map[string]*template.Template{"problem": nil}
	for _, v := range views {
		all[v.template] = nil
	}
	for name := range all {
		all[name] = template.Must(template.Must(layout.Clone()).ParseFS(site, "site/"+name+".html"))
	}
	return all
})

// headers let the browser load and run what this host serves as files, and nothing else.
var headers = map[string]string{
	"Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
	"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
	"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
}

// ServeHTTP answers. The server has limited the client's rate before.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for name, value := range headers {
		w.Header().Set(name, value)
	}
	ctx, cancel := context.WithTimeout(r.Context(), p.o.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	var err error
	switch at := r.URL.Path; {
	case len(r.URL.RawQuery) > maxQuery || len(at) > maxPath:
		err = fault.New(fault.RequestMalformed, "The address is longer than %d bytes. Search for less at once.", maxQuery)
	case strings.HasPrefix(at, assetsPath) && path.Ext(at) != ".html":
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		http.ServeFileFS(w, r, site, "site/"+path.Base(at))
	case p.o.Login != nil && at == login.Path:
		err = p.o.Login.Begin(w, r)
	case p.o.Login != nil && at == login.Callback:
		err = p.o.Login.Finish(w, r)
	case p.o.Login != nil && at == login.Logout:
		p.o.Login.End(w, r)
	default:
		err = p.show(w, r)
	}
	if err != nil {
		p.problem(w, r, err)
	}
}

// admit says who may see the page; the failure tells a stranger why they may not.
func (p *Page) admit(r *http.Request) (who string, err error) {
	switch p.o.Config.Access {
	case Open:
	case Login:
		var ok bool
		if who, ok = p.o.Login.Who(r); !ok {
			return "", fault.New(fault.TokenMissing, "This page shows who got certificates, so it is for people whom the CA's operators let read that. Sign in, and you are told whether you are one.")
		}
	default:
		// A name of its own could be a foreign page's, which has a browser read this
		// one (DNS rebinding); a proxy speaks for whoever it likes.
		host := (&url.URL{Host: r.Host}).Hostname()
		if !server.ClientAddress(r.Context()).IsLoopback() || !loopback.Host(host) || r.Header.Get("X-Forwarded-For")+r.Header.Get("Forwarded")+r.Header.Get("Via") != "" {
			return "", fault.New(fault.AccessDenied, "This page is for people at the machine itself, by the address localhost or 127.0.0.1. Its operators can let others sign in, with page.access: login.")
		}
	}
	return who, nil
}

// show makes the page at the path for whoever may see it, once there is a place for it.
func (p *Page) show(w http.ResponseWriter, r *http.Request) error {
	who, err := p.admit(r)
	if err != nil {
		return err
	}
	if p.renders.Acquire(r.Context(), 1) != nil {
		return fault.New(fault.Overloaded, "Too many pages are being made. Try again in a moment.")
	}
	defer p.renders.Release(1)
	for _, v := range views {
		if v.Path != r.URL.Path && (v.Path != certificatesPath || !strings.HasPrefix(r.URL.Path, v.Path)) {
			continue
		}
		content, err := v.show(p, r)
		if file, ok := content.([]byte); ok && err == nil {
			w.Header().Set("Content-Type", "application/x-pem-file")
			_, _ = w.Write(file)
			return nil
		}
		if err == nil {
			err = p.render(w, http.StatusOK, v.template, values{"Title": v.Title, "Path": v.Path, "Who": p.clean(who), "Content": content})
		}
		return err
	}
	return fault.New(fault.RouteUnknown, "There is no page at this address.")
}

func (p *Page) render(w http.ResponseWriter, code int, name string, frame values) error {
	var b bytes.Buffer
	frame["Views"] = views[:len(views)-1]
	if err := templates()[name].ExecuteTemplate(&b, "layout.html", frame); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(code)
	_, _ = b.WriteTo(w)
	return nil
}

// titles are those of what is wrong.
var titles = map[fault.Kind]string{
	fault.Malformed: "That can’t be looked for", fault.Unauthenticated: "Please sign in", fault.Denied: "Not for you", fault.NotFound: "Nothing here",
}

// problem says in words what is wrong, and what can be done.
func (p *Page) problem(w http.ResponseWriter, r *http.Request, err error) {
	f := fault.From(err)
	if r.Context().Err() != nil && f.Kind() == fault.Internal {
		f = fault.From(r.Context().Err()).Because(err)
	}
	code, words := server.Answer(f)
	title, known := titles[f.Kind()]
	if !known {
		title = "Not now"
		p.o.Logger.LogAttrs(r.Context(), slog.LevelWarn, "a page couldn't be shown", slog.String("path", path.Clean(r.URL.Path)), slog.Any("error", err))
	}
	content := values{"Title": title, "Words": p.clean(words), "Provider": p.o.Config.Login.Issuer}
	if f.Kind() == fault.Unauthenticated { // a browser can't answer 401 here
		code = http.StatusForbidden
	}
	if p.o.Login != nil && code == http.StatusForbidden {
		content["SignIn"] = login.To(r)
	}
	if err := p.render(w, code, "problem", values{"Title": title, "Path": "", "Who": "", "Content": content}); err != nil {
		http.Error(w, words, code)
	}
}

// emails are addresses within a text: their domain is the group. What follows the @ of a
// workflow (`release.yml@refs/tags/v1`) is none.
var emails = regexp.MustCompile(`[^\s@/<>"']+@((?:[\p{L}\p{N}-]+\.)+\p{L}{2,})`)

func (p *Page) masks() bool { return p.o.Config.ShowEmails == emailsDomain }

// clean is a text from outside as it is shown: without what deceives its reader, and
// without addresses where they aren't to be seen. The templates escape it for HTML.
func (p *Page) clean(s string) string {
	if p.masks() {
		s = emails.ReplaceAllString(s, "…@$1")
	}
	return terminal.Line(s)
}

// cleaner cleans what is said of one certificate, whose name is masked however it is written.
func (p *Page) cleaner(san, kind string) func(string) string {
	if at := strings.LastIndexByte(san, '@'); p.masks() && kind == "email" && at >= 0 {
		return func(s string) string { return p.clean(strings.ReplaceAll(s, san, "…"+san[at:])) }
	}
	return p.clean
}
