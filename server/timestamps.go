package server

import (
	"context"
	"mime"
	"net/http"
	"strconv"

	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// maxQuery is the largest query for a timestamp, in bytes: real ones have 60 to 300.
const maxQuery = 4 << 10

// Timestamps gives timestamps. timestamp.InForce does.
type Timestamps interface {
	// ReplyDER answers a query of RFC 3161. There is a reply to every query; the
	// failure is nil where it grants a timestamp.
	ReplyDER(ctx context.Context, query []byte) ([]byte, *fault.Error)
	// ReplyJSON is ReplyDER for the form of sigstore's timestamp-authority.
	ReplyJSON(ctx context.Context, query []byte) ([]byte, *fault.Error)
	// PEM is the chain that timestamps verify with.
	PEM() []byte
}

// mountTimestamps adds the routes of t, where there is one.
func (s *Server) mountTimestamps(m *mounts, t Timestamps) {
	if t == nil {
		return
	}
	stamp := target{&endpoint{name: timestamp.Path, limit: (*limiters).timestamp}, s.counted(s.stamp(t))}
	m.exact[timestamp.Path] = newRoute(timestamp.Path, true, http.MethodPost, stamp)
	chain := target{&endpoint{name: timestamp.ChainPath}, s.counted(func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		return writeTagged(w, r, "application/pem-certificate-chain", newVersion(t.PEM())), nil
	})}
	m.exact[timestamp.ChainPath] = newRoute(timestamp.ChainPath, true, http.MethodGet, chain)
}

// stamp answers queries. RFC 3161 §3.4 has a refusal in the reply, with status 200, as
// openssl and stock servers do; but what may pass by itself has a status that has
// clients try again. Who asks in JSON reads no refusal in a reply, and gets the API's.
func (s *Server) stamp(t Timestamps) handler {
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		body, f := s.readBody(w, r, maxQuery)
		if f != nil {
			return 0, f
		}
		if f := s.stamping.enter(true); f != nil {
			return 0, f
		}
		defer s.stamping.leave(true)
		ctx, cancel := context.WithTimeout(r.Context(), s.config.RequestTimeout)
		defer cancel()
		if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "application/json" {
			reply, f := t.ReplyJSON(ctx, body)
			if f != nil {
				return 0, f
			}
			return writeReply(w, answer{outcome: outcome{http: http.StatusOK}}, reply), nil
		}
		reply, f := t.ReplyDER(ctx, body)
		a := answer{outcome: outcome{http: http.StatusOK}}
		if f != nil && f.Kind() != fault.Malformed {
			a = answerTo(f, "")
		}
		return writeReply(w, a, reply), f
	}
}

// writeReply sends a reply with the status of a, which it returns.
func writeReply(w http.ResponseWriter, a answer, reply []byte) int {
	h := w.Header()
	h.Set("Content-Type", "application/timestamp-reply")
	h.Set("Cache-Control", "no-store")
	if a.retry > 0 {
		h.Set("Retry-After", strconv.FormatInt(a.retrySeconds(), 10))
	}
	h.Set("Content-Length", strconv.Itoa(len(reply)))
	w.WriteHeader(a.http)
	_, _ = w.Write(reply) // the client may be gone, and nobody else would read it
	return a.http
}
