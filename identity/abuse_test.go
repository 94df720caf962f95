package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// The tests here are attacks with tokens, one kind a test.

func TestAlgorithmConfusionIsRefused(t *testing.T) {
	t.Parallel()
	v, w, a := verifier(t)
	payload := encode(t, claims(nil))
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "rs256", "", "ES256K", "RS1", "dir"} {
		header := encode(t, map[string]string{"alg": alg, "kid": "k0"})
		wantFault(t, v, "alg "+alg, sign(t, key(0), header, payload), fault.TokenAlgorithm)
		wantFault(t, v, "alg "+alg+" without signature", b64(header)+"."+b64(payload)+".", fault.TokenMalformed)
	}
	for _, header := range []string{`{"kid":"k0"}`, `{"alg":null}`, `{"alg":["RS256"]}`, `{"alg":1}`} {
		wantFault(t, v, header, sign(t, key(0), header, payload), fault.TokenAlgorithm)
	}
	der, err := x509.MarshalPKIXPublicKey(key(0).Public())
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: key(0).Public(), KeyID: "k0"})
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "JWK": jwk} {
		input := b64(`{"alg":"HS256","kid":"k0"}`) + "." + b64(payload)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		wantFault(t, v, "HS256 keyed with the public key as "+name, input+"."+b64(string(mac.Sum(nil))), fault.TokenAlgorithm)
	}
	if w.count() != 0 {
		t.Errorf("%d requests for algorithms that are never accepted", w.count())
	}

	ec := ecKey(t)
	a.publish(jose.JSONWebKey{Key: key(0).Public(), KeyID: "k0"}, jose.JSONWebKey{Key: ec.Public(), KeyID: "ec"})
	wantFault(t, v, "an EC key with RS256", ecSign(t, ec, `{"alg":"RS256","kid":"ec"}`, payload), fault.TokenAlgorithm)
	wantFault(t, v, "an RSA key with ES256", sign(t, key(0), `{"alg":"ES256","kid":"k0"}`, payload), fault.TokenAlgorithm)
	wantFault(t, v, "an EC signature by RSA's name", ecSign(t, ec, `{"alg":"RS256","kid":"k0"}`, payload), fault.TokenSignature)
	wantFault(t, v, "another algorithm's signature", sign(t, key(0), `{"alg":"PS256","kid":"k0"}`, payload), fault.TokenSignature)
	good := token(t, nil)
	wantFault(t, v, "empty signature", good[:strings.LastIndexByte(good, '.')+1], fault.TokenMalformed)
	wantFault(t, v, "short signature", good[:len(good)-8], fault.TokenSignature)
	wantFault(t, v, "another key", sign(t, key(1), plainHeader, payload), fault.TokenSignature)
	parts := strings.Split(good, ".")
	wantFault(t, v, "another payload", parts[0]+"."+b64(encode(t, claims(map[string]any{"sub": "mallory"})))+"."+parts[2], fault.TokenSignature)
	if _, err := v.Authenticate(t.Context(), ecSign(t, ec, `{"alg":"ES256","kid":"ec"}`, payload)); err != nil {
		t.Errorf("a good ES256 token: %v", err)
	}
}

func TestOnlyTheIssuersAlgorithmsAreAccepted(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Algorithms = []string{"ES256"}
	v, w, _ := verifier(t, c)
	e := wantFault(t, v, "RS256 where ES256 alone is accepted", token(t, nil), fault.TokenAlgorithm)
	if !strings.Contains(e.Public, "ES256") || w.count() != 0 {
		t.Errorf("%q after %d requests", e.Public, w.count())
	}
}

