package client

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

func jwt(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2lnbmF0dXJl"
}

func TestChallengeIsTheEmailWhereThereIsOne(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]string{
		`{"sub":"s","email":"a@b.c"}`:     "a@b.c",
		`{"sub":"s"}`:                     "s",
		`{"sub":"s","email":""}`:          "s",
		`{"sub":"s","email":null}`:        "s",
		`{"sub":"s","email":["a@b.c"]}`:   "s",
		`{"sub":"s","email":42}`:          "s",
		`{"sub":"s","Email":"A@b.c"}`:     "s", // names are exact
		`{"email":"a@b.c"}`:               "a@b.c",
		`{"sub":"s","exp":"tomorrow"}`:    "s",
		`{"sub":"s","exp":1e300}`:         "s",
		`{"sub":"s","email" : "a@b.c"  }`: "a@b.c",
	} {
		token, err := ParseToken("  " + jwt(payload) + "\n")
		if err != nil {
			t.Errorf("%s: %v", payload, err)
		} else if token.Challenge() != want {
			t.Errorf("%s: challenge %q, want %q", payload, token.Challenge(), want)
		}
	}
}

func TestUnfitTokens(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"empty":        " \n",
		"two parts":    "a.b",
		"JWE":          "a.b.c.d.e",
		"not base64":   "a.!!.c",
		"padded":       "a.e30=.c",
		"not JSON":     jwt("secretsecret"),
		"array":        jwt(`["secretsecret"]`),
		"no challenge": jwt(`{"iss":"secretsecret"}`),
		"too long":     jwt(`{"sub":"` + strings.Repeat("x", maxToken) + `"}`),
	} {
		_, err := ParseToken(raw)
		var e *Error
		if !errors.As(err, &e) || e.Kind != Failed || e.Fix == "" {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error quotes the token: %v", name, err)
		}
	}
}

func TestTokenIsNeverPrinted(t *testing.T) {
	t.Parallel()
	raw := clienttest.Token(t, map[string]any{"iss": "https://issuer", "sub": "alice"})
	token, err := ParseToken(raw)
	if err != nil {
		t.Fatal(err)
	}
	payload := strings.Split(raw, ".")[1]
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("got", slog.Any("token", token))
	for _, s := range []string{fmt.Sprint(token), fmt.Sprintf("%+v %#v %s", token, token, token), log.String()} {
		if strings.Contains(s, payload) {
			t.Errorf("the token is in %q", s)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(jwt(`{"sub":"s","email":"a@b.c","exp":1700000000}`))
	f.Add("a.b.c")
	f.Add(jwt(`{"exp":-1e400}`))
	f.Fuzz(func(t *testing.T, raw string) {
		token, err := ParseToken(raw)
		if err == nil && (token.Challenge() == "" || token.raw != strings.TrimSpace(raw)) {
			t.Error("accepted without a challenge, or changed")
		}
	})
}
