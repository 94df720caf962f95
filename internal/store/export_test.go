package store

import "net/url"

// Postgres is the URL that is connected to.
func Postgres(c Config) (*url.URL, error) { return c.postgres() }
