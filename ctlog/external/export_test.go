package external

import "net/http"

// Over are the options of a log that is reached through a test's transport.
func (o Options) Over(transport http.RoundTripper) Options {
	o.transport = transport
	return o
}
