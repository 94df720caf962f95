package notify

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// sendOnce sends one event to a target by itself.
func sendOnce(t *testing.T, target Target) error {
	t.Helper()
	var f setting.Faults
	l := Load("alerts", Config{Targets: []Target{target}}, &f)
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	e := event{SpecVersion: "1.0", ID: "1", Source: "https://ca.example.com", Type: typePrefix + "certificate", Data: map[string]string{"rule": "r", "san": "<!channel> & co"}}
	return l.targets[target.Name].sender.send(t.Context(), "", []event{e}, time.Unix(1_700_000_000, 0))
}

// TestAddressPolicy: nobody at a metadata or loopback address is sent anything unless the
// configuration allows the network, whether a name or a redirect leads there.
func TestAddressPolicy(t *testing.T) {
	t.Parallel()
	inside := newReceiver(t)
	for _, url := range []string{
		"https://169.254.169.254/latest/meta-data", "https://[fd00:ec2::254]/", "https://168.63.129.16/", "https://10.0.0.1/", inside.URL,
		strings.Replace(inside.URL, "127.0.0.1", "localhost", 1), "https://[::ffff:169.254.169.254]/",
	} {
		target := hook(t, "hook", url)
		target.AllowNetworks = nil
		if err := sendOnce(t, target); err == nil || !strings.Contains(err.Error(), "not one of the public Internet") {
			t.Errorf("%s: %v", url, err)
		}
		target = Target{Name: "chat", Slack: secret(t, url)}
		if err := sendOnce(t, target); err == nil || !strings.Contains(err.Error(), "not one of the public Internet") {
			t.Errorf("a chat at %s: %v", url, err)
		}
	}
	redirecting := httptest.NewServer(http.RedirectHandler(inside.URL, http.StatusTemporaryRedirect))
	defer redirecting.Close()
	if err := sendOnce(t, hook(t, "hook", redirecting.URL)); err == nil || !strings.Contains(err.Error(), "answered 307") {
		t.Errorf("a redirect: %v", err)
	}
	if inside.asked != 0 {
		t.Errorf("the receiver inside was asked %d times", inside.asked)
	}
	if err := sendOnce(t, hook(t, "hook", inside.URL)); err != nil || inside.asked != 1 {
		t.Errorf("with its network allowed: %v", err)
	}
}

// TestSignature holds the headers to Standard Webhooks' own description; a foreign
// library verifies them in internal/tools/conformance.
func TestSignature(t *testing.T) {
	t.Parallel()
	at := newReceiver(t)
	other := []byte("another secret of 32 bytes, here")
	target := hook(t, "hook", at.URL)
	target.Secret = secret(t, someSecret+"\nwhsec_"+base64.StdEncoding.EncodeToString(other))
	for range 2 {
		if err := sendOnce(t, target); err != nil {
			t.Fatal(err)
		}
	}
	m := at.messages[0]
	if again := at.messages[1]; m.header.Get("webhook-id") != again.header.Get("webhook-id") || m.header.Get("webhook-signature") != again.header.Get("webhook-signature") {
		t.Error("the same message has another id when it is sent again")
	}
	var want []string
	for _, key := range [][]byte{[]byte("0123456789abcdef0123456789abcdef"), other} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(m.header.Get("webhook-id") + ".1700000000." + string(m.body)))
		want = append(want, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if got := m.header.Get("webhook-signature"); got != strings.Join(want, " ") || m.header.Get("webhook-timestamp") != "1700000000" || m.header.Get("Content-Type") != "application/cloudevents+json" {
		t.Errorf("%v, want %v", m.header, want)
	}
}

// TestChat: a chat gets one line an event, in which nothing is markup.
func TestChat(t *testing.T) {
	t.Parallel()
	at := newReceiver(t)
	if err := sendOnce(t, Target{Name: "chat", Slack: secret(t, at.URL+"/T/B/X"), AllowNetworks: []string{"127.0.0.0/8"}}); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(at.messages[0].body, &got); err != nil || got["text"] != "certificate  rule: r  san: &lt;!channel&gt; &amp; co\n" || len(got) != 1 {
		t.Errorf("%s, %v", at.messages[0].body, err)
	}
}

