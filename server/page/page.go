// Package page is the site for people: who got certificates, what one of them says, whom
// to trust, and how the CA is. It is made whole on the server, works without JavaScript,
// and shows nothing to whoever may not read.
package page

import (
	"bytes"
	"cmp"
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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/server"
)

// What one page may cost.
const (
	rendersAtOnce = 8
	onPage        = 50 // certificates
	maxQuery      = 8 << 10
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
	// Rules are those of who may read: sessions end when they change.
	Rules() string
}

// Health is how the CA is.
type Health struct {
	Dependencies []server.Standing
	Logs         []follow.Status
	Expiries     []Expiry
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
	Rights    Rights       // for access login
	Client    *http.Client // to the provider, for access login
	Timeout   time.Duration
	Now       func() time.Time
	Logger    *slog.Logger
}

// Page serves the site.
type Page struct {
	o        Options
	cookies  *cookies  // nil but for access login
	provider *provider // likewise
	renders  chan struct{}
	chart    chart
}

// New makes a Page. The key of the cookies is read, and made where there is none.
func New(o Options) (*Page, error) {
	p := &Page{o: o, renders: make(chan struct{}, rendersAtOnce)}
	if o.Config.Access != Login {
		return p, nil
	}
	key, err := readKey(string(o.Config.Login.KeyFile))
	if err != nil {
		return nil, fmt.Errorf("page: the key of the session cookies: %w", err)
	}
	p.provider = &provider{config: o.Config.Login, callback: strings.TrimSuffix(o.PublicURL, "/") + callbackPath, client: o.Client}
	p.cookies, err = newCookies(key, strings.HasPrefix(o.PublicURL, "https://"), o.Now)
	return p, err
}

// view is one page; its path is that of the template, too.
type view struct {
	path, title, template string
	show                  func(*Page, *http.Request, visitor) (any, error)
}

var views = []view{
	{"/", "Issued", "feed", (*Page).feed},
	{"/search", "Search", "search", (*Page).search},
	{"/revocations", "Revoked", "search", (*Page).revocations},
	{"/refusals", "Refused", "refusals", (*Page).refusals},
	{"/trust", "Trust", "trust", (*Page).trust},
	{"/health", "Health", "health", (*Page).health},
	{certificatesPath, "Certificate", "certificate", (*Page).certificate},
}

const certificatesPath, assetsPath = "/certificates/", "/assets/"

// Reads are the paths for GET beside /.
func (p *Page) Reads() []string {
	all := []string{assetsPath}
	for _, v := range views[1:] {
		all = append(all, v.path)
	}
	if p.cookies != nil {
		all = append(all, loginPath, callbackPath)
	}
	return all
}

// Posts are the paths for POST.
func (p *Page) Posts() []string {
	if p.cookies == nil {
		return nil
	}
	return []string{logoutPath}
}

//go:embed site
var site embed.FS

// templates are each page within the layout. A mistake in one ends every test.
var templates = sync.OnceValue(func() map[string]*template.Template {
	layout := template.Must(template.New("layout.html").Funcs(template.FuncMap{
		"date":  func(t time.Time) string { return t.UTC().Format("2 January 2006") },
		"time":  func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"count": grouped, "until": until, "asset": asset,
	}).ParseFS(site, "site/layout.html", "site/parts.html"))
	all := map[string]*template.Template{}
	for _, name := range []string{"feed", "search", "refusals", "trust", "health", "certificate", "problem"} {
		all[name] = template.Must(template.Must(layout.Clone()).ParseFS(site, "site/"+name+".html"))
	}
	return all
})

// asset is the address of a file, which changes with what is in it.
func asset(name string) string {
	b, _ := site.ReadFile("site/" + name) // of which there is one, as tests show
	sum := sha256.Sum256(b)
	return assetsPath + name + "?v=" + hex.EncodeToString(sum[:6])
}

var assets = map[string]string{"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "mayfly.svg": "image/svg+xml"}

// policy lets the browser load and run what this host serves as files, and nothing else.
const policy = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// ServeHTTP answers. The server has limited the client's rate before.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for name, value := range map[string]string{
		"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
	} {
		h.Set(name, value)
	}
	if name, ok := strings.CutPrefix(r.URL.Path, assetsPath); ok && assets[name] != "" {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		p.write(w, http.StatusOK, assets[name], must(site.ReadFile("site/"+name)))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), p.o.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	var err error
	var who visitor
	switch {
	case len(r.URL.RawQuery) > maxQuery || len(r.URL.Path) > maxReturn:
		err = fault.New(fault.RequestMalformed, "The address is longer than %d bytes. Search for less at once.", maxQuery)
	case p.cookies != nil && r.URL.Path == loginPath:
		err = p.login(w, r)
	case p.cookies != nil && r.URL.Path == callbackPath:
		err = p.callback(w, r)
	case p.cookies != nil && r.URL.Path == logoutPath:
		err = p.logout(w, r)
	default:
		if who, err = p.admit(r); err == nil {
			err = p.show(w, r, who)
		}
	}
	if err != nil {
		p.problem(w, r, who, err)
	}
}

