package kms_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %v; want %q in it", err, part)
		}
	}
	for _, never := range []string{kmstest.Secret, "\n"} {
		if strings.Contains(err.Error(), never) {
			t.Errorf("the error has %q in it: %v", never, err)
		}
	}
}

// words are what each vendor's refusals are called in errors, where that differs.
var words = map[string]map[string]string{
	"denied": {
		"aws": "the principal may not", "azure": "the principal may not",
		"gcp": "permission denied: grant roles/cloudkms.signerVerifier and roles/cloudkms.viewer on the key: ", "vault": "permission denied, which Vault says of both: ",
	},
	"internal": {"aws": "failed within itself", "azure": "failed within itself", "gcp": "as the test says", "vault": "HTTP 500: internal error"},
	"disabled": {"aws": "the key is disabled: enable it", "azure": "InnerKeyDisabled", "gcp": "as the test says", "vault": "this version of the key may no longer sign"},
	"redirected": { // AWS's SDK hides it
		"aws": "the service refused (", "azure": "the service answered with a redirect", "gcp": "the service answered with a redirect", "vault": "the service answered with a redirect",
	},
	"deleted": {"aws": "cancel its deletion", "azure": "the key is deleted: recover it", "gcp": "there is no such key", "vault": "HTTP 400: signing key not found"},
}

// TestFileConformance holds keys in files to the suite.
func TestFileConformance(t *testing.T) { // not parallel: making RSA keys leaves no time to tests that measure it
	runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
		path := filepath.Join(t.TempDir(), "key.pem")
		if _, err := keystore.GenerateFile(path, a, nil); err != nil {
			t.Fatal(err)
		}
		return opened(t, "file:"+path, kms.Options{})
	})
}

// TestRemoteConformance holds every network backend to the suite.
func TestRemoteConformance(t *testing.T) {
	t.Parallel()
	for vendor := range kmstest.Vendors {
		t.Run(vendor, func(t *testing.T) {
			t.Parallel()
			algorithms := []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA2048, kms.RSA3072} // RSA-4096 by moto and Vault themselves: under the race detector it takes minutes
			if vendor != "gcp" {                                                                  // has no P-521
				algorithms = append(algorithms, kms.ECDSAP521)
			}
			runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer { return standIn(t, vendor, a).Open(t) }, algorithms...)
		})
	}
}

// TestSignatureFails: a signature that a service fails to make is an error that
// says where and at which step, is repeated where that helps, and is never
// released unless it verifies. The key comes back by itself.
func TestSignatureFails(t *testing.T) {
	t.Parallel()
	always := func(f kmstest.Fault) func(*kmstest.StandIn) kmstest.Fault {
		return func(*kmstest.StandIn) kmstest.Fault { return f }
	}
	code := func(name string) func(*kmstest.StandIn) kmstest.Fault {
		return func(s *kmstest.StandIn) kmstest.Fault { return s.Codes[name] }
	}
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>")
	}
	for _, tt := range []struct {
		name  string
		fault func(s *kmstest.StandIn) kmstest.Fault
		calls int // signatures that are asked for
		want  []string
	}{
		{"dropped", always(kmstest.Fault{Drop: true}), 3, []string{"(3 attempts, "}},
		{"throttled", code("throttled"), 3, []string{"quota is used up", "(3 attempts, "}},
		{"internal", code("internal"), 3, []string{"(3 attempts, "}},
		{"denied", code("denied"), 1, []string{"(1 attempt, "}},
		{"disabled", code("disabled"), 1, []string{"(1 attempt, "}},
		{"deleted", code("deleted"), 1, []string{"(1 attempt, "}},
		{"another key", always(kmstest.Fault{Other: true}), 1, []string{"doesn't verify under the key that was found at the start"}},
		{"corrupted", always(kmstest.Fault{Corrupt: true}), 1, []string{"doesn't verify under the key that was found at the start"}},
		{"redirected", always(kmstest.Fault{Answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://other.example.com", http.StatusTemporaryRedirect)
		}}), 1, nil},
		{"a proxy's page", always(kmstest.Fault{Answer: page}), 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			eachVendor(t, func(t *testing.T, vendor string) {
				s := standIn(t, vendor, kms.ECDSAP256)
				signer := s.Open(t)
				s.Always(tt.fault(s), s.Sign)
				before := s.Count(s.Sign)
				sig, err := sign(t, t.Context(), signer)
				wantError(t, err, append(tt.want, words[tt.name][vendor], s.Host+": sign: ")...)
				if sig != nil {
					t.Error("a signature was released")
				}
				calls := s.Count(s.Sign) - before
				if tt.calls > 0 && calls != tt.calls {
					t.Errorf("%d attempts; want %d", calls, tt.calls)
				}
				var call *kms.CallError
				if !errors.As(err, &call) || call.Host != s.Host || call.Step != "sign" || call.Attempts != calls {
					t.Errorf("error %#v after %d calls", call, calls)
				}
				s.Mend()
				if _, err := sign(t, t.Context(), signer); err != nil {
					t.Errorf("not recovered: %v", err)
				}
			})
		})
	}
}

