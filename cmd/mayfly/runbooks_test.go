package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// yamlBlocks are a page's blocks of YAML, in their order.
func yamlBlocks(t *testing.T, path string) (all []string) {
	t.Helper()
	for _, after := range strings.Split(page(t, path), "\n```yaml\n")[1:] {
		block, _, ended := strings.Cut(after, "\n```\n")
		if !ended {
			t.Fatalf("%s: a block has no end", path)
		}
		all = append(all, block+"\n")
	}
	return all
}

// claims are those of a token, beside its times.
type claims map[string]any

// tokenCase is a token of the form that a vendor documents: the name that it is certified
// under, or the reason that it is refused for where a claim is another.
type tokenCase struct {
	claims claims
	name   string
	other  claims // instead of these, for a refusal
	reason string
}

func serviceAccount(issuer string) tokenCase {
	names := func(namespace string) claims {
		return claims{"namespace": namespace, "pod": claims{"name": "sign-x", "uid": "1"}, "serviceaccount": claims{"name": "signer", "uid": "2"}}
	}
	return tokenCase{
		claims{"iss": issuer, "aud": []string{"https://ca.example.com"}, "sub": "system:serviceaccount:release:signer", "kubernetes.io": names("release")},
		"https://kubernetes.io/namespaces/release/serviceaccounts/signer", claims{"kubernetes.io": names("default")}, "POLICY_DENIED",
	}
}

// providerPages has for each block of a page that configures issuers the tokens that it is for.
var providerPages = map[string][][]tokenCase{
	"docs/tasks/kubernetes.md": {
		{serviceAccount("https://oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF")},
		{serviceAccount("https://container.googleapis.com/v1/projects/my-project/locations/europe-west3/clusters/release")},
		{serviceAccount("https://westeurope.oic.prod-aks.azure.com/11111111-2222-3333-4444-555555555555/66666666-7777-8888-9999-000000000000/")},
		{serviceAccount("https://oidc.cluster.example.com")},
		{serviceAccount("https://kubernetes.default.svc.cluster.local")},
	},
	"docs/tasks/entra.md": {{
		{entra(true), "alice@example.com", claims{"xms_edov": false}, "POLICY_DENIED"},
		{entra("1"), "alice@example.com", claims{"email": "alice@elsewhere.example"}, "POLICY_DENIED"},
		{entra(1), "alice@example.com", claims{"tid": "another"}, "POLICY_DENIED"},
	}},
	"docs/tasks/okta.md": {{{
		claims{"iss": "https://example.okta.com", "aud": "0oa1a2b3c4d5e6f7g8h9", "sub": "00u1", "email": "alice@example.com", "email_verified": true, "ver": 1, "amr": []string{"pwd"}},
		"alice@example.com", claims{"email_verified": nil}, "EMAIL_UNVERIFIED",
	}}},
	"docs/tasks/keycloak.md": {{
		{
			claims{"iss": "https://sso.example.com/realms/example", "aud": "sigstore", "azp": "sigstore", "typ": "ID", "sub": "0b6c", "email": "alice@example.com", "email_verified": true},
			"alice@example.com", claims{"email_verified": false}, "EMAIL_UNVERIFIED",
		},
		{
			claims{"iss": "https://sso.example.com/realms/example", "aud": []string{"https://ca.example.com", "account"}, "azp": "build-signer", "typ": "Bearer", "sub": "5f1c", "preferred_username": "service-account-build-signer"},
			"5f1c!machines.example.com", claims{"azp": "sigstore"}, "TOKEN_AUDIENCE",
		},
	}},
	"docs/tasks/dex.md": {
		{{dex(), "alice@example.com", claims{"email": "alice@elsewhere.example"}, "POLICY_DENIED"}},
		{{dex(), "alice@example.com", claims{"federated_claims": nil}, "CLAIM_MISSING"}},
	},
}

func entra(verified any) claims {
	const tenant = "11111111-2222-3333-4444-555555555555"
	return claims{
		"iss": "https://login.microsoftonline.com/" + tenant + "/v2.0", "aud": "66666666-7777-8888-9999-000000000000", "tid": tenant, "ver": "2.0",
		"sub": "AAAAAAAA", "oid": "7f1c", "preferred_username": "alice@example.com", "email": "alice@example.com", "xms_edov": verified,
	}
}

