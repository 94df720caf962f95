package client

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// FetchTrust gets a trusted root from a URL and parses it. The document is only
// as trustworthy as the host that serves it; its SHA-256 in hexadecimal is for
// the person to compare.
func FetchTrust(ctx context.Context, hc *http.Client, retry Retry, url string) (trust *Trust, digest string, err error) {
	body, err := Fetch(ctx, hc, retry, "the trusted root's host", url)
	if err != nil {
		return nil, "", err
	}
	if trust, err = ParseTrust(body); err != nil {
		return nil, "", err
	}
	return trust, fmt.Sprintf("%x", sha256.Sum256(body)), nil
}

// Accepted is an issuer that a CA accepts.
type Accepted struct {
	URL      string `json:"issuerUrl"`
	Audience string `json:"audience"` // of its tokens: the first of several
}

// Issuers asks the CA which issuers it accepts by their exact URLs, in its order.
func Issuers(ctx context.Context, hc *http.Client, retry Retry, ca string) ([]Accepted, error) {
	body, err := Fetch(ctx, hc, retry, "the CA", strings.TrimRight(ca, "/")+"/api/v2/configuration")
	if err != nil {
		return nil, err
	}
	var configuration struct {
		Issuers []Accepted `json:"issuers"`
	}
	if err := json.Unmarshal(body, &configuration); err != nil {
		return nil, unreadable("its configuration is not JSON")
	}
	return slices.DeleteFunc(configuration.Issuers, func(i Accepted) bool { return i.URL == "" }), nil
}

// Fetch gets what is at url; what names the other side in errors.
func Fetch(ctx context.Context, hc *http.Client, retry Retry, what, url string) ([]byte, error) {
	return ask(ctx, hc, retry, message{what: what, url: url})
}
