package setting

import (
	"bytes"
	"fmt"
	"os"
)

// Read fetches the secret. An empty secret is an error: a variable that is not
// set is more often a slip than a wish. The error names the place, never the value.
func (s Secret) Read() ([]byte, error) {
	switch {
	case s.Env != "":
		v := os.Getenv(s.Env)
		if v == "" {
			return nil, fmt.Errorf("environment variable %s is not set or empty", s.Env)
		}
		return []byte(v), nil
	case s.File != "":
		b, err := os.ReadFile(string(s.File))
		if err != nil {
			return nil, fmt.Errorf("reading the secret: %w", err)
		}
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
		if len(b) == 0 {
			return nil, fmt.Errorf("the secret file %s is empty", s.File)
		}
		return b, nil
	default:
		return nil, fmt.Errorf("no secret is named: set env or file")
	}
}
