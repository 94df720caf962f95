package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/internal/bounded"
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

const (
	maxReply    = 4 << 10 // of an answer is read, so that its connection can be used again
	maxChatLine = 350     // bytes: a chat cuts what has more than 40,000 characters in all
)

// poster posts to a webhook, or to a chat's.
type poster struct {
	Target
	client *http.Client
}

func newPoster(path string, t Target, f *setting.Faults) *poster {
	p := &poster{t, &http.Client{
		Transport:     oidc.NewTransport(path, t.AllowNetworks, t.CAFile, f),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	var err error
	if t.Webhook != "" {
		_, err = p.secrets()
	} else {
		_, err = t.Slack.Read()
	}
	f.When(err != nil, path, "%v", err)
	return p
}

// send implements sender.
func (p *poster) send(ctx context.Context, _ string, events []event, at time.Time) error {
	if p.Webhook == "" {
		return p.sendChat(ctx, events)
	}
	secrets, err := p.secrets()
	if err != nil {
		return err
	}
	kind, message := "application/cloudevents+json", any(events[0])
	if p.Digest > 0 {
		kind, message = "application/cloudevents-batch+json", events
	}
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	header := http.Header{"Content-Type": {kind}}
	sign(header, secrets, body, at)
	return p.post(ctx, p.Webhook, header, body)
}

// sign adds the headers of Standard Webhooks 1.0.0. The message's id is made of its
// content: what is sent again has it again, and a digest that has grown another.
func sign(header http.Header, secrets [][]byte, body []byte, at time.Time) {
	sum := sha256.Sum256(body)
	id, when := "msg_"+hex.EncodeToString(sum[:16]), strconv.FormatInt(at.Unix(), 10)
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		fmt.Fprintf(mac, "%s.%s.%s", id, when, body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	header.Set("Webhook-Id", id)
	header.Set("Webhook-Timestamp", when)
	header.Set("Webhook-Signature", strings.Join(signatures, " "))
}

// secrets are read each time, so one that follows another is used at once. The error
// holds nothing of them.
func (p *poster) secrets() (all [][]byte, err error) {
	text, err := p.Secret.Read()
	for _, word := range strings.Fields(string(text)) {
		encoded, found := strings.CutPrefix(word, "whsec_")
		secret, failed := base64.StdEncoding.DecodeString(encoded)
		if !found || failed != nil || len(secret) < 24 || len(secret) > 64 {
			return nil, errors.New("must hold whsec_ and base64 of 24 to 64 random bytes, as of `echo whsec_$(openssl rand -base64 32)`")
		}
		all = append(all, secret)
	}
	if err == nil && len(all) == 0 {
		err = errors.New("holds no secret")
	}
	return all, err
}

// escapeChat is what Slack wants escaped.
var escapeChat = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func (p *poster) sendChat(ctx context.Context, events []event) error {
	var text strings.Builder
	for _, e := range events {
		line := e.headline()
		if len(line) > maxChatLine {
			line = strings.ToValidUTF8(line[:maxChatLine], "") + "…"
		}
		text.WriteString(escapeChat.Replace(line) + "\n")
	}
	body, err := json.Marshal(map[string]string{"text": text.String()})
	to, unread := p.Slack.Read()
	if err := errors.Join(err, unread); err != nil {
		return err
	}
	return p.post(ctx, string(to), http.Header{"Content-Type": {"application/json"}}, body)
}

// post sends a body. The error doesn't hold the URL, which may be a secret.
func (p *poster) post(ctx context.Context, to string, header http.Header, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return errors.New("the target's URL can't be used")
	}
	request.Header = header
	request.Header.Set("User-Agent", "mayfly-alerts")
	answer, err := bounded.Do(p.client, request, maxReply)
	if failed := (*url.Error)(nil); answer == nil && errors.As(err, &failed) {
		return failed.Err
	} else if answer == nil {
		return err
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("the receiver answered %d; expected 200 to 299", answer.StatusCode)
	}
	return nil
}