func dex() claims {
	return claims{
		"iss": "https://dex.example.com", "aud": "sigstore", "sub": "CgVhbGljZQ", "email": "alice@example.com", "email_verified": true,
		"federated_claims": claims{"connector_id": "https://github.com/login/oauth", "user_id": "1"},
	}
}

// TestProviderPages: what the pages of identity providers configure has no fault beside what
// `mayfly init` writes, and certifies tokens of the form that each vendor documents.
func TestProviderPages(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "my-ca")
	if code, _, said := mayfly(t, "", "init", "--dir", ca, "--url", "https://ca.example.com"); code != exitOK {
		t.Fatal(said)
	}
	made, err := os.ReadFile(filepath.Join(ca, configName)) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
	jwks := filepath.Join(ca, "cluster.jwks.json")
	if err := os.WriteFile(jwks, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	explain := func(config string, c, other claims) (int, string) {
		token := claims{"iat": time.Now().Unix(), "nbf": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix()}
		maps.Copy(token, c)
		maps.Copy(token, other)
		maps.DeleteFunc(token, func(_ string, v any) bool { return v == nil })
		payload, err := json.Marshal(token)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		text, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		code, out, said := mayfly(t, text, "token", "explain", "--config", config, "--jwks", jwks, "--offline")
		return code, out + said
	}
	for path, configured := range providerPages {
		n := 0
		for i, block := range yamlBlocks(t, path) {
			if err := yaml.Unmarshal([]byte(block), new(any)); err != nil {
				t.Errorf("%s: block %d: %v", path, i, err)
			}
			if !strings.HasPrefix(block, "issuers:\n") {
				continue
			}
			if n++; n > len(configured) {
				t.Errorf("%s: no token is for\n%s", path, block)
				continue
			}
			config := filepath.Join(ca, fmt.Sprintf("%s.%d.yaml", filepath.Base(path), n))
			if err := os.WriteFile(config, append(made[:len(made):len(made)], block...), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, out, said := mayfly(t, "", "check", "--config", config); code != exitOK {
				t.Errorf("%s: check says\n%s%s, of\n%s", path, out, said, block)
			}
			for _, c := range configured[n-1] {
				if code, said := explain(config, c.claims, nil); code != exitOK || !strings.Contains(said, c.name) {
					t.Errorf("%s: %d, want the name %s:\n%s", path, code, c.name, said)
				}
				if code, said := explain(config, c.claims, c.other); code != exitRefused || !strings.Contains(said, c.reason) {
					t.Errorf("%s: %d, want %s for %v:\n%s", path, code, c.reason, c.other, said)
				}
			}
		}
		if n != len(configured) {
			t.Errorf("%s configures issuers in %d blocks, want %d", path, n, len(configured))
		}
	}
}

// operated is a CA that `mayfly init` made, as an operator has it, with its roots' keys in a
// folder of their own and a published trust root; a development issuer gives the tokens.
type operated struct {
	t           *testing.T
	dir, url    string
	idp, ca     *process
	issuer      string
	blocks      map[string]string
	transcripts int
}

func operate(t *testing.T) *operated {
	t.Helper()
	o := &operated{t: t, dir: workshop(t), blocks: blocks(t, "docs/runbooks.md")}
	o.idp = start(t, o.dir, "idp", append([]string{"dev", "--dir", "idp"}, freePorts()...)...)
	e, err := o.idp.endpoints(filepath.Join(o.dir, "idp"))
	if err != nil {
		t.Fatal(err)
	}
	free, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	o.url, o.issuer = "http://"+address, e.Issuer
	shell(t, o.dir, `mkdir offline backup
mayfly init --dir my-ca --url `+o.url+` --root-key-out offline/root.key.pem
sed -i 's/y20[0-9][0-9]/y2026/' my-ca/mayfly.yaml my-ca/authorities.json
sed -i 's|^server:|server:\n  http_address: `+address+`\n  grpc_address: 127.0.0.1:0\n  metrics_address: 127.0.0.1:0|' my-ca/mayfly.yaml
cat >> my-ca/mayfly.yaml <<CONFIG
issuers:
  - url: `+o.issuer+`
    audiences: [sigstore]
    type: email
    allow: "true"
    allow_insecure_loopback: true
CONFIG
mayfly tuf init --config my-ca/mayfly.yaml --key my-ca/tuf.root.pem --threshold 1 --out first.json
mayfly tuf sign first.json --key file:offline/tuf.root.key.pem --yes
mayfly tuf publish --config my-ca/mayfly.yaml first.json`)
	return o
}

// block runs one of the page's.
func (o *operated) block(name string, replace ...string) string {
	o.t.Helper()
	script, there := o.blocks["run: "+name]
	if !there {
		o.t.Fatalf("the page has no block %s", name)
	}
	replace = append(replace, "/media/offline", "offline", "/backup", filepath.Join(o.dir, "backup"), "https://ca.example.com", o.url, "https://login.example.com", o.issuer)
	return shell(o.t, o.dir, strings.NewReplacer(replace...).Replace(script))
}

// failing has a block end with a failure, as its last command does.
func (o *operated) failing(name, want string) {
	o.t.Helper()
	o.blocks["run: "+name] = "set +e\n" + o.blocks["run: "+name] + "test $? -ne 0\n"
	if said := o.block(name); !strings.Contains(said, want) {
		o.t.Errorf("%s says\n%s\nwant %q", name, said, want)
	}
}

func (o *operated) serve() {
	o.t.Helper()
	o.transcripts++
	o.ca = start(o.t, o.dir, fmt.Sprintf("serve%d", o.transcripts), "serve", "--config", "my-ca/"+configName)
	if _, err := o.ca.serving(); err != nil {
		o.t.Fatal(err)
	}
}

func (o *operated) end() {
	o.t.Helper()
	if err := o.ca.end(); err != nil {
		o.t.Fatal(err)
	}
}

// ready waits until /readyz?verbose answers so.
func (o *operated) ready(code int, want string) {
	o.t.Helper()
	var last string
	err := o.ca.until("/readyz says "+want, func() (bool, error) {
		got, body, err := get(o.t.Context(), o.url+"/readyz?verbose")
		last = string(body)
		return got == code && strings.Contains(last, want), err
	})
	if err != nil {
		o.t.Fatalf("%v; it says\n%s", err, last)
	}
}

func (o *operated) token() {
	o.t.Helper()
	shell(o.t, o.dir, "curl -sf '"+o.issuer+"/dev/token?email=alice@example.com' > token.jwt")
}

// request gets a certificate for the token that is there.
func (o *operated) request() string {
	o.t.Helper()
	return shell(o.t, o.dir, "mayfly request --ca "+o.url+" --token-file token.jwt --force")
}

// edit changes the configuration.
func (o *operated) edit(change func(string) string) {
	o.t.Helper()
	path := filepath.Join(o.dir, "my-ca", configName)
	text, err := os.ReadFile(path) // #nosec G304 -- a test's own file
	if err != nil {
		o.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(text))), 0o600); err != nil { // #nosec G703 -- a test's own file
		o.t.Fatal(err)
	}
}