// show makes the page at the path, once there is a place for it.
func (p *Page) show(w http.ResponseWriter, r *http.Request, who visitor) error {
	select {
	case p.renders <- struct{}{}:
		defer func() { <-p.renders }()
	case <-r.Context().Done():
		return fault.New(fault.Overloaded, "Too many pages are being made. Try again in a moment.")
	}
	for _, v := range views {
		if v.path != r.URL.Path && (v.path != certificatesPath || !strings.HasPrefix(r.URL.Path, v.path)) {
			continue
		}
		content, err := v.show(p, r, who)
		if err != nil {
			return err
		}
		if file, ok := content.(download); ok {
			w.Header().Set("Content-Disposition", `attachment; filename="`+file.name+`"`)
			p.write(w, http.StatusOK, "application/x-pem-file", file.data)
			return nil
		}
		return p.render(w, http.StatusOK, v.template, frame{Title: v.title, Path: v.path, Who: p.clean(who.Who), SignedIn: p.cookies != nil, Content: content})
	}
	return fault.New(fault.RouteUnknown, "There is no page at this address.")
}

// download is a file in a page's place.
type download struct {
	name string
	data []byte
}

// frame is what is around each page.
type frame struct {
	Title, Path, Who string
	SignedIn         bool // whether who sees it had to sign in
	Content          any
}

// Views are the pages that the navigation has.
func (frame) Views() []struct{ Path, Title string } {
	var all []struct{ Path, Title string }
	for _, v := range views[:len(views)-1] {
		all = append(all, struct{ Path, Title string }{v.path, v.title})
	}
	return all
}

func (p *Page) render(w http.ResponseWriter, code int, name string, f frame) error {
	var b bytes.Buffer
	if err := templates()[name].ExecuteTemplate(&b, "layout.html", f); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	p.write(w, code, "text/html; charset=utf-8", b.Bytes())
	return nil
}

func (p *Page) write(w http.ResponseWriter, code int, media string, body []byte) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// statuses are what browsers are told; all else is ours.
var statuses = map[fault.Kind]struct {
	code  int
	title string
}{
	fault.Malformed:        {http.StatusBadRequest, "That can't be looked for"},
	fault.Unauthenticated:  {http.StatusForbidden, "Please sign in"},
	fault.Denied:           {http.StatusForbidden, "Not for you"},
	fault.NotFound:         {http.StatusNotFound, "Nothing here"},
	fault.Unavailable:      {http.StatusServiceUnavailable, "Not now"},
	fault.DeadlineExceeded: {http.StatusGatewayTimeout, "That took too long"},
}

// problem says in words what is wrong, and what can be done.
func (p *Page) problem(w http.ResponseWriter, r *http.Request, who visitor, err error) {
	f := fault.From(err)
	if r.Context().Err() != nil && f.Kind() == fault.Internal {
		f = fault.From(r.Context().Err()).Because(err)
	}
	s, known := statuses[f.Kind()]
	words := f.Public
	if !known {
		s.code, s.title, words = http.StatusInternalServerError, "Our mistake", "This page couldn't be made. The service's log says why."
	}
	if f.Kind() == fault.DeadlineExceeded {
		words = "The page wasn't ready in time. Try again, or look for less."
	}
	if s.code >= http.StatusInternalServerError {
		p.o.Logger.LogAttrs(r.Context(), slog.LevelWarn, "a page couldn't be shown", slog.String("path", path.Clean(r.URL.Path)), slog.Any("error", err))
	}
	sign := ""
	if p.cookies != nil && s.code == http.StatusForbidden {
		back := r.URL.RequestURI()
		if strings.HasPrefix(back, loginPath) {
			back = "/"
		}
		sign = loginPath + "?return=" + url.QueryEscape(local(back))
	}
	content := struct{ Title, Words, SignIn, Provider string }{s.title, p.clean(sentence(words)), sign, p.o.Config.Login.Issuer}
	if err := p.render(w, s.code, "problem", frame{Title: s.title, Who: p.clean(who.Who), SignedIn: who.Who != "", Content: content}); err != nil {
		http.Error(w, words, s.code)
	}
}

// sentence begins as a sentence does: failures of the API don't.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// must is for what is part of the program.
func must(b []byte, _ error) []byte { return b }

// grouped writes a number, which is no fraction, with its thousands apart.
func grouped(n any) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "\u202f" + s[at:]
	}
	return s
}

// until is a length of time in words, in its largest unit.
func until(d time.Duration) string {
	for _, unit := range []struct {
		name string
		long time.Duration
	}{{"year", 365 * 24 * time.Hour}, {"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}} {
		if n := int(d / unit.long); n > 0 {
			if n == 1 {
				return "1 " + unit.name
			}
			return strconv.Itoa(n) + " " + unit.name + "s"
		}
	}
	return cmp.Or(map[bool]string{true: "less than a minute"}[d > 0], "over")
}
