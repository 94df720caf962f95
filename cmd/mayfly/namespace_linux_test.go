//go:build conformance

package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// These run in a network namespace that internal/tools/conformance/netns.sh makes,
// with the binary that MAYFLY_BIN names.

// kmsNamespace is the other end of the only link.
func kmsNamespace(t *testing.T) string {
	t.Helper()
	name := os.Getenv("MAYFLY_NAMESPACE")
	if name == "" || os.Getenv("MAYFLY_BIN") == "" {
		t.Fatal("MAYFLY_NAMESPACE or MAYFLY_BIN isn't set: run internal/tools/conformance/netns.sh")
	}
	return name
}

// credentials are ones of everybody's own making: nobody is reached to refuse them.
func credentials(t *testing.T) []string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(kmstest.Key(t, "RSA-2048"))
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "ca@mayfly-test.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": "https://oauth2.googleapis.com/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "account.json")
	if err := os.WriteFile(file, account, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"AWS_ACCESS_KEY_ID=AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY=" + kmstest.Secret, "AWS_EC2_METADATA_DISABLED=true",
		"AZURE_TENANT_ID=" + kmstest.AzureTenant, "AZURE_CLIENT_ID=app", "AZURE_CLIENT_SECRET=" + kmstest.Secret,
		"GOOGLE_APPLICATION_CREDENTIALS=" + file, "VAULT_TOKEN=" + kmstest.VaultToken,
	}
}

// TestNamespaceCheck: `mayfly kms check` against a host that swallows packets, and
// with a resolver that does, ends within 15 s and says at which host and step,
// after how many attempts and how long.
func TestNamespaceCheck(t *testing.T) {
	kmsNamespace(t)
	const aws, gcp = ":111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", kmstest.GCPRing + "/cryptoKeys/issuing"
	env := credentials(t)
	var all sync.WaitGroup
	for name, tt := range map[string]struct {
		args []string
		want string // what the last line says, as a regular expression
	}{
		// The principal is asked for first, and for 3 s only: the log alone needs it.
		"black hole aws":   {[]string{"arn:aws:kms:eu-central-1" + aws}, `kms\.eu-central-1\.amazonaws\.com: connect: no answer in time \(3 attempts, [\d.]+s\)`},
		"black hole azure": {[]string{"https://demo.vault.azure.net/keys/issuing"}, `login\.microsoftonline\.com: connect: no answer in time \(3 attempts, [\d.]+s\)`},
		"black hole gcp":   {[]string{gcp}, `cloudkms\.googleapis\.com: connect: no answer in time \(3 attempts, [\d.]+s\)`},
		"black hole vault": {[]string{"hashivault://transit/keys/ca", "--endpoint", "https://vault.hole.test:8200"}, `vault\.hole\.test:8200: connect: no answer in time \(3 attempts, [\d.]+s\)`},
		"dead DNS aws":     {[]string{"arn:aws:kms:eu-west-1" + aws}, `kms\.eu-west-1\.amazonaws\.com: DNS: no answer in time \(3 attempts, [\d.]+s\)`},
		"dead DNS azure":   {[]string{"https://demo.vault.usgovcloudapi.net/keys/issuing"}, `login\.microsoftonline\.us: DNS: no answer in time \(3 attempts, [\d.]+s\)`},
		"dead DNS gcp":     {[]string{gcp, "--endpoint", "https://cloudkms.europe-west3.rep.googleapis.com"}, `cloudkms\.europe-west3\.rep\.googleapis\.com: DNS: no answer in time \(3 attempts, [\d.]+s\)`},
		"dead DNS vault":   {[]string{"hashivault://transit/keys/ca", "--endpoint", "https://vault.dead.test:8200"}, `vault\.dead\.test:8200: DNS: no answer in time \(3 attempts, [\d.]+s\)`},
	} {
		all.Go(func() {
			t.Run(name, func(t *testing.T) {
				c := exec.CommandContext(t.Context(), os.Getenv("MAYFLY_BIN"), append([]string{"kms", "check", "--credential", "env"}, tt.args...)...) //nolint:gosec // G702: a test's own program
				c.Env = append([]string{"HOME=" + t.TempDir()}, env...)
				var said bytes.Buffer
				c.Stdout, c.Stderr = &said, &said
				began := time.Now()
				err := c.Run()
				took := time.Since(began)
				t.Logf("%v after %v:\n%s", err, took.Round(time.Millisecond), &said)
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != exitUnavailable {
					t.Errorf("ended with %v; want exit code %d", err, exitUnavailable)
				}
				if !strings.Contains(said.String(), "fix: check the host's name and the way to it") {
					t.Error("the fix isn't about the way to the host")
				}
				if !regexp.MustCompile(tt.want).MatchString(said.String()) {
					t.Errorf("want %s", tt.want)
				}
				if strings.Contains(said.String(), kmstest.Secret) {
					t.Error("a secret is shown")
				}
			})
		})
	}
	all.Wait()
}

