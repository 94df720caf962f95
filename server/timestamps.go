package server

import (
	"context"
	"mime"
	"net/http"

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
func (s *Server) mountTimestamps(to *routes, t Timestamps) {
	if t == nil {
		return
	}
	stamp := target{&endpoint{name: timestamp.Path, limit: limitStamps}, s.counted(s.stamp(t))}
	to.exact[timestamp.Path] = newRoute(timestamp.Path, true, http.MethodPost, stamp)
	chain := target{&endpoint{name: timestamp.ChainPath}, s.counted(func(w *timedReply, r *http.Request) *fault.Error {
		writeTagged(w, r, pemChain, newVersion(t.PEM()))
		return nil
	})}
	to.exact[timestamp.ChainPath] = newRoute(timestamp.ChainPath, true, http.MethodGet, chain)
}

// stamp answers queries. RFC 3161 §3.4 has a refusal in the reply, with status 200, as
// openssl and stock servers do; but what may pass by itself has a status that has
// clients try again. Who asks in JSON reads no refusal in a reply, and gets the API's.
func (s *Server) stamp(t Timestamps) handler {
	return func(w *timedReply, r *http.Request) *fault.Error {
		body, f := s.readBody(w, r, maxQuery)
		if f != nil {
			return f
		}
		if f := s.stamping.enter(true); f != nil {
			return f
		}
		defer s.stamping.leave(true)
		ctx, cancel := context.WithTimeout(r.Context(), s.config.RequestTimeout)
		defer cancel()
		var reply []byte
		a := answer{outcome: outcome{http: http.StatusOK}}
		if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "application/json" {
			if reply, f = t.ReplyJSON(ctx, body); f != nil {
				return f
			}
		} else if reply, f = t.ReplyDER(ctx, body); f != nil && f.Kind() != fault.Malformed {
			a = answerTo(f, "")
		}
		a.send(w, "application/timestamp-reply", reply)
		return f
	}
}
