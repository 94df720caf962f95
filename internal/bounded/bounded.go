// Package bounded ends answers that others may make as long as they like.
package bounded

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// ErrTooLong is in the error of [Do] where the answer has too many bytes.
var ErrTooLong = errors.New("the answer is too long")

// Answer is a response whose body was read.
type Answer struct {
	*http.Response
	Body []byte
}

// Do makes a request and reads the answer, of at most most bytes. Where reading failed,
// there is an answer beside the error, with what was read.
func Do(c *http.Client, r *http.Request, most int64) (*Answer, error) {
	response, err := c.Do(r) // #nosec G704 -- who calls has made the request
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(Body(response.Body, most, fmt.Errorf("%w: more than %d bytes", ErrTooLong, most)))
	return &Answer{response, b}, err
}

// Body is b, which fails with tooLong once it has more than most bytes.
func Body(b io.ReadCloser, most int64, tooLong error) io.ReadCloser { return &body{b, most, tooLong} }

type body struct {
	io.ReadCloser
	left    int64 // negative: there was too much
	tooLong error
}

func (b *body) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, b.tooLong
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)]) // one more than allowed, to tell the end from too much
	if b.left -= int64(n); b.left < 0 {
		return 0, b.tooLong
	}
	return n, err
}
