package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// Token is an identity token (OpenID Connect Core §2) with what it says of
// itself. Nothing in it is verified here: that is the CA's work.
type Token struct {
	raw     string
	Issuer  string
	Subject string
	Email   string    // "" unless the token has a non-empty string claim email
	Expiry  time.Time // zero when the token names none that can be read
}

// ParseToken reads a compact JWS (RFC 7515 §3.1). White space around it is cut.
// The error never quotes the token.
func ParseToken(raw string) (*Token, error) {
	raw = strings.TrimSpace(raw)
	const fix = "give an OpenID Connect identity token: three base64url parts with dots between"
	parts := strings.Split(raw, ".")
	switch {
	case raw == "":
		return nil, problem(Failed, fix, "the identity token is empty")
	case len(raw) > maxToken:
		return nil, problem(Failed, fix, "the identity token is over %d bytes", maxToken)
	case len(parts) != 3:
		return nil, problem(Failed, fix, "the identity token is not a JWT: it has %d parts instead of 3", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, problem(Failed, fix, "the identity token is not a JWT: its second part is not base64url")
	}
	var claims map[string]json.RawMessage // a map: a struct would take Email for email
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, problem(Failed, fix, "the identity token is not a JWT: its second part is not a JSON object")
	}
	t := &Token{raw: raw, Issuer: stringClaim(claims["iss"]), Subject: stringClaim(claims["sub"]), Email: stringClaim(claims["email"])}
	var exp float64
	if json.Unmarshal(claims["exp"], &exp) == nil && exp > 0 && exp < 1<<40 {
		t.Expiry = time.Unix(int64(exp), 0).UTC()
	}
	if t.Challenge() == "" {
		return nil, problem(Failed, "ask the issuer for the scopes openid and email",
			"the identity token has neither an email nor a sub claim, so there is nothing to prove possession over")
	}
	return t, nil
}

// stringClaim is the claim when it is a JSON string, else "".
func stringClaim(raw json.RawMessage) string {
	var s string
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte(`"`)) || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// Challenge is what the proof of possession signs: the email claim where the
// token carries one, sub otherwise, whatever the issuer's type.
func (t *Token) Challenge() string {
	return cmp.Or(t.Email, t.Subject)
}

// String says whose token it is, never the token.
func (t *Token) String() string {
	return fmt.Sprintf("identity token of %q by %q", t.Challenge(), t.Issuer)
}

// GoString is String, so that no format verb prints the token.
func (t *Token) GoString() string { return t.String() }

// LogValue is String for slog.
func (t *Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Source is one place where an identity token may come from.
type Source struct {
	Name string
	// Fetch returns the raw token; an *Absent error when the source isn't
	// there, so that the next may be tried; any other error ends the search.
	Fetch func(ctx context.Context) (string, error)
}

// Absent says that a source isn't there, and why.
type Absent struct{ Reason string }

func (a *Absent) Error() string { return a.Reason }

// Attempt is what came of one source.
type Attempt struct {
	Source  string
	Outcome string
}

// The outcomes of the last source; the others' say why they are absent.
const (
	OutcomeUsed   = "used"
	OutcomeFailed = "failed"
)

// FindToken takes the first token that a source gives, in order. A source that
// is there but fails ends the search: falling through to another identity
// would surprise. The attempts are returned in every case.
func FindToken(ctx context.Context, sources []Source) (*Token, []Attempt, error) {
	var attempts []Attempt
	for _, s := range sources {
		raw, err := s.Fetch(ctx)
		var absent *Absent
		if errors.As(err, &absent) {
			attempts = append(attempts, Attempt{s.Name, absent.Reason})
			continue
		}
		var token *Token
		if err == nil {
			token, err = ParseToken(raw)
		}
		if err != nil {
			attempts = append(attempts, Attempt{s.Name, OutcomeFailed})
			return nil, attempts, fmt.Errorf("the identity token from %s: %w", s.Name, err)
		}
		return token, append(attempts, Attempt{s.Name, OutcomeUsed}), nil
	}
	return nil, attempts, problem(Failed,
		"give one of --token-file FILE, --token-env NAME, --token-stdin, --browser or --device (the last two with --issuer URL)",
		"no identity token was found%s", tried(attempts))
}

func tried(attempts []Attempt) string {
	text := ""
	for _, a := range attempts {
		text += fmt.Sprintf("\n%s: %s", a.Source, a.Outcome)
	}
	return text
}

// TokenFile reads the token from a file.
func TokenFile(path string) Source {
	return Source{Name: "the file " + path, Fetch: func(context.Context) (string, error) {
		f, err := os.Open(path) // #nosec G304 -- the user names the file
		if err != nil {
			return "", problem(Failed, "", "opening it").because(err)
		}
		defer f.Close()
		return readToken(f)
	}}
}

// TokenReader reads the token from r, which name describes.
func TokenReader(name string, r io.Reader) Source {
	return Source{Name: name, Fetch: func(context.Context) (string, error) { return readToken(r) }}
}

func readToken(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxToken+1))
	if err != nil {
		return "", problem(Failed, "", "reading it").because(err)
	}
	return string(b), nil // ParseToken refuses what is too long
}