// nextSecond returns in the next second: certificates and trusted roots know nothing finer.
func (o *operated) nextSecond() {
	o.t.Helper()
	this := now()
	if err := o.ca.until("the second is over", func() (bool, error) { return now() != this, nil }); err != nil {
		o.t.Fatal(err)
	}
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }

// leak has a CA with a certificate in old.pem and another after the leak, and lets a new
// authority follow at once. It gives what the page's time of the leak is.
func leak(t *testing.T) (o *operated, leaked []string) {
	t.Helper()
	o = operate(t)
	o.serve()
	o.token()
	o.request()
	shell(t, o.dir, "cp mayfly.crt.pem old.pem")
	o.nextSecond() // the time before the leak isn't empty
	from := now()
	o.nextSecond()
	o.request()
	end := regexp.MustCompile(`its window ends at (\S+)\.\n`).FindStringSubmatch(o.block("leak"))
	if end == nil {
		t.Fatal("activating another says no end of the window")
	}
	if err := o.ca.until("the new authority signs", func() (bool, error) {
		// One that fetched the trusted root just before the switch fails.
		shell(t, o.dir, "mayfly request --ca "+o.url+" --token-file token.jwt --force || true")
		return strings.Contains(shell(t, o.dir, "openssl x509 -in mayfly.crt.pem -noout -issuer"), "Example issuing 2027"), nil
	}); err != nil {
		t.Fatal(err)
	}
	return o, []string{"2026-11-29T10:00:00Z", from, "2026-11-29T12:30:00Z", end[1]}
}

