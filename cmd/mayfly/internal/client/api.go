package client

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
)

// API asks the CA at base for something of its own API, below /api/v1/mayfly/: with a
// body by POST, else by GET. The token may be "" where the CA asks for none.
func API(ctx context.Context, hc *http.Client, retry Retry, base, path string, query url.Values, body []byte, token string) ([]byte, error) {
	answer, err := exchange(ctx, hc, retry, "the CA", func(ctx context.Context) (*http.Request, error) {
		method, content := http.MethodGet, io.Reader(http.NoBody)
		if body != nil {
			method, content = http.MethodPost, bytes.NewReader(body)
		}
		r, err := http.NewRequestWithContext(ctx, method, base+"/api/v1/mayfly/"+path+"?"+query.Encode(), content)
		if err == nil && token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		return r, err
	})
	switch {
	case err != nil:
		return nil, err
	case answer.status != http.StatusOK:
		return nil, answer.fault("the CA")
	}
	return answer.body, nil
}