// TestNamespaceService: a service whose KMS vanishes behind a black hole says so,
// in time, and goes on by itself when it is back.
func TestNamespaceService(t *testing.T) {
	namespace := kmsNamespace(t)
	var services []*hidden
	for vendor := range kmstest.Vendors {
		services = append(services, newHidden(t, namespace, vendor))
	}
	each := func(name string, f func(t *testing.T, h *hidden)) {
		t.Helper()
		var all sync.WaitGroup
		for _, h := range services {
			all.Go(func() { t.Run(name+"/"+h.vendor, func(t *testing.T) { f(t, h) }) })
		}
		all.Wait()
	}
	works := func(t *testing.T, h *hidden) {
		h.awaits(t, "/readyz", http.StatusOK)
		if status, retry, took := h.ask(t); status != http.StatusCreated && status != http.StatusOK {
			t.Errorf("HTTP %d, Retry-After %q, after %v", status, retry, took)
		}
	}
	each("reached", works)
	station(t, "02:00:00:00:00:66") // of no one
	each("black hole", func(t *testing.T, h *hidden) {
		if status, retry, took := h.ask(t); status != http.StatusServiceUnavailable || retry == "" {
			t.Errorf("HTTP %d, Retry-After %q, after %v; want 503 and one", status, retry, took)
		}
		h.awaits(t, "/readyz", http.StatusServiceUnavailable)
		h.awaits(t, "/healthz", http.StatusOK)
	})
	station(t, "02:00:00:00:00:02") // of the KMS
	each("reached again", works)
}

// hiddenTimeout is a request's time: request_timeout of these services.
const hiddenTimeout = 4 * time.Second

// hidden is a running binary whose key is in a stand-in that listens in the KMS's
// namespace.
type hidden struct {
	vendor string
	issuer *identitytest.Issuer
	url    string
}

func newHidden(t *testing.T, namespace, vendor string) *hidden {
	t.Helper()
	issuer, dir := identitytest.New(t), filepath.Join(t.TempDir(), "ca")
	err := createCA(t.Context(), initOptions{
		dir: dir, organization: "Example", publicURL: "http://127.0.0.1:5555", algorithm: "ECDSA-P256",
		issuers: []identity.IssuerConfig{issuer.Config()},
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(filepath.Join(dir, configName))
	if err != nil {
		t.Fatal(err)
	}
	c.Server.HTTPAddress, c.Server.GRPCAddress, c.Server.MetricsAddress = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s := kmstest.Vendors[vendor](t, issuingKey(t, dir))
	access := &s.Options.Access
	// Who gives tokens stays where it is: tokens are kept, and a KMS can vanish alone.
	access.Endpoint, access.CAFile = expose(t, namespace, s, access.CAFile)
	first := &c.CA.Authorities[0]
	first.Key, first.Access = setting.KeyRef(s.Ref), *access
	c.Server.RequestTimeout, c.CTLog.Timeout = hiddenTimeout, hiddenTimeout/2
	text, err := config.Marshal(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hidden.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"HOME=" + t.TempDir()}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "GCE_METADATA_HOST", "VAULT_TOKEN"} {
		if value := s.Options.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	p, err := launch(dir, "mayfly", env, os.Getenv("MAYFLY_BIN"), "serve", "--config", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Error(err)
		}
	})
	at, err := p.serving()
	if err != nil {
		t.Fatal(err)
	}
	return &hidden{vendor: vendor, issuer: issuer, url: at.HTTP}
}

// issuingKey is the key that `mayfly init` has made.
func issuingKey(t *testing.T, dir string) crypto.Signer {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, authorityName, "issuing.key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

// expose makes a stand-in reachable at an address of the KMS's namespace, over TLS.
func expose(t *testing.T, namespace string, s *kmstest.StandIn, caFile setting.Path) (string, setting.Path) {
	t.Helper()
	inside := listenIn(t, namespace, "10.83.0.2:0")
	_, port, err := net.SplitHostPort(inside.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	front := inside
	if plain := strings.TrimPrefix(s.URL, "http://"); plain != s.URL {
		var certificate tls.Certificate
		certificate, caFile = kmstest.Certificate(t, "kms.test")
		front = tls.NewListener(inside, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	}
	t.Cleanup(func() { _ = front.Close() })
	to := s.URL[strings.Index(s.URL, "//")+2:]
	go func() {
		for {
			from, err := front.Accept()
			if err != nil {
				return // closed
			}
			go forward(from, to)
		}
	}()
	return "https://kms.test:" + port, caFile
}

func forward(from net.Conn, to string) {
	defer from.Close()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(conn, from)
		_ = conn.Close()
	}()
	_, _ = io.Copy(from, conn)
}

// listenIn listens in another network namespace: a socket stays where it was made.
func listenIn(t *testing.T, namespace, address string) net.Listener {
	t.Helper()
	there, err := os.Open("/run/netns/" + namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	type made struct {
		net.Listener
		error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		var l net.Listener
		err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			l, err = net.Listen("tcp", address)
		}
		done <- made{l, err}
	}()
	m := <-done
	if m.error != nil {
		t.Fatal(m.error)
	}
	return m.Listener
}

// station sets where frames for the KMS go.
func station(t *testing.T, address string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", "neigh", "replace", "10.83.0.2", "lladdr", address, "nud", "permanent", "dev", "ca0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// awaits polls a page until it has the status.
func (h *hidden) awaits(t *testing.T, path string, want int) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	last := ""
	for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		status, text, err := get(ctx, h.url+path)
		if err == nil && status == want {
			t.Logf("%s is %d %q after %v", path, status, text, time.Since(began).Round(time.Millisecond))
			return
		}
		last = string(text)
	}
	t.Errorf("%s isn't %d: %s", path, want, last)
}

// ask asks for a certificate.
func (h *hidden) ask(t *testing.T) (status int, retry string, took time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(identitytest.Email))
	proof, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{
		"credentials": map[string]any{"oidcIdentityToken": h.issuer.Token(t, nil)},
		"publicKeyRequest": map[string]any{
			"publicKey":         map[string]any{"content": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))},
			"proofOfPossession": proof,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+"/api/v2/signingCert", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	response, err := (&http.Client{Timeout: patience}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	t.Logf("HTTP %d after %v: %.120s (%v)", response.StatusCode, time.Since(began).Round(time.Millisecond), text, err)
	return response.StatusCode, response.Header.Get("Retry-After"), time.Since(began)
}
