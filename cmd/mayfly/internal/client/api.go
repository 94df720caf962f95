package client

import (
	"context"
	"net/http"
	"net/url"
)

// API asks the CA at base for something of its own API, below /api/v1/mayfly/: with a
// body by POST, else by GET. The token may be nil where the CA asks for none. Errors are
// those of [CA].
func API(ctx context.Context, hc *http.Client, retry Retry, base, path string, query url.Values, body []byte, token *Token) ([]byte, error) {
	header := http.Header{"Content-Type": {"application/json"}}
	if token != nil {
		header.Set("Authorization", "Bearer "+token.raw)
	}
	return ask(ctx, hc, retry, message{"the CA", base + "/api/v1/mayfly/" + path + "?" + query.Encode(), header, body})
}
