package store

import (
	"errors"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the `store` section. Without one there is no store.
type Config struct {
	// Path is the file of a SQLite database, which is made where there is none. It
	// holds identities; its owner alone may read it.
	Path setting.Path `yaml:"path,omitempty"`
	// URL is a PostgreSQL database in place of the file, as replicas need:
	// `postgres://mayfly@db.example.com/mayfly`. TLS with a verified name is used
	// beyond this machine, unless the URL says otherwise with `?sslmode=`.
	URL string `yaml:"url,omitempty"`
	// Password is the PostgreSQL user's.
	Password setting.Secret `yaml:"password,omitempty"`
}

// Parse reads the one argument that a command has for a store: a file, or a URL.
func Parse(text string) Config {
	if strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		return Config{URL: text}
	}
	return Config{Path: setting.Path(text)}
}

// Enabled reports whether a store is configured.
func (c *Config) Enabled() bool { return c.Path != "" || c.URL != "" }

// Check adds every fault of c.
func (c *Config) Check(path string, f *setting.Faults) {
	c.Password.Check(setting.Join(path, "password"), f)
	if c.Path != "" && c.URL != "" {
		f.Add(path, "names both path (SQLite) and url (PostgreSQL); keep one")
	}
	if c.URL == "" {
		if !c.Password.IsZero() {
			f.Add(setting.Join(path, "password"), "only goes with url")
		}
		return
	}
	if _, err := c.postgres(); err != nil {
		f.Add(setting.Join(path, "url"), "%v", err)
	}
}

// postgres is the URL, with TLS where it says nothing of it and leads beyond this machine.
func (c *Config) postgres() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("isn't postgres://user@host/database") // url.Parse's own words quote it
	}
	if _, has := u.User.Password(); has {
		return nil, errors.New("has a password in it; name it with password, by env or file")
	}
	q := u.Query()
	local := u.Hostname() == "" || loopback.Host(u.Hostname())
	if !q.Has("sslmode") && !local {
		q.Set("sslmode", "verify-full")
		u.RawQuery = q.Encode()
	}
	return u, nil
}
