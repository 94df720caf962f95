package bounded_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mayfly-ca/mayfly/internal/bounded"
)

// What is as long as allowed is read to its end; one byte more is too much, however it is read.
func TestBody(t *testing.T) {
	t.Parallel()
	tooLong := errors.New("too long")
	for _, c := range []struct {
		text string
		err  error
	}{{"", nil}, {"1234567", nil}, {"12345678", nil}, {"123456789", tooLong}, {strings.Repeat("1", 5000), tooLong}} {
		for name, from := range map[string]func(io.Reader) io.Reader{
			"whole":     func(r io.Reader) io.Reader { return r },
			"by bytes":  iotest.OneByteReader,
			"with EOF":  iotest.DataErrReader,
			"by halves": iotest.HalfReader,
		} {
			body := bounded.Body(io.NopCloser(from(strings.NewReader(c.text))), 8, tooLong)
			got, err := io.ReadAll(body)
			if !errors.Is(err, c.err) || c.err == nil && string(got) != c.text || len(got) > 8 {
				t.Errorf("%d bytes, %s: %q, %v", len(c.text), name, got, err)
			}
			if _, err := body.Read(make([]byte, 1)); c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%d bytes, %s: read on: %v", len(c.text), name, err)
			}
		}
	}
}

// What is closed is the answer itself, and its own failure is passed on.
func TestBodyOf(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	of := &closer{Reader: iotest.ErrReader(broken)}
	body := bounded.Body(of, 8, errors.New("too long"))
	if _, err := io.ReadAll(body); !errors.Is(err, broken) {
		t.Errorf("reading: %v", err)
	}
	if err := body.Close(); err != nil || !of.closed {
		t.Errorf("closed %t: %v", of.closed, err)
	}
}

type closer struct {
	io.Reader
	closed bool
}

func (c *closer) Close() error {
	c.closed = true
	return nil
}

// An answer that is too long, or breaks off, is there beside the error.
func TestDo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer roundTrip
		status int
		want   string
		err    string
	}{
		"as long as allowed": {answered(strings.NewReader("12345678")), 418, "12345678", ""},
		"too long":           {answered(strings.NewReader("123456789")), 418, "", "the answer is too long: more than 8 bytes"},
		"broken off":         {answered(io.MultiReader(strings.NewReader("123"), iotest.ErrReader(errors.New("broken")))), 418, "123", "broken"},
		"none":               {func(*http.Request) (*http.Response, error) { return nil, errors.New("nobody there") }, 0, "", "nobody there"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://example.test", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := bounded.Do(&http.Client{Transport: c.answer}, r, 8)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, bounded.ErrTooLong) != (name == "too long") {
			t.Errorf("%s: %v", name, err)
		}
		if answer == nil {
			if c.status != 0 {
				t.Errorf("%s: no answer", name)
			}
			continue
		}
		if answer.StatusCode != c.status || string(answer.Body) != c.want {
			t.Errorf("%s: %d, %q", name, answer.StatusCode, answer.Body)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answered(body io.Reader) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusTeapot, Body: io.NopCloser(body), Request: r}, nil
	}
}
