package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
)

const (
	// waitingPlaces is how many requests may be there beside those for which a
	// certificate is made: they arrive, read, or wait for their client.
	waitingPlaces = 256
	// turnedAway is how many requests beyond may be told that there is no room.
	turnedAway = 128
	// lastWords is how long a client may take to be told that.
	lastWords = 250 * time.Millisecond
	// streamPlaces is how many streaming calls there may be, streamsAConnection
	// how many of one connection.
	streamPlaces, streamsAConnection = 128, 4
)

// places are for requests, of which each holds one from its head to the last byte
// of its answer. So nothing that a client sends, or doesn't read, can make the
// process hold more than the places do. When all are taken, a newcomer gets the
// place of the request that has waited longest for its client, of the address that
// has most places: somebody who sends slowly or reads nothing loses their own, and
// honest clients still get in. It is safe for concurrent use.
type places struct {
	mu     sync.Mutex
	most   int
	spare  int                       // most of those turned away
	held   int                       // how many are taken
	by     map[netip.Prefix][]*place // who holds them, by address, the oldest first
	turned int                       // evicted or refused, and not gone yet
}

// place is one request's.
type place struct {
	of      *places
	who     netip.Prefix
	holds   bool // is in of.by; guarded by of.mu
	working bool // for the client, who waits: it isn't evicted; guarded by of.mu

	mu      sync.Mutex
	gone    bool // guarded by mu
	evicted bool // guarded by mu
	// cut ends what waits for the client: softly, leaving time for last words, or
	// with its connection. It doesn't block.
	cut func(softly bool)
}

func newPlaces(most, spare int) *places {
	return &places{most: most, spare: spare, by: map[netip.Prefix][]*place{}}
}

// set says how many places there are from now on. Nobody loses theirs.
func (p *places) set(most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = most
}

// enter takes a place for a request. The failure says that there is none; without
// a place too, the request isn't even told.
func (p *places) enter(who netip.Addr, cut func(softly bool)) (*place, *fault.Error) {
	t := &place{of: p, who: network(who), cut: cut}
	victim, softly, f := p.admit(t)
	if victim != nil {
		victim.evict(softly)
	}
	if f != nil && !softly {
		return nil, f
	}
	return t, f
}

// admit gives t a place, and says who has to go for it.
func (p *places) admit(t *place) (victim *place, softly bool, f *fault.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	softly = p.turned < p.spare
	if p.held >= p.most {
		if victim = p.victim(t.who); victim != nil {
			p.drop(victim)
			p.turned++
		} else {
			if softly {
				p.turned++
			}
			return nil, softly, fault.New(fault.Overloaded, "too many requests are in progress; try again").After(retrySoon)
		}
	}
	p.by[t.who] = append(p.by[t.who], t)
	t.holds = true
	p.held++
	return victim, softly, nil
}

// victim is who has to go for a request of who's, or nil.
func (p *places) victim(who netip.Prefix) (out *place) {
	most := len(p.by[who])
	out = oldest(p.by[who])
	for _, others := range p.by {
		if len(others) > most { // who would be worse off than the newcomer's address keeps its places
			if t := oldest(others); t != nil {
				most, out = len(others), t
			}
		}
	}
	return out
}

// oldest is the one of an address that has waited longest for its client, or nil.
func oldest(all []*place) *place {
	if i := slices.IndexFunc(all, func(t *place) bool { return !t.working }); i >= 0 {
		return all[i]
	}
	return nil
}

// drop takes t's place.
func (p *places) drop(t *place) {
	p.by[t.who] = slices.DeleteFunc(p.by[t.who], func(other *place) bool { return other == t })
	t.holds = false
	p.held--
	if len(p.by[t.who]) == 0 {
		delete(p.by, t.who)
	}
}

// evictAll ends everything that waits for its client.
func (p *places) evictAll() {
	p.mu.Lock()
	var all []*place
	for who := range p.by {
		for t := oldest(p.by[who]); t != nil; t = oldest(p.by[who]) {
			all = append(all, t)
			p.drop(t)
			p.turned++
		}
	}
	p.mu.Unlock()
	for _, t := range all {
		t.evict(true)
	}
}

func (t *place) evict(softly bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.gone {
		t.evicted = true
		t.cut(softly)
	}
}

// work says that the client now waits for us, or no longer does.
func (t *place) work(working bool) {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.working = working
}

// unlessEvicted calls do if t isn't evicted, which it can't become meanwhile.
func (t *place) unlessEvicted(do func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.evicted {
		do()
	}
	return !t.evicted
}