// TestServiceDown: nobody listens, and then somebody does again.
func TestServiceDown(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		s.Down()
		_, err := sign(t, t.Context(), signer)
		wantError(t, err, s.Host+": connect: ", "connection refused (3 attempts, ")
		s.Up()
		if _, err := sign(t, t.Context(), signer); err != nil {
			t.Errorf("not recovered: %v", err)
		}
	})
}

// TestForgottenConnection: a connection that a firewall has forgotten costs one
// attempt, and the next has a new one, over HTTP/2 too.
func TestForgottenConnection(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		s.Freeze()
		if _, err := sign(t, t.Context(), signer); err != nil {
			t.Error(err)
		}
	})
}

// TestSignatureHangs: a service that never answers costs the request's own time and
// no more, and the error names host and step.
func TestSignatureHangs(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		s.Always(kmstest.Fault{Hang: true}, s.Sign)
		_, err := sign(t, within(t, 300*time.Millisecond), signer)
		wantError(t, err, s.Host+": sign: the time for it ran out (1 attempt")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v; want context.DeadlineExceeded", err)
		}
	})
}

// TestSlowAttempt: an attempt that takes 5 s is given up, and the next is in time.
func TestSlowAttempt(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		var slow atomic.Bool
		slow.Store(true)
		s.Break(func(operation string, _ int) kmstest.Fault {
			if operation == s.Sign && slow.Swap(false) {
				return kmstest.Fault{Slow: 6 * time.Second}
			}
			return kmstest.Fault{}
		})
		before := s.Count(s.Sign)
		if _, err := sign(t, t.Context(), signer); err != nil {
			t.Fatal(err)
		}
		if n := s.Count(s.Sign) - before; n != 2 {
			t.Errorf("%d attempts; want the slow one and one more", n)
		}
	})
}

// TestOneInTenThrottled: the retries hide it, and cost one signature in ten.
func TestOneInTenThrottled(t *testing.T) {
	t.Parallel()
	const wanted = 30
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		first := s.Count(s.Sign)
		throttled := 0
		s.Break(func(operation string, call int) kmstest.Fault {
			if operation == s.Sign && (call-first)%10 == 0 {
				throttled++ // one request at a time
				return s.Codes["throttled"]
			}
			return kmstest.Fault{}
		})
		for range wanted {
			if _, err := sign(t, t.Context(), signer); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Count(s.Sign) - first; throttled == 0 || n != wanted+throttled {
			t.Errorf("%d signatures were asked for, %d of them throttled; want %d and those", n, throttled, wanted)
		}
	})
}

// TestOpenNamesWhatIsWrong: what stands in the way of a key is named when it is opened.
func TestOpenNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func(s *kmstest.StandIn)
		want  string
	}{
		{"disabled key", func(s *kmstest.StandIn) { s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = true }) }, ""},
		{"no such key", func(s *kmstest.StandIn) { s.Remove(s.Name) }, ""},
		{"denied", func(s *kmstest.StandIn) { s.Always(s.Codes["denied"], s.Get, "list") }, ": key: "},
		{"cannot sign", func(s *kmstest.StandIn) { s.Always(s.Codes["denied"], s.Sign) }, "trial signature: signing with "},
		{"corrupted", func(s *kmstest.StandIn) { s.Always(kmstest.Fault{Corrupt: true}, s.Sign) }, "doesn't verify"},
		{"unknown authority", func(s *kmstest.StandIn) {
			if s.Options.Access.CAFile == "" {
				s.Options.Access.CAFile = "/nowhere/ca.pem"
			} else {
				s.Options.Access.CAFile = ""
			}
		}, "ca_file"},
		{"nobody listens", func(s *kmstest.StandIn) { s.Down() }, "connect: "},
		{"no credential", func(s *kmstest.StandIn) {
			s.Options.Access.Credential, s.Options.Getenv = kms.CredentialEnv, kmstest.Environment()
		}, "set"},
		{"credential unnamed", func(s *kmstest.StandIn) { s.Options.Access.Credential = "" }, "needs a credential: set it to one of env"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			eachVendor(t, func(t *testing.T, vendor string) {
				s := standIn(t, vendor, kms.ECDSAP256)
				tt.spoil(s)
				signer, err := keystore.Open(t.Context(), s.Ref, s.Options)
				if signer != nil {
					t.Error("there is a signer")
				}
				wantError(t, err, tt.want, words[tt.name][vendor], s.Ref)
			})
		})
	}
}

