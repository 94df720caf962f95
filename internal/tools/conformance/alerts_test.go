package conformance

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"mime/quotedprintable"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAlerts: the library of Standard Webhooks verifies what a webhook gets, in order and
// each once though it was down before; a foreign mail server gets mail after STARTTLS and
// a login, for each owner their own, and one that it refuses holds up no other.
func TestAlerts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mayfly-data")
	m := startDevIn(t, dir)
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of more than 24 bytes"))
	hook := start(t, node(t), filepath.Join(setting(t, "CONFORMANCE_NODE"), "webhook.mjs"), secret)
	hookURL := firstLine(t, hook)
	certificate, key := tlsCertificate(t)
	port := freePort(t)
	server := start(t, python(t, "python"), "python/mailserver.py", port, certificate, key, "mayfly", "hunter2")
	firstLine(t, server)

	secrets := t.TempDir()
	write(t, filepath.Join(secrets, "hook"), []byte(secret+"\n"))
	write(t, filepath.Join(secrets, "password"), []byte("hunter2\n"))
	path := filepath.Join(dir, "mayfly.yaml")
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m.stopDev(t)
	text := string(config)
	if !strings.Contains(text, "\nstore:") {
		text += "\nstore:\n  path: index.db\n"
	}
	write(t, path, []byte(text+`
alerts:
  rules:
    - name: example-people
      event: certificate
      when: 'san_type == "email" && domain == "example.com"'
      targets: [hook, owners]
  targets:
    - name: hook
      webhook: `+hookURL+`
      secret: {file: `+secrets+`/hook}
      allow_networks: [127.0.0.0/8]
    - name: owners
      owner: true
  smtp:
    address: localhost:`+port+`
    from: ca@example.com
    username: mayfly
    password: {file: `+secrets+`/password}
    ca_file: `+certificate+`
`))
	m = startDevIn(t, dir)
	people := []string{"alice@example.com", "nobody@example.com", "bob@example.com"}
	for _, who := range append([]string{"eve@example.net"}, people...) {
		issueTo(t, m, who)
	}
	type delivered struct {
		Verified bool
		Body     struct {
			Type, Source string
			Data         map[string]string
		}
	}
	type received struct {
		From, Message string
		To            []string
	}
	m.process.until(t, "both owners have their mail, while the webhook is down", func() bool {
		return strings.Contains(m.process.output.String(), "the receiver answered 503") && len(jsonLines[received](t, server)) >= 2
	})
	get(t, hookURL+"up")
	m.process.until(t, "the webhook has all", func() bool { return len(jsonLines[delivered](t, hook)) >= len(people) })
	var told []string
	for _, d := range jsonLines[delivered](t, hook) {
		told = append(told, d.Body.Data["san"])
		if !d.Verified || d.Body.Type != "dev.mayfly.alert.certificate" || d.Body.Data["rule"] != "example-people" || d.Body.Data["issuer"] != m.Issuer {
			t.Errorf("%+v", d)
		}
	}
	if !slices.Equal(told, people) {
		t.Errorf("the webhook has %v", told)
	}
	for _, r := range jsonLines[received](t, server) {
		message, err := mail.ReadMessage(strings.NewReader(r.Message))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(message.Body))
		if err != nil {
			t.Fatal(err)
		}
		other := map[string]string{"alice@example.com": "bob@example.com", "bob@example.com": "alice@example.com"}[strings.Join(r.To, " ")]
		if other == "" || r.From != "ca@example.com" || message.Header.Get("To") != "<"+r.To[0]+">" ||
			!strings.Contains(string(body), "    san: "+r.To[0]+"\r\n") || strings.Contains(r.Message, other) {
			t.Errorf("to %v:\n%s", r.To, r.Message)
		}
	}
}

// issueTo gets a certificate for somebody from the development issuer's token.
func issueTo(t *testing.T, m *mayfly, who string) {
	t.Helper()
	folder := t.TempDir()
	query := url.Values{"email": {who}, "sub": {who}, "aud": {"sigstore"}}
	write(t, filepath.Join(folder, "token"), get(t, m.Issuer+"/dev/token?"+query.Encode()))
	command(t, nil, setting(t, "MAYFLY_BIN"), "request", "--ca", m.HTTP, "--token-file", filepath.Join(folder, "token"),
		"--trusted-root", m.trustedRoot, "--output-key", filepath.Join(folder, "key.pem"), "--output-certificate", filepath.Join(folder, "cert.pem"))
}

// tlsCertificate makes a certificate of localhost's own with openssl.
func tlsCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	folder := t.TempDir()
	certificate, key = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	command(t, nil, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost", "-days", "2", "-keyout", key, "-out", certificate)
	return certificate, key
}

// firstLine is what a program says once it listens.
func firstLine(t *testing.T, p *process) (line string) {
	t.Helper()
	p.until(t, "it says where it listens", func() (found bool) {
		line, _, found = strings.Cut(p.output.String(), "\n")
		return found
	})
	return strings.TrimSpace(line)
}

// jsonLines are the lines of JSON that a program printed.
func jsonLines[T any](t *testing.T, p *process) (all []T) {
	t.Helper()
	for line := range strings.Lines(p.output.String()) {
		var one T
		if strings.HasPrefix(line, "{") && strings.HasSuffix(line, "\n") {
			if err := json.Unmarshal([]byte(line), &one); err != nil {
				t.Fatal(err)
			}
			all = append(all, one)
		}
	}
	return all
}
