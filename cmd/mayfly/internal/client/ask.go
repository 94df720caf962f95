package client

import (
	"bytes"
	"context"
	"net/http"
)

// Ask posts a JSON body to a URL of the CA, with the token where there is one, and gives
// the answer's body. Errors are those of [CA].
func Ask(ctx context.Context, hc *http.Client, retry Retry, url string, token *Token, body []byte) ([]byte, error) {
	answer, err := exchange(ctx, hc, retry, "the CA", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
			if token != nil {
				req.Header.Set("Authorization", "Bearer "+token.raw)
			}
		}
		return req, err
	})
	if err != nil {
		return nil, err
	}
	if answer.status != http.StatusOK {
		return nil, answer.fault("the CA")
	}
	return answer.body, nil
}