// TestPrincipalIsLogged, and no secret is.
func TestPrincipalIsLogged(t *testing.T) {
	t.Parallel()
	for vendor, want := range map[string][]string{
		"aws":   {"access key AKIAEXAMPLE", "principal=arn:aws:iam::111122223333:user/ca"},
		"azure": {"secret of app app", "tenant=" + kmstest.AzureTenant, "object=the-object", "app=app"},
		"gcp":   {"managed-identity", "principal=ca@mayfly-test.iam.gserviceaccount.com"},
		"vault": {"source=VAULT_TOKEN", "approle-mayfly", "accessor=a1"},
	} {
		var log lockedLog
		s := standIn(t, vendor, kms.ECDSAP256)
		s.Options.Logger = log.logger()
		s.Open(t)
		for _, part := range want {
			if !strings.Contains(log.String(), part) {
				t.Errorf("%s: the log lacks %q:\n%s", vendor, part, log.String())
			}
		}
		if strings.Contains(log.String(), kmstest.Secret) {
			t.Errorf("%s: the log has a secret:\n%s", vendor, log.String())
		}
	}
}

// TestHealth costs no signature while signatures succeed; after one that failed
// it makes one now and then, until the key is back.
func TestHealth(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		var clock atomic.Int64
		clock.Store(time.Now().Unix())
		s.Options.Now = func() time.Time { return time.Unix(clock.Load(), 0) }
		signer, ok := s.Open(t).(kms.Healthy)
		if !ok {
			t.Fatal("has no Health")
		}
		before := s.Count(s.Sign)
		for range 10 {
			if err := signer.Health(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Count(s.Sign); got != before {
			t.Fatalf("health cost %d signatures", got-before)
		}
		s.Always(s.Codes["denied"], s.Sign)
		if _, err := sign(t, t.Context(), signer); err == nil {
			t.Fatal("signed")
		}
		for range 5 {
			wantError(t, signer.Health(t.Context()), words["denied"][vendor])
		}
		if got := s.Count(s.Sign) - before; got != 2 { // the failed one and one trial
			t.Errorf("%d signatures asked for; want 2", got)
		}
		s.Mend()
		clock.Add(11)
		if err := signer.Health(t.Context()); err != nil {
			t.Errorf("not recovered: %v", err)
		}
		s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = true })
		if err := signer.Health(t.Context()); err == nil {
			t.Error("a disabled key is healthy")
		}
	})
}

// TestUnversionedIsPinned: the stand-ins fail the test for a signature by
// another version than that which Open found, and a rotation under a running CA
// changes nothing.
func TestUnversionedIsPinned(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.ECDSAP256)
		signer := s.Open(t)
		if got := fmt.Sprint(signer); got != s.Pinned {
			t.Errorf("pinned to %s; want %s", got, s.Pinned)
		}
		s.Add(s.Name, kmstest.Key(t, kms.ECDSAP384))
		if err := kms.Try(t.Context(), signer); err != nil {
			t.Error(err)
		}
	})
}

// TestKeyReplaced: a key that is another one suddenly signs nothing that leaves.
func TestKeyReplaced(t *testing.T) {
	t.Parallel()
	eachVendor(t, func(t *testing.T, vendor string) {
		s := standIn(t, vendor, kms.RSA2048)
		signer := s.Open(t)
		s.Change(s.Name, 1, func(v *kmstest.Version) { v.Key = kmstest.Key(t, kms.RSA3072) })
		_, err := sign(t, t.Context(), signer)
		wantError(t, err, "doesn't verify under the key that was found at the start")
	})
}

// TestMetricsAreShared by the keys of one process, with outcomes of a closed list.
func TestMetricsAreShared(t *testing.T) {
	t.Parallel()
	registry, metrics := prometheus.NewRegistry(), kms.NewMetrics()
	registry.MustRegister(metrics.Collectors()...)
	for vendor := range kmstest.Vendors {
		s := standIn(t, vendor, kms.ECDSAP256)
		s.Options.Metrics = metrics
		signer := s.Open(t)
		s.Always(s.Codes["denied"], s.Sign)
		if _, err := sign(t, t.Context(), signer); err == nil {
			t.Error("signed")
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			got[strings.Join(labels, " ")] = m.GetCounter().GetValue()
		}
	}
	for _, want := range []string{"aws sign ok", "aws sign denied", "azure sign ok", "azure sign denied", "gcp sign denied", "vault sign denied", "azure key ok", "aws identity ok"} {
		parts := strings.Fields(want)
		if got[parts[0]+" "+parts[1]+" "+parts[2]] != 1 && got[parts[0]+" "+parts[2]+" "+parts[1]] != 1 {
			t.Errorf("%s isn't counted once: %v", want, got)
		}
	}
}

// TestNothingIsLeftBehind: a closed key has no goroutine.
func TestNothingIsLeftBehind(t *testing.T) {
	for vendor := range kmstest.Vendors {
		t.Run(vendor, func(t *testing.T) {
			known := goleak.IgnoreCurrent()
			t.Run("use", func(t *testing.T) {
				s := standIn(t, vendor, kms.ECDSAP256)
				signer := s.Open(t)
				s.Always(kmstest.Fault{Hang: true}, s.Sign)
				if _, err := sign(t, within(t, 50*time.Millisecond), signer); err == nil {
					t.Error("signed")
				}
			})
			goleak.VerifyNone(t, known)
		})
	}
}
