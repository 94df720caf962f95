package identity

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// FuzzClaims applies every type's rule, and the checks before it, to arbitrary
// claims: what comes out is a name that a certificate can hold.
func FuzzClaims(f *testing.F) {
	for _, doc := range []string{
		`{"sub":"alice","email":"alice@example.com","email_verified":true,"exp":1,"aud":["sigstore"]}`, `{"sub":"https://allowed.example/a"}`,
		`{"sub":"spiffe://example.org/a"}`, `{"sub":"x","kubernetes.io":{"namespace":"a","serviceaccount":{"name":"b"}}}`,
		`{"sub":"x","a":"y","exp":1e400}`, `{"sub":"x","a":"../y"}`,
	} {
		f.Add(doc)
	}
	var faults setting.Faults
	var rules []*issuer
	for i, c := range []IssuerConfig{
		{Type: TypeEmail}, {Type: TypeURI, SubjectDomain: "https://allowed.example"}, {Type: TypeUsername, SubjectDomain: "example.com"},
		{Type: TypeSPIFFE, SPIFFETrustDomain: "example.org"}, {Type: TypeKubernetes}, {Type: TypeChainguard}, {Type: TypeCI, Preset: "gitlab"},
	} {
		c.URL, c.Allow, c.Audiences = "https://issuer.example", "true", []string{"sigstore"}
		rules = append(rules, compileOne(strings.Repeat("i", i+1), &c, &faults))
	}
	if err := faults.Err(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		c, err := claim.Parse(doc)
		if err != nil {
			return
		}
		_, audErr := checkAudience(c, []string{"sigstore"})
		classified(t, audErr)
		classified(t, checkTimes(c, moment, defaultLeeway, defaultLifetime))
		for _, r := range rules {
			var p Principal
			err := r.principal(&p, c, "https://issuer.example", "sigstore")
			classified(t, err)
			if err != nil {
				continue
			}
			if strings.IndexFunc(p.san.Value, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 || p.IsZero() {
				t.Fatalf("%s: name %q", r.config.Type, p.san.Value)
			}
			if u, err := url.Parse(p.san.Value); p.san.Kind == URI && (err != nil || u.String() != p.san.Value || u.Host == "" || u.User != nil) {
				t.Fatalf("%s: URI %q", r.config.Type, p.san.Value)
			}
			if _, err := p.Extensions().Extensions(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func classified(t *testing.T, err error) {
	t.Helper()
	if e := new(fault.Error); err != nil && !errors.As(err, &e) {
		t.Fatalf("unclassified: %v", err)
	}
}

// FuzzPattern matches arbitrary issuers: what matches is a URL whose host ends
// as the pattern says, and the order of two patterns agrees with what they match.
func FuzzPattern(f *testing.F) {
	f.Add("https://*.k8s.example.com/id/*", "https://*.k8s.example.com/*/*", "https://eu.k8s.example.com/id/A")
	f.Add("https://*.k8s.example.com/", "https://*.k8s.example.com", "https://evil#.k8s.example.com/")
	f.Fuzz(func(t *testing.T, a, b, issuer string) {
		p, err := compilePattern(a)
		if err != nil || !p.match(issuer) {
			return
		}
		u, err := url.Parse(issuer)
		if err != nil || u.Scheme != "https" || u.User != nil || u.Port() != "" || u.RawQuery != "" || u.Fragment != "" || u.String() != issuer {
			t.Fatalf("%q matches %q", a, issuer)
		}
		if end := strings.Join(p.parts[max(p.labels-2, 0):p.labels], "."); p.labels > 1 && !strings.HasSuffix(u.Hostname(), end) {
			t.Fatalf("%q matches the host %q", a, u.Hostname())
		}
		q, err := compilePattern(b)
		if err != nil || !q.match(issuer) {
			return
		}
		switch p.compare(&q) {
		case disjoint:
			t.Fatalf("%q and %q both match %q and are held to be disjoint", a, b, issuer)
		case narrower:
			if wildcards(p) >= wildcards(q) || q.compare(&p) != wider {
				t.Fatalf("%q and %q are in no order", a, b)
			}
		}
	})
}

func FuzzClaimPath(f *testing.F) {
	f.Add("$.a['b.c'].d")
	f.Add("$[''']")
	f.Fuzz(func(t *testing.T, s string) {
		path, err := parseClaimPath(s)
		if err != nil {
			return
		}
		for _, name := range path {
			if name == "" {
				t.Fatalf("%q has an empty name", s)
			}
		}
		if len(path) == 0 || claim.At(claim.Set{}, path).Kind() != claim.Missing {
			t.Fatalf("%q is read as %q", s, path)
		}
	})
}

// FuzzPlainURI: what is taken without the standard library's reader is what it takes.
func FuzzPlainURI(f *testing.F) {
	for _, s := range []string{"https://github.com/o/r/.github/workflows/x.yml@refs/heads/main", "https://a/../b", "https://a/%2e", "https://a:1/", "https://u@a/", "https:///", "https://a//b", "https://-/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !plainURI(s) {
			return
		}
		u, err := url.Parse(s)
		if err != nil || u.String() != s || u.Scheme != "https" || u.Host == "" || u.User != nil || !all(s, uriByte) || dotSegments(u.EscapedPath()) {
			t.Fatalf("%q is taken; url.Parse: %+v, %v", s, u, err)
		}
	})
}

// FuzzEncodeURI: what is encoded is what Fulcio would write, reads back as the
// text, and is a URI that both readers of certificates take alike.
func FuzzEncodeURI(f *testing.F) {
	for _, s := range []string{"o/r/x.yml@refs/heads/ünicode", "build & push.yml", "a[b] c", "a?b#c", "a#", "?", "{x}", "a\\b", "../x", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if strings.Contains(name, "%") || claim.Fit("x", name) != nil || !utf8.ValidString(name) {
			return
		}
		raw := "https://host.example/" + name
		got, err := encodeURI("x", raw)
		if err != nil {
			return
		}
		reference, err := url.Parse(raw)
		if err != nil || reference.String() != got {
			t.Fatalf("%q gives %q, and the reference %q, %v", raw, got, reference, err)
		}
		if back, err := url.PathUnescape(got); err != nil || back != raw {
			t.Fatalf("%q gives %q, which reads back as %q, %v", raw, got, back, err)
		}
		if err := checkURI("x", got); err != nil || !strings.HasPrefix(got, "https://host.example/") {
			t.Fatalf("%q gives %q: %v", raw, got, err)
		}
	})
}
