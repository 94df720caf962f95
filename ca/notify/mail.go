package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// implicitTLS is the port on which TLS comes first (RFC 8314 §3.3).
const implicitTLS = 465

// mailer sends mail: to its own addresses, or to an owner theirs.
type mailer struct {
	SMTP
	to   []string
	host string
	port int
	tls  *tls.Config
}

func newMailer(path string, to []string, c SMTP, f *setting.Faults) *mailer {
	host, port, _ := net.SplitHostPort(c.Address) // it was checked
	m := &mailer{SMTP: c, to: to, host: host, tls: &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}}
	m.port, _ = strconv.Atoi(port) // go-mail refuses 0
	var err error
	if m.tls.RootCAs, err = pemfile.PoolFile(c.CAFile); err != nil {
		f.Add(setting.Join(path, "ca_file"), "%v", err)
	}
	if _, err := m.client(); err != nil {
		f.Add(path, "%v", err)
	}
	return m
}

// client is one for a session. The password is read each time, so one that follows
// another is used at once.
func (m *mailer) client() (*mail.Client, error) {
	options := []mail.Option{mail.WithPort(m.port), mail.WithTLSConfig(m.tls), mail.WithTimeout(sendTimeout)}
	switch {
	case m.port == implicitTLS:
		options = append(options, mail.WithSSL())
	case loopback.Host(m.host) && m.CAFile == "":
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	}
	if m.Username != "" {
		password, err := m.Password.Read()
		if err != nil {
			return nil, err
		}
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(m.Username), mail.WithPassword(string(password)))
	}
	return mail.NewClient(m.host, options...)
}

// send implements sender.
func (m *mailer) send(ctx context.Context, recipient string, events []event, at time.Time) error {
	message, err := m.compose(recipient, events, at)
	if err != nil {
		return err
	}
	client, err := m.client()
	if err != nil {
		return err
	}
	return client.DialAndSendWithContext(ctx, message)
}

// compose makes a message, to recipient where there is one.
func (m *mailer) compose(recipient string, events []event, at time.Time) (*mail.Msg, error) {
	to, subject := m.to, "alert: "+events[0].Data["rule"]
	if recipient != "" {
		to = []string{recipient}
	}
	if len(events) > 1 {
		subject = fmt.Sprintf("%d alerts", len(events))
	}
	var text strings.Builder
	for _, e := range events {
		text.WriteString(e.describe() + "\n")
	}
	fmt.Fprintf(&text, "Sent by %s, which issues certificates for signatures.\n", events[0].Source)
	message := mail.NewMsg()
	message.Subject("[mayfly] " + subject)
	message.SetDateWithValue(at)
	message.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834 §5
	message.SetBodyString(mail.TypeTextPlain, text.String())
	return message, errors.Join(message.FromFormat("Mayfly", m.From), message.To(to...))
}