// TestSecretsStaySecret: no error has a secret, nor the URL that is one.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]Target{
		"no secret":       {Name: "t", Webhook: "https://example.com", Secret: secret(t, "hunter2")},
		"a short secret":  {Name: "t", Webhook: "https://example.com", Secret: secret(t, "whsec_aHVudGVyMg==")},
		"a wrong letter":  {Name: "t", Webhook: "https://example.com", Secret: secret(t, "whsec_hunter2!")},
		"no file":         {Name: "t", Webhook: "https://example.com", Secret: setting.Secret{File: "/nowhere"}},
		"no file of URLs": {Name: "t", Slack: setting.Secret{File: "/nowhere"}},
	} {
		var f setting.Faults
		Load("alerts", Config{Targets: []Target{target}}, &f)
		if err := f.Err(); err == nil || !strings.HasPrefix(err.Error(), "alerts.targets[0]: ") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, url := range []string{"https://127.0.0.1:1/hunter2", "://hunter2", "https://hunter2.invalid/"} {
		if err := sendOnce(t, Target{Name: "t", Slack: secret(t, url), AllowNetworks: []string{"127.0.0.0/8"}}); err == nil || strings.Contains(err.Error(), "/hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// FuzzMail: whatever certificates hold, an owner's mail goes to one address, and none of
// it becomes a header.
func FuzzMail(f *testing.F) {
	for _, san := range []string{"alice@example.com", "a@b\r\nBcc: eve@example.com", `"a b"@example.com`, "a@b, c@d", "<a@b>", "ä@exämple.com", "a@b (c)", "@", "a@[127.0.0.1]", "a@b\x00", "a@xn--nxasmq6b"} {
		f.Add(san, "x\r\nBcc: eve@example.com\r\n\r\n.\r\n")
	}
	f.Fuzz(func(t *testing.T, san, value string) {
		if !isAddress(san) {
			return
		}
		m := &mailer{SMTP: SMTP{From: "ca@example.com"}}
		message, err := m.compose(san, []event{{ID: "1", Type: typePrefix + "certificate", Data: map[string]string{"san": san, "rule": "r", "value": value}}}, time.Unix(1_700_000_000, 0))
		if err != nil {
			return // it waits, and is given up
		}
		var text bytes.Buffer
		if _, err := message.WriteTo(&text); err != nil {
			t.Fatal(err)
		}
		read, err := mail.ReadMessage(&text)
		if err != nil {
			t.Fatal(err)
		}
		to, err := read.Header.AddressList("To")
		if err != nil || len(to) != 1 || to[0].Address != san || read.Header.Get("Bcc") != "" || read.Header.Get("Subject") != "[mayfly] alert: r" {
			t.Errorf("%q: %v, %v", san, read.Header, err)
		}
		if recipients, err := message.GetRecipients(); err != nil || len(recipients) != 1 || recipients[0] != "<"+san+">" {
			t.Errorf("%q goes to %v, %v", san, recipients, err)
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := func() Config {
		return Config{
			Rules: []Rule{{Name: "r", Event: Certificate, Targets: []string{"mail", "hook", "chat"}}, {Name: "s", Event: Silence, After: time.Hour, Targets: []string{"owners"}}},
			Targets: []Target{
				{Name: "mail", Email: []string{"ops@example.com"}}, {Name: "owners", Owner: true, Digest: 24 * time.Hour},
				{Name: "hook", Webhook: "https://hooks.example.com/mayfly", Secret: setting.Secret{File: "x"}}, {Name: "chat", Slack: setting.Secret{Env: "CHAT"}},
			},
			SMTP: SMTP{Address: "mail.example.com:587", From: "ca@example.com"},
		}
	}
	for name, c := range map[string]struct {
		change func(*Config)
		fault  string
	}{
		"good":               {func(*Config) {}, ""},
		"nothing":            {func(c *Config) { *c = Config{} }, ""},
		"two of a name":      {func(c *Config) { c.Rules[1].Name = "r" }, `alerts.rules[1].name: r is the name of another one`},
		"name":               {func(c *Config) { c.Targets[0].Name = "Mail" }, `alerts.targets[0].name: "Mail" isn't 1 to 64`},
		"on nothing":         {func(c *Config) { c.Rules[0].Event = "" }, "alerts.rules[0].event: must be one of certificate, first_use, silence, revocation"},
		"condition":          {func(c *Config) { c.Rules[0].When = `sann == "x"` }, "alerts.rules[0].when: doesn't compile: "},
		"condition's type":   {func(c *Config) { c.Rules[0].When = `san` }, "alerts.rules[0].when: is of type string"},
		"no silence":         {func(c *Config) { c.Rules[0].After = time.Hour }, "alerts.rules[0].after: goes with `event: silence`"},
		"endless silence":    {func(c *Config) { c.Rules[1].After = 0 }, "alerts.rules[1].after: goes with `event: silence`"},
		"nobody":             {func(c *Config) { c.Rules[0].Targets = nil }, "alerts.rules[0].targets: required"},
		"somebody else":      {func(c *Config) { c.Rules[0].Targets[1] = "x" }, "alerts.rules[0].targets[1]: must be the name of one"},
		"twice":              {func(c *Config) { c.Rules[0].Targets[1] = "mail" }, "alerts.rules[0].targets[1]: must be the name of one"},
		"two ways":           {func(c *Config) { c.Targets[0].Owner = true }, "alerts.targets[0]: must have exactly one"},
		"no way":             {func(c *Config) { c.Targets[0].Email = nil }, "alerts.targets[0]: must have exactly one"},
		"no secret":          {func(c *Config) { c.Targets[2].Secret = setting.Secret{} }, "alerts.targets[2].secret: goes with webhook"},
		"secret of a chat":   {func(c *Config) { c.Targets[3].Secret = setting.Secret{Env: "X"} }, "alerts.targets[3].secret: goes with webhook"},
		"plain http":         {func(c *Config) { c.Targets[2].Webhook = "http://hooks.example.com" }, "alerts.targets[2].webhook: must be https"},
		"networks of a mail": {func(c *Config) { c.Targets[0].AllowNetworks = []string{"10.0.0.0/8"} }, "alerts.targets[0]: has allow_networks"},
		"short digest":       {func(c *Config) { c.Targets[1].Digest = time.Second }, "alerts.targets[1].digest: must be at least 1m"},
		"no address":         {func(c *Config) { c.Targets[0].Email[0] = "Ops <ops@example.com>" }, "alerts.targets[0].email[0]: must be a mail address"},
		"no server":          {func(c *Config) { c.SMTP.Address = "mail.example.com" }, "alerts.smtp.address: required"},
		"no sender":          {func(c *Config) { c.SMTP.From = "" }, "alerts.smtp.from: required"},
		"half a login":       {func(c *Config) { c.SMTP.Username = "mayfly" }, "alerts.smtp: has only one of"},
		"many":               {func(c *Config) { c.Targets = make([]Target, 17) }, "alerts: has 2 rules and 17 targets"},
	} {
		var f setting.Faults
		config := good()
		c.change(&config)
		config.Check("alerts", &f)
		err := f.Err()
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.HasPrefix(err.Error(), c.fault)) {
			t.Errorf("%s: %v, want %q", name, err, c.fault)
		}
	}
}
