package devissuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
)

// claimPrefix begins the parameters that set any claim: all that follows the
// first dot is the claim's name, dots included (claim.kubernetes.io).
const claimPrefix = "claim."

// serveDirect answers with a bare token for scripts:
//
//	GET /dev/token?email=…&sub=…&aud=…&claim.NAME=VALUE
//
// A VALUE that is JSON (true, 12, {"a":1}, [1], "quoted", null) is taken as
// such, null meaning that the claim is left out; all else is a string. Write
// claim.run_id="42", quotes included, for a string of digits. Several aud make
// an array. Pages of other origins are refused.
func (i *Issuer) serveDirect(w http.ResponseWriter, r *http.Request) {
	if fromAnotherPage(r) {
		http.Error(w, "tokens are for scripts and this origin's pages", http.StatusForbidden)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, "the query can't be read: check its escapes", http.StatusBadRequest)
		return
	}
	claims, err := directClaims(query)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	token, err := i.Token(claims)
	if err != nil {
		i.fail(w, r, err)
		return
	}
	i.log.InfoContext(r.Context(), "development token issued", slog.String("endpoint", pathDirect))
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, token) // a failed write means that the client went away
}

// directClaims reads the claims from the query. Its errors are for the person.
func directClaims(query url.Values) (map[string]any, error) {
	claims := make(map[string]any)
	for parameter, values := range query {
		name, value := parameter, any(values[0])
		switch custom, isClaim := strings.CutPrefix(parameter, claimPrefix); {
		case parameter == "aud" && len(values) > 1:
			value = values
		case len(values) > 1:
			return nil, errors.New("a parameter is repeated: only aud may be")
		case isClaim && custom == "iss":
			return nil, errors.New("claim.iss can't be set: an issuer speaks for itself alone")
		case isClaim && custom != "":
			name, value = custom, claimValue(values[0])
		case parameter != "email" && parameter != "sub" && parameter != "aud":
			return nil, fmt.Errorf("unknown parameter %.40q: expected email, sub, aud or claim.NAME", parameter)
		}
		if _, twice := claims[name]; twice {
			return nil, fmt.Errorf("the claim %.40q is set twice", name)
		}
		claims[name] = value
	}
	if claims["sub"] == nil && claims["email"] == nil {
		return nil, errors.New("name who the token is for: email=… or sub=…")
	}
	return claims, nil
}

// claimValue is the JSON value that the text is, numbers digit for digit, or
// else the text.
func claimValue(text string) any {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var v any
	if !json.Valid([]byte(text)) || decoder.Decode(&v) != nil {
		return text
	}
	return v
}