// follow waits until a client of the signed trust root has a version of targets, and
// has what it is told in trusted_root.json.
func (o *operated) follow(targets string) {
	o.t.Helper()
	if err := o.ca.until("clients are told", func() (bool, error) {
		return strings.Contains(shell(o.t, o.dir, "mayfly tuf verify --url "+o.url+"/tuf --root my-ca/tuf/1.root.json"), "targets    "+targets+","), nil
	}); err != nil {
		o.t.Fatal(err)
	}
	shell(o.t, o.dir, "mayfly tuf export --url "+o.url+"/tuf --root my-ca/tuf/1.root.json > trusted_root.json")
}

// leakExcised excises the time from a leak to the end of the authority's window: clients
// believe no authority at any time in between.
func leakExcised(t *testing.T, _ string) {
	begun := time.Now()
	o, leaked := leak(t)
	o.blocks["run: leak-count"] = strings.TrimSpace(o.blocks["run: leak-count"]) + " || true\n"
	hits := regexp.MustCompile(`could sign in \S+: (\d+)\n`).FindStringSubmatch(o.block("leak-count", leaked...))
	if hits == nil || hits[1] == "0" {
		t.Fatalf("it counts %v", hits)
	}
	if said := o.block("leak-excise", append(leaked, "--hits 17", "--hits "+hits[1])...); !strings.Contains(said, "Published.") || !strings.Contains(said, "no faults") {
		t.Errorf("excising says\n%s", said)
	}
	o.follow("3")
	t.Logf("from the leak to a root that clients follow: %v", time.Since(begun))
	var root struct {
		CertificateAuthorities []struct {
			ValidFor struct{ Start, End time.Time }
		}
	}
	text, err := os.ReadFile(filepath.Join(o.dir, "trusted_root.json"))
	if err != nil {
		t.Fatal(err)
	}
	from, err := time.Parse(time.RFC3339, leaked[1])
	if err != nil {
		t.Fatal(err)
	}
	to, err := time.Parse(time.RFC3339, leaked[3])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &root); err != nil || len(root.CertificateAuthorities) < 2 {
		t.Fatalf("%v: %s", err, text)
	}
	for _, authority := range root.CertificateAuthorities {
		if w := authority.ValidFor; !w.End.Before(from) && !w.Start.After(to) {
			t.Errorf("of %v to %v clients believe %v to %v", from, to, w.Start, w.End)
		}
	}
	o.end()
}

// leakDistrusted takes the authority out: what it signed is refused, and what the new one
// signs isn't.
func leakDistrusted(t *testing.T, _ string) {
	begun := time.Now()
	o, _ := leak(t)
	if said := o.block("leak-distrust"); !strings.Contains(said, "y2026 is distrusted") || !strings.Contains(said, "Published.") {
		t.Errorf("distrusting says\n%s", said)
	}
	o.follow("3")
	t.Logf("from the leak to a root that clients follow: %v", time.Since(begun))
	if said := shell(t, o.dir, "mayfly authority list --config my-ca/mayfly.yaml"); !regexp.MustCompile(`(?m)^y2026 +distrusted(.|\n)*^y2027 +active`).MatchString(said) {
		t.Errorf("it says\n%s", said)
	}
	o.request()
	shell(t, o.dir, "mayfly cert show --trusted-root trusted_root.json mayfly.crt.pem\n! mayfly cert show --trusted-root trusted_root.json old.pem")
	o.end()
}

