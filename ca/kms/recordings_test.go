//go:build conformance

package kms_test

import (
	"crypto"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/azure"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// exchange is one request to a vault or a managed HSM and its answer, as
// Microsoft's tests of its own SDK recorded them.
type exchange struct {
	Method string            `json:"RequestMethod"`
	URL    string            `json:"RequestUri"`
	Sent   json.RawMessage   `json:"RequestBody"`
	Status int               `json:"StatusCode"`
	Header map[string]string `json:"ResponseHeaders"`
	Body   json.RawMessage   `json:"ResponseBody"`
}

// recordings are all of those in the modules' folders that MAYFLY_AZKEYS names,
// by file.
func recordings(t *testing.T) map[string][]exchange {
	t.Helper()
	folders := os.Getenv("MAYFLY_AZKEYS")
	if folders == "" {
		t.Fatal("MAYFLY_AZKEYS isn't set: run internal/tools/conformance/keys.sh")
	}
	all := make(map[string][]exchange)
	for _, folder := range filepath.SplitList(folders) {
		err := filepath.WalkDir(filepath.Join(folder, "testdata", "recordings"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".json" {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			var file struct{ Entries []exchange }
			if err := json.Unmarshal(text, &file); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			all[path] = file.Entries
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// replayed is a vault that answers as recorded, and an Entra that gives tokens.
type replayed struct {
	host    string
	options kms.Options
	answers map[string]exchange // by method and path
}

const replayedTenant = "72f988bf-86f1-41af-91ab-2d7cd011db47" // as the recorded challenges say

func newReplayed(t *testing.T, hsm bool) *replayed {
	t.Helper()
	r := &replayed{host: "replayed.vault.azure.net", answers: make(map[string]exchange)}
	if hsm {
		r.host = "replayed.managedhsm.azure.net"
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { r.serve(w, q) }))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	certificate, caFile := kmstest.Certificate(t, r.host)
	server.TLS.Certificates = []tls.Certificate{certificate}
	server.StartTLS()
	t.Cleanup(server.Close)
	env := map[string]string{"AZURE_TENANT_ID": replayedTenant, "AZURE_CLIENT_ID": "app", "AZURE_CLIENT_SECRET": "secret"}
	r.options = kms.Options{
		Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL, CAFile: caFile},
		Getenv: func(name string) string { return env[name] },
		Now:    func() time.Time { return time.Date(2022, 9, 3, 0, 0, 0, 0, time.UTC) }, // of the recordings
	}
	return r
}

// open opens a key of the vault.
func (r *replayed) open(t *testing.T, path string) (kms.Signer, error) {
	t.Helper()
	return kms.OpenUntried(t.Context(), azure.Backend(), "https://"+r.host+path, r.options)
}

func (r *replayed) serve(w http.ResponseWriter, q *http.Request) {
	base := "https://" + q.Host + "/" + replayedTenant
	w.Header().Set("Content-Type", "application/json")
	switch {
	case strings.HasSuffix(q.URL.Path, "openid-configuration"):
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":%q,"token_endpoint":%q}`, base+"/v2.0", base+"/authorize", base+"/oauth2/v2.0/token")
		return
	case strings.HasSuffix(q.URL.Path, "/token"):
		fmt.Fprint(w, `{"token_type":"Bearer","expires_in":3600,"access_token":"e30.e30.sig"}`)
		return
	case q.Header.Get("Authorization") == "":
		_, domain, _ := strings.Cut(r.host, ".")
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer authorization=%q, resource=%q", "https://login.windows.net/"+replayedTenant, "https://"+domain))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	answer, ok := r.answers[q.Method+" "+strings.TrimSuffix(q.URL.Path, "/")]
	if !ok {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	for name, value := range answer.Header {
		if strings.HasPrefix(strings.ToLower(name), "x-ms-") {
			w.Header().Set(name, value)
		}
	}
	w.WriteHeader(answer.Status)
	_, _ = w.Write(answer.Body) // the client may have gone
}

// bundle is what a recorded answer says of a key.
type bundle struct {
	Key struct {
		KID    string   `json:"kid"`
		Kty    string   `json:"kty"`
		Crv    string   `json:"crv"`
		KeyOps []string `json:"key_ops"`
		N      string   `json:"n"`
	} `json:"key"`
}

// path is /keys/NAME/VERSION.
func (b bundle) path() string { return b.Key.KID[strings.Index(b.Key.KID, "/keys/"):] }

// asleep is a key that can't sign at the moment.
var asleep = regexp.MustCompile(`key: it (is disabled: enable it|expired on|isn't active before)`)

// TestRecordedKeys: each key that a recorded vault or HSM described is read, or
// refused by a name of what it is.
func TestRecordedKeys(t *testing.T) {
	read, kinds := 0, map[string]int{}
	for file, entries := range recordings(t) {
		r := newReplayed(t, strings.Contains(file, "MHSM"))
		for _, e := range entries {
			var b bundle
			if e.Status != http.StatusOK || json.Unmarshal(e.Body, &b) != nil || b.Key.Kty == "" || strings.Contains(e.URL, "/deletedkeys/") {
				continue
			}
			want := ""
			kind := b.Key.Kty + " " + b.Key.Crv
			switch {
			case len(b.Key.KeyOps) > 0 && !strings.Contains(strings.Join(b.Key.KeyOps, " "), "sign"):
				want = "its permitted operations lack sign: allow it"
			case b.Key.Crv == "P-256K":
				want = "its curve isn't supported: use P-256, P-384 or P-521"
			case strings.HasPrefix(b.Key.Kty, "oct"):
				want = "a key of type " + b.Key.Kty + " doesn't sign here: use EC or RSA"
			}
			kinds[kind]++
			r.answers["GET "+b.path()] = exchange{Status: http.StatusOK, Header: e.Header, Body: e.Body}
			s, err := r.open(t, b.path())
			switch {
			case err != nil && asleep.MatchString(err.Error()):
			case want == "" && err != nil:
				t.Errorf("%s: %s: %v", filepath.Base(file), kind, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%s: %s: %v; want %q", filepath.Base(file), kind, err, want)
			}
			if err == nil {
				read++
				kms.Close(s)
			}
		}
	}
	t.Logf("%d keys read; described: %v", read, kinds)
	if read < 20 || kinds["EC P-256"]+kinds["EC-HSM P-256"] == 0 || kinds["RSA "] == 0 || kinds["RSA-HSM "] == 0 {
		t.Errorf("%d keys were read: are these the recordings?", read)
	}
}

// TestRecordedSignature: the recorded RS256 signature of a vault comes through
// our adapter, and verifies under the key that the vault described.
func TestRecordedSignature(t *testing.T) {
	signed := 0
	for file, entries := range recordings(t) {
		described := map[string]json.RawMessage{}
		for _, e := range entries {
			var b bundle
			if e.Status == http.StatusOK && json.Unmarshal(e.Body, &b) == nil && b.Key.Kty == "RSA" {
				described[b.path()] = e.Body
			}
			var asked struct{ Alg, Value string }
			var answered struct{ KID, Value string }
			path := strings.TrimSuffix(strings.Split(e.URL, "?")[0], "/sign")
			if e.Status != http.StatusOK || !strings.HasSuffix(strings.Split(e.URL, "?")[0], "/sign") || json.Unmarshal(sent(e.Sent), &asked) != nil ||
				asked.Alg != "RS256" || json.Unmarshal(e.Body, &answered) != nil {
				continue
			}
			path = path[strings.Index(path, "/keys/"):]
			r := newReplayed(t, false)
			r.answers["GET "+path] = exchange{Status: http.StatusOK, Body: described[path]}
			r.answers["POST "+path+"/sign"] = e
			s, err := r.open(t, path)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			defer kms.Close(s)
			digest, err := base64.RawURLEncoding.DecodeString(asked.Value)
			if err != nil {
				t.Fatal(err)
			}
			sig, err := s.Sign(t.Context(), digest, crypto.SHA256) // which verifies it
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if got := base64.RawURLEncoding.EncodeToString(sig); got != answered.Value {
				t.Errorf("%s: another signature than the recorded one", file)
			}
			signed++
			digest[0] ^= 1
			if _, err := s.Sign(t.Context(), digest, crypto.SHA256); err == nil || !strings.Contains(err.Error(), "doesn't verify") {
				t.Errorf("%s: the recorded signature of another digest: %v", file, err)
			}
		}
	}
	if signed == 0 {
		t.Error("no recorded RS256 signature was found")
	}
}

// sent is a recorded body: JSON, or JSON in a string, perhaps in base64.
func sent(raw json.RawMessage) []byte {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return raw
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		return b
	}
	return []byte(text)
}

// TestRecordedRefusals: what vaults and HSMs refused is classified, with the
// vendor's own words.
func TestRecordedRefusals(t *testing.T) {
	seen := map[int]int{}
	all := recordings(t)
	for _, file := range slices.Sorted(maps.Keys(all)) {
		for _, e := range all[file] {
			if seen[e.Status] >= 50 || e.Status < 400 || e.Method != http.MethodGet && e.Method != http.MethodPost || strings.Contains(e.URL, "/deletedkeys/") {
				continue
			}
			r := newReplayed(t, strings.Contains(file, "MHSM"))
			path := "/keys/x/" + strings.Repeat("0", 32)
			r.answers["GET "+path] = e
			_, err := r.open(t, path)
			want := map[int]string{
				http.StatusBadRequest:   "the vault refused (HTTP 400",
				http.StatusUnauthorized: "the vault doesn't take the token: check the tenant (HTTP 401",
				http.StatusForbidden:    "the principal may not",
				http.StatusNotFound:     "there is no such key or version in this vault (HTTP 404, KeyNotFound: ",
				http.StatusConflict:     "the key is deleted: recover it (HTTP 409",
			}[e.Status]
			if err == nil || want == "" || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: HTTP %d: %v; want %q", filepath.Base(file), e.Status, err, want)
			}
			seen[e.Status]++ // 50 of one kind are enough
		}
	}
	t.Logf("refusals by status: %v", seen)
	if seen[http.StatusNotFound] == 0 || seen[http.StatusUnauthorized] == 0 {
		t.Error("are these the recordings?")
	}
}
