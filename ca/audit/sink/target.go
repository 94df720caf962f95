package sink

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// target takes records in their order: all of them are there once send returns nil, and
// any number of them may be after an error. Records have no line ends.
type target interface {
	send(ctx context.Context, records [][]byte) error
	close()
}

func newTarget(c audit.Sink, out io.Writer) (target, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "stdout" {
		return lines{out, make(chan struct{}, 1)}, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if config.RootCAs, err = pemfile.PoolFile(c.CAFile); err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	s := &syslog{network: "tcp", address: u.Host, host: "-"}
	switch u.Scheme {
	case "http", "https":
		return &post{url: c.URL, token: setting.Secret{File: c.BearerTokenFile}, client: &http.Client{
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConns: 1, MaxResponseHeaderBytes: 64 << 10},
			// A token goes where the configuration says, and nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}, nil
	case "unix":
		s.network, s.address = "unixgram", u.Path
	case "tls":
		config.ServerName = u.Hostname()
		s.tls = config
	}
	if host, err := os.Hostname(); err == nil {
		s.host = host
	}
	return s, nil
}

// lines writes records as they are, one a line.
type lines struct {
	io.Writer
	turn chan struct{} // full during a write
}

// send leaves a write that hangs to itself when its time is over: nothing can end it.
// The next waits for it.
func (l lines) send(ctx context.Context, records [][]byte) error {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Write(append(bytes.Join(records, []byte("\n")), '\n'))
		<-l.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (lines) close() {}

// post sends batches of CloudEvents (HTTP Protocol Binding 1.0.2 §3.3).
type post struct {
	client *http.Client
	url    string
	token  setting.Secret
}

func (p *post) send(ctx context.Context, records [][]byte) error {
	body := append(append([]byte("["), bytes.Join(records, []byte(","))...), ']')
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/cloudevents-batch+json; charset=UTF-8")
	if !p.token.IsZero() {
		token, err := p.token.Read()
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+string(token))
	}
	answer, err := bounded.Do(p.client, r, 64<<10) // read, so that the connection can be used again
	if answer == nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %d where 2xx is expected", p.url, answer.StatusCode)
	}
	return nil
}

func (p *post) close() { p.client.CloseIdleConnections() }

// syslog sends a record as one message of RFC 5424: over streams with its length before
// it (RFC 6587 §3.4.1; over TLS RFC 5425 §4.3), to a socket as one datagram.
type syslog struct {
	network, address string
	tls              *tls.Config // nil for none
	host             string
	conn             net.Conn // nil while there is none
}

// Priorities (RFC 5424 §6.2.1): 13 is the facility for audit, and the severities are
// informational, notice and warning.
const (
	informational = 13*8 + 6
	notice        = 13*8 + 5
	warning       = 13*8 + 4
)

var priorities = map[string]int{"issued": informational, "intent": informational, "head": informational, "failed": warning, "recovered": warning}

// timeFormat has no more digits than RFC 5424 §6.2.3 allows.
const timeFormat = "2006-01-02T15:04:05.999999Z07:00"

// message appends the message of a record.
func (s *syslog) message(b, record []byte) ([]byte, error) {
	r, err := audit.ParseRecord(record)
	if err != nil {
		return b, err
	}
	return fmt.Appendf(b, "<%d>1 %s %s mayfly %d %s - %s", cmp.Or(priorities[r.Type], notice), r.Time.UTC().Format(timeFormat), s.host, os.Getpid(), r.Type, record), nil
}

func (s *syslog) send(ctx context.Context, records [][]byte) (err error) {
	if err := s.connected(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	deadline, _ := ctx.Deadline()
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	conn := s.conn // s has none any more once this ended
	defer context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) })()
	var out []byte
	for _, record := range records {
		m, err := s.message(nil, record)
		if err != nil {
			return err
		}
		if s.network == "unixgram" {
			if _, err := s.conn.Write(m); err != nil {
				return err
			}
			continue
		}
		out = append(append(strconv.AppendInt(out, int64(len(m)), 10), ' '), m...)
	}
	if len(out) > 0 {
		_, err = s.conn.Write(out)
	}
	return err
}

// connected has a connection that the other side hasn't ended, as far as that is known.
func (s *syslog) connected(ctx context.Context) error {
	if s.conn != nil && s.network == "tcp" {
		var ended [1]byte
		_ = s.conn.SetReadDeadline(time.Now().Add(time.Millisecond)) // a collector says nothing
		if _, err := s.conn.Read(ended[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			s.close()
		}
	}
	if s.conn != nil {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, s.network, s.address)
	if err != nil {
		return err
	}
	if s.tls != nil {
		secure := tls.Client(conn, s.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = secure
	}
	s.conn = conn
	return nil
}

func (s *syslog) close() {
	if s.conn != nil {
		_ = s.conn.Close() // what matters was written, or is sent again
		s.conn = nil
	}
}