// leave gives the place back. cut isn't called any more.
func (t *place) leave() {
	t.mu.Lock()
	t.gone = true
	t.mu.Unlock()
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if t.holds {
		t.of.drop(t)
	} else {
		t.of.turned--
	}
}

// connection is what the requests of one connection share.
type connection struct {
	net.Conn
	reflects bool // whether its listener serves reflection
	streams  atomic.Int32
}

type connectionKey struct{}

// connectionOf is the connection that a request came by; in tests without one, an empty one.
func connectionOf(ctx context.Context) *connection {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		return c
	}
	return &connection{}
}

// close ends the connection without waiting for anybody, as TLS would.
func (c *connection) close() {
	conn := c.Conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if conn != nil {
		_ = conn.Close() // its server reads the error
	}
}

// timedReply is the answer to a request that holds a place: from its first byte on,
// the client has limited time to take it.
type timedReply struct {
	http.ResponseWriter
	control *http.ResponseController
	place   *place
	timeout time.Duration // for a whole answer; of a stream, for each message
	stream  func()        // ends a stream's context; nil for what isn't one
	code    int           // the status that is sent; 0 before
	timed   bool          // the handler has said itself how long its client may take
}

// admit begins a request over HTTP and takes a place for it: what begin does, and
// the rest of the request and its answer go through what is returned. The reply is
// left in the end.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, e *endpoint) (*timedReply, *http.Request, *fault.Error) {
	out := &timedReply{ResponseWriter: w, control: http.NewResponseController(w), timeout: s.config.Limits.WriteTimeout}
	ctx, client, limited := s.begin(r.Context(), r.RemoteAddr, e, r.Header)
	var f *fault.Error
	if out.place, f = s.places.enter(client, out.cut(connectionOf(ctx), s.metrics.places.Inc)); out.place == nil {
		s.metrics.places.Inc()
		panic(http.ErrAbortHandler) //nolint:forbidigo // how a handler tells net/http to drop the connection
	}
	if f != nil {
		out.hurry()
	} else {
		f = limited
	}
	w.Header().Set(headerRequestID, requestid.From(ctx))
	return out, r.WithContext(ctx), f
}

// cut is what ends a request whose place another gets.
func (o *timedReply) cut(c *connection, count func()) func(softly bool) {
	return func(softly bool) {
		count()
		if o.stream != nil {
			o.stream()
		}
		o.hurry()
		if !softly {
			c.close()
		}
	}
}

// hurry ends reading, and leaves little time to write. A writer without deadlines
// has none to set.
func (o *timedReply) hurry() {
	now := time.Now()
	_ = o.control.SetReadDeadline(now.Add(-time.Second))
	_ = o.control.SetWriteDeadline(now.Add(lastWords))
}

// begin starts the client's time to take the answer.
func (o *timedReply) begin(code int) {
	if o.code != 0 && o.stream == nil {
		return
	}
	o.code = cmp.Or(o.code, code)
	o.place.work(false)
	if !o.timed {
		o.place.unlessEvicted(func() { _ = o.control.SetWriteDeadline(time.Now().Add(o.timeout)) })
	}
}

// SetWriteDeadline is for a handler that knows how long its client may take.
func (o *timedReply) SetWriteDeadline(deadline time.Time) (err error) {
	o.timed = true
	o.place.unlessEvicted(func() { err = o.control.SetWriteDeadline(deadline) })
	return err
}

// WriteHeader begins the answer.
func (o *timedReply) WriteHeader(code int) {
	o.begin(code)
	o.ResponseWriter.WriteHeader(code)
}

// Write sends a part of the answer.
func (o *timedReply) Write(b []byte) (int, error) {
	o.begin(http.StatusOK)
	return o.ResponseWriter.Write(b)
}

// FlushError sends what is written.
func (o *timedReply) FlushError() error {
	o.begin(http.StatusOK)
	err := o.control.Flush()
	if o.stream != nil { // it may be quiet until the next message
		o.place.unlessEvicted(func() { _ = o.control.SetWriteDeadline(time.Time{}) })
	}
	return err
}

// Flush is FlushError for gRPC, which learns of an error by the next one.
func (o *timedReply) Flush() { _ = o.FlushError() }

// Unwrap lets http.ResponseController reach what is beneath.
func (o *timedReply) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// leave gives the place back once the answer is with the client. HTTP/1 sends the
// rest after the handler: there that is one answer a connection.
func (o *timedReply) leave(r *http.Request) {
	if r.ProtoMajor == 2 && o.code != 0 {
		o.Flush()
	}
	o.place.leave()
}
