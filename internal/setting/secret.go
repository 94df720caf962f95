package setting

import (
	"bytes"
	"fmt"
	"os"

	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

// Read fetches the secret, without a final end of line. An empty secret is an error: a variable that is not
// set is more often a slip than a wish. The error names the place, never the value.
func (s Secret) Read() ([]byte, error) {
	switch {
	case s.Env != "":
		v := os.Getenv(s.Env)
		if v == "" {
			return nil, fmt.Errorf("environment variable %s is not set or empty", s.Env)
		}
		b := trimLine([]byte(v))
		if len(b) == 0 {
			return nil, fmt.Errorf("environment variable %s holds an empty line", s.Env)
		}
		return b, nil
	case s.File != "":
		b, err := secretfile.Read(string(s.File))
		if err != nil {
			return nil, fmt.Errorf("reading the secret: %w", err)
		}
		b = trimLine(b)
		if len(b) == 0 {
			return nil, fmt.Errorf("the secret file %s is empty", s.File)
		}
		return b, nil
	default:
		return nil, fmt.Errorf("no secret is named: set env or file")
	}
}

// trimLine cuts one final end of line off, which editors and shells add.
func trimLine(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
}