func TestHeadersThatBringKeysAreRefused(t *testing.T) {
	t.Parallel()
	v, w, _ := verifier(t)
	w.serve("evil.example", found(w, "https://evil.example", "evil.example"))
	jwk := encode(t, jose.JSONWebKey{Key: key(1).Public(), KeyID: "k1", Algorithm: "RS256"})
	for _, extra := range []string{
		`"jku":"https://evil.example/keys"`, `"x5u":"https://evil.example/chain"`, `"x5c":["MIIB"]`, `"jwk":` + jwk,
		`"crit":["exp"],"exp":1`, `"crit":["b64"],"b64":false`, `"crit":[]`, `"b64":false`, `"jku":null`,
	} {
		header := `{"alg":"RS256","kid":"k0",` + extra + `}`
		wantFault(t, v, extra, sign(t, key(1), header, encode(t, claims(nil))), fault.TokenMalformed)
		wantFault(t, v, extra+" and well signed", sign(t, key(0), header, encode(t, claims(nil))), fault.TokenMalformed)
	}
	if w.count() != 0 {
		t.Errorf("%d requests: %v", w.count(), w.requests)
	}
	if _, err := v.Authenticate(t.Context(), sign(t, key(0), `{"typ":"JWT","alg":"RS256","kid":"k0","x5t":"abc"}`, encode(t, claims(nil)))); err != nil {
		t.Errorf("harmless headers: %v", err)
	}
}

func TestKeyIDsFindTheIssuersOwnKeysOnly(t *testing.T) {
	t.Parallel()
	other := emailIssuer()
	other.URL = "https://other.example"
	v, w, _ := verifier(t, emailIssuer(), other)
	b := found(w, "https://other.example", "other.example")
	b.publish(jose.JSONWebKey{Key: key(1).Public(), KeyID: "k1"}, jose.JSONWebKey{Key: key(1).Public(), KeyID: "k0"})
	if _, err := v.Authenticate(t.Context(), sign(t, key(1), `{"alg":"RS256","kid":"k1"}`, encode(t, claims(map[string]any{"iss": other.URL})))); err != nil {
		t.Fatalf("the other issuer's own token: %v", err)
	}
	for _, kid := range []string{"k0", "k1", "../../x", "/etc/passwd", "https://evil.example/k", "file:///etc/passwd", strings.Repeat("k", 10000)} {
		header := encode(t, map[string]string{"alg": "RS256", "kid": kid})
		wantFault(t, v, "kid of another key, "+kid[:2], sign(t, key(1), header, encode(t, claims(nil))), fault.TokenSignature)
	}
	wantFault(t, v, "kid of 100 kB", sign(t, key(0), encode(t, map[string]string{"alg": "RS256", "kid": strings.Repeat("k", 100<<10)}), "{}"), fault.TokenTooLarge)
	wantFault(t, v, "kid of a wrong type", sign(t, key(0), `{"alg":"RS256","kid":[1]}`, encode(t, claims(nil))), fault.TokenMalformed)
	if got, want := w.count(), 4; got != want {
		t.Errorf("%d requests, want %d: discovery and keys of each issuer: %v", got, want, w.requests)
	}

	// Two keys with one kid: both are tried, whichever comes first.
	v, _, a := verifier(t)
	a.publish(jose.JSONWebKey{Key: key(1).Public(), KeyID: "k0"}, jose.JSONWebKey{Key: key(0).Public(), KeyID: "k0"})
	for i := range 2 {
		if _, err := v.Authenticate(t.Context(), sign(t, key(i), plainHeader, encode(t, claims(nil)))); err != nil {
			t.Errorf("key %d of two with one kid: %v", i, err)
		}
	}
	if _, err := v.Authenticate(t.Context(), sign(t, key(0), `{"alg":"RS256"}`, encode(t, claims(nil)))); err != nil {
		t.Errorf("no kid where there are two keys: %v", err)
	}
	v, _, _ = verifier(t)
	if _, err := v.Authenticate(t.Context(), sign(t, key(0), `{"alg":"RS256"}`, encode(t, claims(nil)))); err != nil {
		t.Errorf("no kid where there is one key: %v", err)
	}
}