// lostLog puts an older copy of a log back, which is refused; restores a whole backup; and
// where the backup is behind has another log follow.
func lostLog(t *testing.T, _ string) {
	o := operate(t)
	o.serve()
	o.token()
	o.request()
	o.end()
	shell(t, o.dir, "cp -a my-ca/ctlog older")
	o.serve()
	o.request()
	o.request() // a copy that lacks the last write alone is made whole: the mark has that
	o.end()
	shell(t, o.dir, "mayfly log backup --dir my-ca/ctlog --to backup/ctlog\nmv my-ca/ctlog lost\ncp -a older my-ca/ctlog")
	refused := start(t, o.dir, "refused", "serve", "--config", "my-ca/"+configName)
	select {
	case <-refused.ended:
	case <-time.After(patience):
		t.Fatal("it serves an older copy")
	}
	if said := refused.said(); refused.err == nil || !strings.Contains(said, "but had 3 before: an older copy") {
		t.Errorf("started on an older copy it says %v\n%s", refused.err, said)
	}
	o.failing("log-look", "an older copy")
	if said := o.block("log-restore"); !strings.Contains(said, "The log of 3 entries is in my-ca/ctlog") {
		t.Errorf("restore says\n%s", said)
	}
	o.serve()
	if said := o.request(); !strings.Contains(said, "leaf 3") {
		t.Errorf("the restored log goes on with\n%s", said)
	}
	o.request()
	o.end()

	shell(t, o.dir, "rm -r my-ca/ctlog.older")
	o.failing("log-restore", "the backup is older than the log was")
	o.block("log-new")
	o.followedLog()
	if said := o.block("log-create"); !strings.Contains(said, "no faults") || !strings.Contains(said, "Published.") {
		t.Errorf("another log says\n%s", said)
	}
	o.serve()
	if said := o.request(); !strings.Contains(said, "leaf 0") {
		t.Errorf("the new log begins with\n%s", said)
	}
	if said := shell(t, o.dir, "mayfly log list --config my-ca/mayfly.yaml"); !strings.Contains(said, "\nfrozen ") || !strings.Contains(said, "\nactive ") {
		t.Errorf("the logs are\n%s", said)
	}
	o.end()
}

// followedLog writes the page's section of a lost log into the configuration.
func (o *operated) followedLog() {
	o.t.Helper()
	section := yamlBlocks(o.t, "docs/runbooks.md")[0]
	o.edit(func(config string) string {
		before, rest, found := strings.Cut(config, "\nctlog:\n")
		old, after, ended := strings.Cut(rest, "\n# Where clients get the trust root")
		setting := func(name string) string {
			m := regexp.MustCompile(`(?m)^    ` + name + `: (\S+)$`).FindStringSubmatch(old)
			if !found || !ended || m == nil {
				o.t.Fatalf("no %s in\n%s", name, config)
			}
			return m[1]
		}
		section = strings.NewReplacer("https://ca.example.com/ctlog/2026", setting("url"), "2026-01-01T00:00:00Z", setting("start"),
			"2026-11-29T18:10:00Z", time.Now().Add(10*time.Minute).UTC().Format(time.RFC3339)).Replace(section)
		return before + "\n" + section + "\n# Where clients get the trust root" + after
	})
}

// fullDisk has less space than the floor: not ready, and certificates all the same.
func fullDisk(t *testing.T, _ string) {
	o := operate(t)
	floor := func(mb string) {
		o.edit(func(config string) string {
			config = regexp.MustCompile(`(?m)^    min_free_mb: .*\n`).ReplaceAllString(config, "")
			return strings.Replace(config, "    key: file:ctlog.key.pem\n", "    key: file:ctlog.key.pem\n    min_free_mb: "+mb+"\n", 1)
		})
	}
	free, err := durable.FreeBytes(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	floor(fmt.Sprint(2 * free >> 20))
	o.serve()
	o.ready(200, "log: warning")
	o.token()
	o.request()
	o.end()
	floor("999999999")
	o.serve()
	o.ready(503, "log: failing")
	if said := o.block("disk"); !strings.Contains(said, "my-ca/ctlog") {
		t.Errorf("the disk's commands say\n%s", said)
	}
	o.end()
	floor("1")
	o.serve()
	o.ready(200, "log: ok")
	o.end()
}

// timeSource is an NTP server (RFC 5905 §7.3) that is off by so much.
func timeSource(t *testing.T, off *atomic.Int64) string {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		query := make([]byte, 128)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			answer := make([]byte, 48)
			answer[0], answer[1], answer[2], answer[3] = 4<<3|4, 1, 6, 0xe9 // version and mode, stratum, poll, precision
			copy(answer[12:], "TEST")
			copy(answer[24:32], query[40:48])
			now := time.Now().Add(time.Duration(off.Load()))
			for _, field := range []int{16, 32, 40} { // when it was set, received this, and answers
				const epoch = 2208988800 // from 1900 to 1970
				binary.BigEndian.PutUint32(answer[field:], uint32(now.Unix()+epoch))
				binary.BigEndian.PutUint32(answer[field+4:], uint32(uint64(now.Nanosecond())<<32/1e9))
			}
			_, _ = conn.WriteTo(answer, from)
		}
	}()
	return conn.LocalAddr().String()
}