// TokenEnv reads the token from the environment variable that the user named:
// it is an error when that one is not set.
func TokenEnv(name string, getenv func(string) string) Source {
	return Source{Name: "the environment variable " + name, Fetch: func(context.Context) (string, error) {
		if v := getenv(name); v != "" {
			return v, nil
		}
		return "", problem(Failed, "export the token under that name", "the variable is not set or empty")
	}}
}

// SigstoreEnv is the variable that Sigstore clients agree on for a ready token.
const SigstoreEnv = "SIGSTORE_ID_TOKEN"

// Audience finds whom a token of an issuer has to be for.
type Audience interface {
	// Named is what the CA says.
	Named(ctx context.Context, issuer string) string
	// Ask is what to ask the issuer for.
	Ask(ctx context.Context, issuer string) string
}

// Ambient lists the sources that need no flag, in order: GitLab CI's id_tokens,
// SIGSTORE_ID_TOKEN, GitHub Actions. An audience is asked of GitHub only: the
// others' tokens have theirs already.
func Ambient(getenv func(string) string, hc *http.Client, retry Retry, audience Audience) []Source {
	inGitLab := getenv("GITLAB_CI") == "true"
	return []Source{
		{Name: "GitLab CI", Fetch: func(ctx context.Context) (string, error) {
			if !inGitLab {
				return "", &Absent{"not a GitLab job (GITLAB_CI is not true)"}
			}
			if v := getenv(SigstoreEnv); v != "" {
				return v, nil
			}
			return "", &Absent{"the job has no `id_tokens: {" + SigstoreEnv + ": {aud: " + audience.Named(ctx, getenv("CI_SERVER_URL")) + "}}`"}
		}},
		{Name: SigstoreEnv, Fetch: func(context.Context) (string, error) {
			if v := getenv(SigstoreEnv); v != "" {
				return v, nil
			}
			return "", &Absent{"not set"}
		}},
		{Name: "GitHub Actions", Fetch: func(ctx context.Context) (string, error) {
			at, bearer := getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
			switch {
			case at != "" && bearer != "":
				return gitHubToken(ctx, hc, retry, at, bearer, audience.Ask(ctx, gitHubIssuer(getenv("GITHUB_SERVER_URL"))))
			case getenv("GITHUB_ACTIONS") == "true":
				return "", &Absent{"the job has no `permissions: {id-token: write}`"}
			default:
				return "", &Absent{"not a GitHub job (ACTIONS_ID_TOKEN_REQUEST_URL is not set)"}
			}
		}},
	}
}

// gitHubIssuer is the issuer of a GitHub's tokens, that of a company's own server too.
func gitHubIssuer(server string) string {
	if server == "" || server == "https://github.com" {
		return "https://token.actions.githubusercontent.com"
	}
	return server + "/_services/token"
}

// gitHubToken asks the runner's token service, whose URL and bearer the
// workflow's environment holds, for a token with the audience.
func gitHubToken(ctx context.Context, hc *http.Client, retry Retry, at, bearer, audience string) (string, error) {
	u, err := url.Parse(at)
	if err != nil || (u.Scheme != "https" && !loopback.Host(u.Hostname())) {
		return "", problem(Failed, "", "ACTIONS_ID_TOKEN_REQUEST_URL is not an https URL")
	}
	q := u.Query()
	q.Set("audience", audience)
	u.RawQuery = q.Encode()

	header := http.Header{"Authorization": {"Bearer " + bearer}, "Accept": {"application/json"}}
	answer, err := ask(ctx, hc, retry, message{what: "GitHub's token service", url: u.String(), header: header})
	if err != nil {
		return "", err
	}
	var body struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal(answer, &body); err != nil || body.Value == "" {
		return "", problem(Failed, "", "GitHub's token service answered without a token")
	}
	return body.Value, nil
}