func TestTokensOfWrongFormOrSizeAreRefused(t *testing.T) {
	t.Parallel()
	v, w, _ := verifier(t)
	good := token(t, nil)
	parts := strings.Split(good, ".")
	payload := func(s string) string { return parts[0] + "." + b64(s) + "." + parts[2] }
	keys := make([]string, 1500)
	for i := range keys {
		keys[i] = fmt.Sprintf(`"%x":0`, i)
	}
	wantFault(t, v, "empty", "", fault.TokenMissing)
	for name, c := range map[string]string{
		"JWE of five parts":       strings.Join([]string{parts[0], "", "aaaa", "bbbb", "cccc"}, "."),
		"four parts":              good + ".aaaa",
		"two parts":               parts[0] + "." + parts[1],
		"one part":                parts[0],
		"only dots":               "..",
		"empty header":            "." + parts[1] + "." + parts[2],
		"empty payload":           parts[0] + ".." + parts[2],
		"JSON serialisation":      `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"padding":                 parts[0] + "." + parts[1] + "=." + parts[2],
		"standard alphabet":       parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 20),
		"new line":                parts[0] + "." + parts[1] + "\n." + parts[2],
		"space":                   " " + good,
		"NUL":                     good + "\x00",
		"bits left over":          "eyJhbGciOiJSUzI1NiJ9X." + parts[1] + "." + parts[2],
		"10,000 deep":             payload(`{"a":` + strings.Repeat("[", 10000)),
		"10,000 objects deep":     payload(strings.Repeat(`{"":`, 2400)),
		"1,500 members":           payload("{" + strings.Join(keys, ",") + "}"),
		"invalid UTF-8":           payload("{\"iss\":\"\xff\"}"),
		"byte order mark":         payload("\ufeff" + encode(t, claims(nil))),
		"byte order mark, header": b64("\ufeff"+plainHeader) + "." + parts[1] + "." + parts[2],
		"UTF-16":                  payload("{\x00}\x00"),
		"not an object":           payload(`"iss"`),
		"two documents":           payload("{}{}"),
		"iss of a wrong type":     payload(`{"iss":["https://issuer.example"]}`),
		"no iss":                  payload(`{}`),
	} {
		wantFault(t, v, name, c, fault.TokenMalformed)
	}
	for name, c := range map[string]string{
		"4 MiB of dots":     strings.Repeat(".", 4<<20),
		"1 MiB":             parts[0] + "." + strings.Repeat("a", 1<<20) + "." + parts[2],
		"one byte too much": strings.Repeat("a", 16<<10+1),
		"1,000,000 members": payload("{" + strings.Repeat(`"a":0,`, 1000000) + "}"),
	} {
		e := wantFault(t, v, name, c, fault.TokenTooLarge)
		if e.Kind() != fault.TooLarge {
			t.Errorf("%s: kind %v", name, e.Kind())
		}
	}
	if w.count() != 0 {
		t.Errorf("%d requests", w.count())
	}
}

// TestRefusedTokensCostLittleMemory isn't parallel: it counts the memory of the whole process.
func TestRefusedTokensCostLittleMemory(t *testing.T) {
	v, _, _ := verifier(t)
	parts := strings.Split(token(t, nil), ".")
	for name, c := range map[string]struct {
		token string
		most  uint64 // bytes
	}{
		"4 MiB of dots":   {strings.Repeat(".", 4<<20), 64 << 10},
		"16 KiB of dots":  {strings.Repeat(".", 16<<10), 64 << 10},
		"16 KiB, nested":  {parts[0] + "." + b64(strings.Repeat("[", 11<<10)) + "." + parts[2], 64 << 10},
		"16 KiB, objects": {parts[0] + "." + b64(`{"a":[`+strings.TrimSuffix(strings.Repeat("{},", 3600), ",")+"]}") + "." + parts[2], 3 << 20},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := v.Authenticate(t.Context(), c.token); err == nil {
			t.Errorf("%s: accepted", name)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > c.most {
			t.Errorf("%s: %d bytes; at most %d", name, used, c.most)
		}
	}
}

func TestTimesCountWithTheLeeway(t *testing.T) {
	t.Parallel()
	v, w, _ := verifier(t)
	unix := func(d time.Duration) int64 { return moment.Add(d).Unix() }
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for name, c := range map[string]struct {
		changes map[string]any
		want    fault.Reason
	}{
		"expired by leeway and a second":   {map[string]any{"exp": unix(-61 * time.Second)}, fault.TokenExpired},
		"expired by the leeway":            {map[string]any{"exp": unix(-60 * time.Second)}, fault.TokenExpired},
		"expired in 1970":                  {map[string]any{"exp": 0}, fault.TokenExpired},
		"no exp":                           {map[string]any{"exp": nil}, fault.TokenMalformed},
		"exp null":                         {map[string]any{"exp": raw("null")}, fault.TokenMalformed},
		"exp a string":                     {map[string]any{"exp": fmt.Sprint(unix(time.Hour))}, fault.TokenMalformed},
		"exp 1e400":                        {map[string]any{"exp": raw("1e400")}, fault.TokenMalformed},
		"exp 1e30":                         {map[string]any{"exp": raw("1e30")}, fault.TokenMalformed},
		"exp negative":                     {map[string]any{"exp": -1}, fault.TokenMalformed},
		"exp minus zero":                   {map[string]any{"exp": raw("-0")}, fault.TokenMalformed},
		"exp an array":                     {map[string]any{"exp": []int64{unix(time.Hour)}}, fault.TokenMalformed},
		"exp true":                         {map[string]any{"exp": true}, fault.TokenMalformed},
		"nbf in the future":                {map[string]any{"nbf": unix(61 * time.Second)}, fault.TokenNotYetValid},
		"nbf a string":                     {map[string]any{"nbf": "0"}, fault.TokenMalformed},
		"iat in the future":                {map[string]any{"iat": unix(61 * time.Second)}, fault.TokenNotYetValid},
		"iat a string":                     {map[string]any{"iat": "0"}, fault.TokenMalformed},
		"iat null":                         {map[string]any{"iat": raw("null")}, fault.TokenMalformed},
		"lifetime over 24 h":               {map[string]any{"iat": unix(0), "exp": unix(24*time.Hour + time.Second)}, fault.TokenLifetime},
		"lifetime over 24 h, iat long ago": {map[string]any{"iat": unix(-24 * time.Hour), "exp": unix(time.Minute)}, fault.TokenLifetime},
		"without iat, over 24 h from now":  {map[string]any{"iat": nil, "exp": unix(25 * time.Hour)}, fault.TokenLifetime},
		"year 9999":                        {map[string]any{"exp": int64(maxNumericDate)}, fault.TokenLifetime},
	} {
		wantFault(t, v, name, token(t, c.changes), c.want)
	}
	if w.count() != 0 {
		t.Errorf("%d requests for tokens whose times are wrong", w.count())
	}
	for name, changes := range map[string]map[string]any{
		"expired within the leeway": {"exp": unix(-59 * time.Second)},
		"nbf within the leeway":     {"nbf": unix(60 * time.Second)},
		"iat within the leeway":     {"iat": unix(60 * time.Second)},
		"neither nbf nor iat":       {"nbf": nil, "iat": nil},
		"24 h":                      {"iat": unix(0), "exp": unix(24 * time.Hour)},
		"exp with a fraction":       {"exp": raw(fmt.Sprintf("%d.75", unix(time.Hour)))},
		"exp with an exponent":      {"exp": raw(fmt.Sprintf("%de-3", unix(time.Hour)*1000))},
	} {
		if _, err := v.Authenticate(t.Context(), token(t, changes)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if e := wantFault(t, v, "expired", token(t, map[string]any{"exp": unix(-90 * time.Second)}), fault.TokenExpired); !strings.Contains(e.Public, "expired 1m30s ago") {
		t.Errorf("text %q", e.Public)
	}
	c := emailIssuer()
	c.MaxTokenLifetime, c.Leeway = 10*time.Minute, time.Second
	strict, _, _ := verifier(t, c)
	wantFault(t, strict, "the issuer's own lifetime", token(t, map[string]any{"iat": unix(0), "exp": unix(10*time.Minute + time.Second)}), fault.TokenLifetime)
	wantFault(t, strict, "the issuer's own leeway", token(t, map[string]any{"exp": unix(-2 * time.Second)}), fault.TokenExpired)
}

func TestOneAudienceMustBeOurs(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Audiences = []string{"sigstore", "mayfly"}
	v, w, _ := verifier(t, c)
	for name, aud := range map[string]any{
		"wrong": "other", "empty": "", "prefix": "sigstor", "superstring": "sigstore2", "case": "Sigstore", "space": "sigstore ",
		"list in a string": "sigstore mayfly", "comma": "sigstore,mayfly", "empty array": []string{}, "array of others": []string{"a", "b", "c", "d", "e"}, "missing": nil,
	} {
		e := wantFault(t, v, name, token(t, map[string]any{"aud": aud}), fault.TokenAudience)
		if !strings.Contains(e.Public, `expected "sigstore", "mayfly"`) || e.Metadata["actual"] == "" {
			t.Errorf("%s: text %q, metadata %v", name, e.Public, e.Metadata)
		}
		if s, ok := aud.(string); ok && !strings.Contains(e.Public, fmt.Sprintf("%q", s)) {
			t.Errorf("%s: text %q without the audience", name, e.Public)
		}
	}
	for name, aud := range map[string]any{
		"number": 1, "object": map[string]any{"sigstore": true}, "null": json.RawMessage("null"), "array with a number": []any{"sigstore", 1},
		"array in an array": []any{[]string{"sigstore"}}, "boolean": true,
	} {
		wantFault(t, v, name, token(t, map[string]any{"aud": aud}), fault.TokenMalformed)
	}
	if w.count() != 0 {
		t.Errorf("%d requests for tokens of another audience", w.count())
	}
	long := wantFault(t, v, "long and hostile", token(t, map[string]any{"aud": "\u202e<script>\n" + strings.Repeat("x", 5000)}), fault.TokenAudience)
	if len(long.Public) > 500 || strings.ContainsAny(long.Public, "\n\u202e") {
		t.Errorf("text of %d bytes: %q", len(long.Public), long.Public)
	}
	for want, aud := range map[string]any{"sigstore": []string{"other", "sigstore"}, "mayfly": "mayfly"} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{"aud": aud}))
		if err != nil || p.Audience() != want {
			t.Errorf("%v: %q, %v; want %s", aud, p.Audience(), err, want)
		}
	}
}

func TestIssuersAreComparedByteForByte(t *testing.T) {
	t.Parallel()
	family := IssuerConfig{Pattern: "https://oidc.eks.*.amazonaws.com/id/*", Type: TypeKubernetes, Allow: "true", Audiences: []string{"sigstore"}}
	v, w, _ := verifier(t, emailIssuer(), family)
	for _, iss := range []string{
		"", "https://issuer.example/", "https://Issuer.example", "HTTPS://issuer.example", "https://issuer.example:443", "https://user@issuer.example",
		"https://issuer.example@evil.example", "https://xn--issuer-9ua.example", "https://ıssuer.example", "http://issuer.example",
		"http://evil.example?https://issuer.example", "https://evil.example#https://issuer.example", "https://issuer.example#", "https://issuer.example?",
		"https://issuer.example\n", "https://issuer.example\r\nHost: evil", " https://issuer.example", "issuer.example", "https://issuer.example.", "https://issuer.example\x00",
		"https://issuer.example/..", "https://issuer.example/%2e", "//issuer.example", "https:issuer.example", "file:///etc/passwd",
		"https://oidc.eks.us-east-1.amazonaws.com/id/A/", "https://oidc.eks.us-east-1.amazonaws.com/id/", "https://oidc.eks.us-east-1.amazonaws.com/id/A/B",
		"https://oidc.eks.evil.example/x.amazonaws.com/id/A", "https://oidc.eks.a.b.amazonaws.com/id/A", "https://oidc.eks..amazonaws.com/id/A",
		"https://oidc.eks.evil@.amazonaws.com/id/A", "https://oidc.eks.a#.amazonaws.com/id/A", "https://oidc.eks.a?.amazonaws.com/id/A", "https://oidc.eks.a:1.amazonaws.com/id/A",
		"https://oidc.eks.US-east-1.amazonaws.com/id/A", "https://oidc.eks.é.amazonaws.com/id/A", "https://oidc.eks.us-east-1.amazonaws.com/id/%2e%2e",
		"https://oidc.eks.us-east-1.amazonaws.com/id/..", "https://oidc.eks.us-east-1.amazonaws.com/id/A?x", "https://oidc.eks.us-east-1.amazonaws.com/id/A#x",
		"https://oidc.eks.us-east-1.amazonaws.com/id/A\n", "http://oidc.eks.us-east-1.amazonaws.com/id/A", "https://oidc.eks.us-east-1.amazonaws.com.evil/id/A",
		"https://x/https://oidc.eks.us-east-1.amazonaws.com/id/A", "https://oidc.eks.*.amazonaws.com/id/*", "https://oidc.eks.us-east-1.amazonaws.com/id/" + strings.Repeat("A", 9000),
	} {
		e := wantFault(t, v, iss, token(t, map[string]any{"iss": iss}), fault.IssuerUnknown)
		if len(e.Public) > 1000 || strings.ContainsAny(e.Public, "\r\n\x00ı") {
			t.Errorf("%q: text %q", iss, e.Public)
		}
	}
	e := wantFault(t, v, "unknown", token(t, map[string]any{"iss": "https://who.example"}), fault.IssuerUnknown)
	if !strings.Contains(e.Public, `"https://who.example"`) || !strings.Contains(e.Public, "accepted: https://issuer.example, https://oidc.eks.*") {
		t.Errorf("text %q", e.Public)
	}
	if w.count() != 0 {
		t.Errorf("%d requests: %v", w.count(), w.requests)
	}
}

func TestDuplicateMembersAreRefused(t *testing.T) {
	t.Parallel()
	v, w, _ := verifier(t)
	payload := encode(t, claims(nil))
	for _, extra := range []string{
		`"iss":"https://issuer.example"`, `"ISS":"https://issuer.example"`, `"Email":"bob@example.com"`, `"email":"alice@example.com"`, `"EMAIL_VERIFIED":true`,
		`"\u0065mail":"bob@example.com"`, `"ſub":"bob"`, `"Exp":1`, `"x":{"a":1,"a":2}`, `"x":[{"a":1,"a":1}]`,
	} {
		for name, doc := range map[string]string{"before": "{" + extra + "," + payload[1:], "after": payload[:len(payload)-1] + "," + extra + "}"} {
			wantFault(t, v, extra+" "+name, sign(t, key(0), plainHeader, doc), fault.TokenMalformed)
		}
	}
	for _, header := range []string{`{"alg":"RS256","alg":"RS256"}`, `{"alg":"RS256","ALG":"none"}`, `{"alg":"RS256","kid":"k0","Kid":"k1"}`} {
		wantFault(t, v, header, sign(t, key(0), header, payload), fault.TokenMalformed)
	}
	if w.count() != 0 {
		t.Errorf("%d requests", w.count())
	}
	// In another case alone it isn't the claim.
	wantFault(t, v, "ISS alone", sign(t, key(0), plainHeader, strings.Replace(payload, `"iss"`, `"ISS"`, 1)), fault.TokenMalformed)
	e := wantFault(t, v, "Email alone", sign(t, key(0), plainHeader, strings.Replace(payload, `"email"`, `"Email"`, 1)), fault.ClaimMissing)
	if e.Metadata["claim"] != "email" {
		t.Errorf("metadata %v", e.Metadata)
	}
}