// wrongClock has a time source that is an hour away from the machine's clock: certificates
// and no timestamps, until they agree.
func wrongClock(t *testing.T, _ string) {
	o := operate(t)
	var off atomic.Int64
	off.Store(int64(time.Hour))
	o.edit(func(config string) string {
		return strings.Replace(config, "\ntimestamp:\n", "\ntimestamp:\n  time_sources: ['"+timeSource(t, &off)+"']\n", 1)
	})
	o.serve()
	o.ready(200, "timestamps: failing, but certificates can be issued")
	if said := o.block("clock-look"); !strings.Contains(said, "timestamps: failing") || !strings.Contains(o.ca.said(), "the clock is off by") {
		t.Errorf("/readyz says\n%s\nand the log\n%s", said, o.ca.said())
	}
	o.token()
	o.request()
	shell(t, o.dir, "date > v1\n! mayfly request --ca "+o.url+" --token-file token.jwt --sign v1")
	o.end()
	off.Store(0)
	o.serve()
	o.ready(200, "timestamps: ok")
	o.token()
	shell(t, o.dir, "mayfly request --ca "+o.url+" --token-file token.jwt --sign v1")
	o.end()
}

// issuerDown ends the issuer: its keys are used until a restart, and then from a file.
func issuerDown(t *testing.T, _ string) {
	o := operate(t)
	o.serve()
	o.token()
	shell(t, o.dir, "curl -sf "+o.issuer+"/keys > backup/issuer.jwks.json")
	o.request()
	if err := o.idp.end(); err != nil {
		t.Fatal(err)
	}
	o.request()
	o.end()
	o.serve()
	o.ready(503, "no keys yet; the last attempt failed")
	if said := shell(t, o.dir, "! mayfly request --ca "+o.url+" --token-file token.jwt --force"); !strings.Contains(said, "ISSUER_UNAVAILABLE") {
		t.Errorf("without keys it says\n%s", said)
	}
	o.failing("issuer-look", "discovery  failed")
	o.block("issuer-file")
	o.ready(200, "issuers: ok")
	o.request()
	o.end()
}

// lostIndex deletes the index, which is made again of the log.
func lostIndex(t *testing.T, _ string) {
	o := operate(t)
	o.serve()
	o.token()
	o.request()
	o.ready(200, ": 1 of 1 entries")
	o.end()
	o.block("index")
	o.serve()
	o.ready(200, ": 1 of 1 entries")
	if said := o.block("index-search"); !strings.Contains(said, "alice@example.com") {
		t.Errorf("the new index finds\n%s", said)
	}
	o.end()
}

// fromFulcio takes over a configuration, a key and a log of Fulcio's.
func fromFulcio(t *testing.T, config string) {
	dir := workshop(t)
	fulcio, err := filepath.Abs(filepath.Join("..", "..", "config", "fulcio", "testdata", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	shell(t, dir, "cp "+fulcio+` fulcio-config.yaml
mayfly ca init --organization Old --key file:root.key.pem --generate ECDSA-P384 --out root.pem
mayfly ca intermediate --issuer root.pem --issuer-key file:root.key.pem --key file:issuing.key.pem --generate ECDSA-P256 --out chain.pem
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout -out ctfe.pub.pem`)
	page := blocks(t, "docs/runbooks.md")
	said := shell(t, dir, page["run: fulcio-issuers"]+page["run: fulcio-key"]+config+"cat decided.txt\nmayfly log list --config mayfly.yaml")
	for _, want := range []string{"issuing.key.pem is the first certificate's, and signs", "mayfly.yaml: no faults", "issuers    11", `decided: https://accounts.google.com: allow: "true"`, "frozen  https://ctfe.example.com/log "} {
		if !strings.Contains(said, want) {
			t.Errorf("it says\n%s\nwant %q", said, want)
		}
	}
}
