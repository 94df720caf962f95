package conformance

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// repository stands between clients and the TUF repository of a Mayfly: it hands on
// what that serves, or what an attacker makes of it.
type repository struct {
	*httptest.Server
	mu    sync.Mutex
	seen  map[string][]byte // by name, as it was handed on last
	forge func(name string, honest []byte, seen map[string][]byte) []byte
}

func startRepository(t *testing.T, m *mayfly) *repository {
	t.Helper()
	r := &repository{seen: make(map[string][]byte)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		inner, err := http.NewRequestWithContext(request.Context(), http.MethodGet, m.HTTP+"/tuf"+request.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		response, err := caller(t).Do(inner)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode == http.StatusOK {
			body = r.answer(path.Base(request.URL.Path), body)
		}
		w.WriteHeader(response.StatusCode)
		_, _ = w.Write(body)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *repository) answer(name string, honest []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forge != nil {
		return r.forge(name, honest, r.seen)
	}
	r.seen[name] = honest
	return honest
}

// attack has the repository forge until the test ends.
func (r *repository) attack(forge func(name string, honest []byte, seen map[string][]byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := maps.Clone(r.seen)
	r.forge = func(name string, honest []byte, _ map[string][]byte) []byte { return forge(name, honest, seen) }
}

// version is what precedes the name of a file of which there is one each version.
var version = regexp.MustCompile(`^[0-9]+\.`)

// expires is the year in which metadata ends.
var expires = regexp.MustCompile(`("expires": ?")20[0-9]{2}`)

// earlier is a file of the same role as it was seen before.
func earlier(name string, seen map[string][]byte) []byte {
	role := version.ReplaceAllString(name, "")
	for before, content := range seen {
		if before != name && version.ReplaceAllString(before, "") == role {
			return content
		}
	}
	return nil
}

// forgeries are what an attacker makes of a file, nil for none.
var forgeries = map[string]func(name string, honest []byte, seen map[string][]byte) []byte{
	"tampered-metadata": func(name string, honest []byte, _ map[string][]byte) []byte {
		if strings.HasSuffix(name, ".targets.json") {
			return expires.ReplaceAll(honest, []byte("${1}2099"))
		}
		return nil
	},
	"tampered-target": func(name string, honest []byte, _ map[string][]byte) []byte {
		if strings.HasSuffix(name, ".trusted_root.json") {
			return bytes.Replace(honest, []byte("Conformance"), []byte("Conf0rmance"), 1)
		}
		return nil
	},
	"truncated-timestamp": func(name string, honest []byte, _ map[string][]byte) []byte {
		if name == "timestamp.json" {
			return honest[:len(honest)/2]
		}
		return nil
	},
	"truncated-target": func(name string, honest []byte, _ map[string][]byte) []byte {
		if strings.HasSuffix(name, ".trusted_root.json") {
			return honest[:len(honest)/2]
		}
		return nil
	},
	// An older snapshot and its targets under the names of the new.
	"mixed-versions": func(name string, _ []byte, seen map[string][]byte) []byte {
		if strings.HasSuffix(name, ".snapshot.json") || strings.HasSuffix(name, ".targets.json") {
			return earlier(name, seen)
		}
		return nil
	},
	// Everything as it was before, to a client that knows more.
	"replayed": func(name string, _ []byte, seen map[string][]byte) []byte {
		return seen["older "+name]
	},
}

// TestForgedTUF has clients refuse a trust root that isn't what was signed, and one
// that was signed but isn't in force any more.
func TestForgedTUF(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), withTLS)
	m.Issuer, m.environment = issuer.Issuer, trustingTLS(t)
	log := startRekorTiles(t)
	m.trusts(t, nil, log)
	people := newSigners(t, 3)
	m.publish(t, people.private[:2], append([]string{"init"}, people.named()...)...)
	pinned := m.download(t, t.TempDir(), "/tuf/1.root.json")
	file := artifact(t)
	signed := filepath.Join(t.TempDir(), "bundle.json")
	told := func(t *testing.T, mirror string) documents {
		t.Helper()
		return documents{trustedRoot: mirror, signingConfig: pinned, home: t.TempDir(), logged: true, stamped: true}
	}
	d := told(t, m.HTTP+"/tuf")
	if err := cosignBegins(t, m, d); err != nil {
		t.Fatal(err)
	}
	if err := cosignSigns(t, m, d, signed, file); err != nil {
		t.Fatal(err)
	}

	// What was in force before, as one client saw it.
	before := startRepository(t, m)
	if err := cosignBegins(t, m, told(t, before.URL)); err != nil {
		t.Fatal(err)
	}
	m.trusts(t, nil, log, startRekorTiles(t))
	m.publish(t, people.private[:2], "stage")

	// learns fetches the trust root and uses it.
	clients := map[string]func(t *testing.T, d documents) error{
		"cosign-v3": func(t *testing.T, d documents) error { t.Helper(); return cosignBegins(t, m, d) },
		"sigstore-python": func(t *testing.T, d documents) error {
			t.Helper()
			c := followers["sigstore-python-tuf"]
			if err := c.begin(t, m, d); err != nil {
				return err
			}
			return c.verify(t, m, d, aliceEmail, signed, file)
		},
		"sigstore-js": func(t *testing.T, d documents) error {
			t.Helper()
			return sigstoreJS.verify(t, m, d, aliceEmail, signed, file)
		},
		"sigstore-go": func(t *testing.T, d documents) error {
			t.Helper()
			return sigstoreGoFollows(t, m, d, aliceEmail, signed, file)
		},
	}
	for name, learns := range clients {
		t.Run("honest-"+name, func(t *testing.T) {
			if err := learns(t, told(t, startRepository(t, m).URL)); err != nil {
				t.Error(err)
			}
		})
	}
	for attack, forge := range forgeries {
		for name, learns := range clients {
			if attack == "replayed" && name == "cosign-v3" { // its initialize forgets what it knew
				continue
			}
			t.Run(attack+"-"+name, func(t *testing.T) {
				between := startRepository(t, m)
				d := told(t, between.URL)
				if attack == "replayed" { // only who remembers the newer can tell
					if err := learns(t, d); err != nil {
						t.Fatal("before the attack: ", err)
					}
				}
				between.mu.Lock()
				for name, content := range before.seen {
					between.seen[name] = content
					between.seen["older "+name] = content
				}
				between.mu.Unlock()
				var forged atomic.Bool
				between.attack(func(name string, honest []byte, seen map[string][]byte) []byte {
					if made := forge(name, honest, seen); made != nil && !bytes.Equal(made, honest) {
						forged.Store(true)
						return made
					}
					return honest
				})
				if err := learns(t, d); err == nil {
					t.Error("accepted")
				} else {
					t.Log(err)
				}
				if !forged.Load() {
					t.Error("the client never asked for what was forged")
				}
			})
		}
	}
}
