// Package bounded ends answers that others may make as long as they like.
package bounded

import "io"

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
