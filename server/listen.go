package server

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// crowd is a listener that keeps at most so many connections. When one more
// comes, the one that has been quiet longest is closed, those that never sent a
// byte first: somebody who only opens connections closes their own, and honest
// clients still get in.
type crowd struct {
	net.Listener
	most    int
	evicted func()

	mu      sync.Mutex
	members map[*member]struct{}
}

// member is a connection of a crowd.
type member struct {
	net.Conn
	crowd  *crowd
	opened time.Time
	// heard is when it last sent or was sent something, in nanoseconds since
	// the Unix epoch; 0 when it never sent anything.
	heard atomic.Int64
}

func newCrowd(l net.Listener, most int, evicted func()) *crowd {
	return &crowd{Listener: l, most: most, evicted: evicted, members: make(map[*member]struct{})}
}

// Accept waits for the next connection, and makes room for it.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m := &member{Conn: conn, crowd: c, opened: time.Now()}
	if out := c.admit(m); out != nil {
		c.evicted()
		_ = out.Close() // its owner reads the error
	}
	return m, nil
}

// admit takes m in, and returns who has to go for it, or nil.
func (c *crowd) admit(m *member) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out *member
	if len(c.members) >= c.most {
		for other := range c.members {
			if out == nil || other.quieter(out) {
				out = other
			}
		}
		delete(c.members, out)
	}
	c.members[m] = struct{}{}
	return out
}

// quieter reports whether m should go before other.
func (m *member) quieter(other *member) bool {
	a, b := m.heard.Load(), other.heard.Load()
	if a == 0 && b == 0 {
		return m.opened.Before(other.opened)
	}
	return a < b
}

// Read notes that the client is there.
func (m *member) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if n > 0 {
		m.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write notes that the client is being answered.
func (m *member) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	if n > 0 {
		m.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Close leaves the crowd.
func (m *member) Close() error {
	m.crowd.mu.Lock()
	delete(m.crowd.members, m)
	m.crowd.mu.Unlock()
	return m.Conn.Close()
}
