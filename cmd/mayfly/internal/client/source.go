package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

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
