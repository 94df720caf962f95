package kms_test

import (
	"context"
	"crypto"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/kms"
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
	for _, never := range []string{"do-not-log-me", "\n"} {
		if strings.Contains(err.Error(), never) {
			t.Errorf("the error has %q in it: %v", never, err)
		}
	}
}

func TestRemoteConformance(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kmstest.Run(t, func(t *testing.T, a kms.Algorithm) kms.Signer { return vendor(t, a).open(t) })
		})
	}
}

// TestE1SignFaults: a signature that a service fails to make is an error that
// says where and at which step, is repeated where that helps, and is never
// released unless it verifies.
func TestE1SignFaults(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		for _, tt := range []struct {
			name  string
			fault func(s *standIn) fault
			calls int // signatures that are asked for
			want  []string
		}{
			{"dropped", func(*standIn) fault { return fault{drop: true} }, 3, []string{"(3 attempts, "}},
			{"throttled", func(s *standIn) fault { return s.codes["throttled"] }, 3, []string{"quota is used up", "(3 attempts, "}},
			{"internal", func(s *standIn) fault { return s.codes["internal"] }, 3, []string{"failed within itself", "(3 attempts, "}},
			{"denied", func(s *standIn) fault { return s.codes["denied"] }, 1, []string{"the principal may not", "(1 attempt, "}},
			{"disabled", func(s *standIn) fault { return s.codes["disabled"] }, 1, []string{"(1 attempt, "}},
			{"deleted", func(s *standIn) fault { return s.codes["deleted"] }, 1, []string{"(1 attempt, "}},
			{"another key", func(*standIn) fault { return fault{other: true} }, 1, []string{"doesn't verify under the key that was found at the start"}},
			{"corrupted", func(*standIn) fault { return fault{corrupt: true} }, 1, []string{"doesn't verify"}},
			{"redirected", func(*standIn) fault { return fault{status: http.StatusTemporaryRedirect} }, 1, nil},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := vendor(t, kms.ECDSAP256)
				signer := s.open(t)
				s.always(s.signing, tt.fault(s))
				before := s.count(s.signing)
				sig, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256)
				wantError(t, err, append(tt.want, s.host+": sign: ")...)
				if sig != nil {
					t.Error("a signature was released")
				}
				if got := s.count(s.signing) - before; got != tt.calls {
					t.Errorf("%d attempts; want %d", got, tt.calls)
				}
				var call *kms.CallError
				if !errors.As(err, &call) || call.Host != s.host || call.Step != "sign" || call.Attempts != tt.calls {
					t.Errorf("error %#v", call)
				}
				s.breaks(nil)
				if _, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256); err != nil {
					t.Errorf("not recovered: %v", err)
				}
			})
		}
	}
}

// TestE1SignHangs: a service that never answers costs the request's own time and
// no more, and the error names host and step.
func TestE1SignHangs(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vendor(t, kms.ECDSAP256)
			signer := s.open(t)
			s.always(s.signing, fault{hang: true})
			began := time.Now()
			_, err := signer.Sign(within(t, 300*time.Millisecond), digestOf(t, crypto.SHA256), crypto.SHA256)
			wantError(t, err, s.host+": sign: the time for it ran out (1 attempt")
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v; want context.DeadlineExceeded", err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// TestE1SlowAttempt: an attempt that takes longer than 5 s is given up, and the
// next is in time.
func TestE1SlowAttempt(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vendor(t, kms.ECDSAP256)
			signer := s.open(t)
			var slow atomic.Bool
			slow.Store(true)
			s.breaks(func(operation string, _ int) fault {
				if operation == s.signing && slow.Swap(false) {
					return fault{slow: 6 * time.Second}
				}
				return fault{}
			})
			began := time.Now()
			if _, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < 4*time.Second || took > 9*time.Second {
				t.Errorf("took %v; want the 5 s of one attempt and little more", took)
			}
		})
	}
}

// TestE1OneInTenThrottled: the retries hide it.
func TestE1OneInTenThrottled(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vendor(t, kms.ECDSAP256)
			signer := s.open(t)
			s.breaks(func(operation string, call int) fault {
				if operation == s.signing && call%10 == 0 {
					return s.codes["throttled"]
				}
				return fault{}
			})
			for range 30 {
				if _, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestE1Open: what stands in the way of a key is named when it is opened.
func TestE1Open(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		for _, tt := range []struct {
			name  string
			spoil func(s *standIn)
			want  string
		}{
			{"disabled", func(s *standIn) { s.change(func() { s.enabled = false }) }, "isable"},
			{"denied", func(s *standIn) { s.always(s.get, s.codes["denied"]) }, ": key: the principal may not"},
			{"cannot sign", func(s *standIn) { s.always(s.signing, s.codes["denied"]) }, "trial signature: signing with "},
			{"corrupted", func(s *standIn) { s.always(s.signing, fault{corrupt: true}) }, "doesn't verify"},
			{"unknown authority", func(s *standIn) {
				if s.options.Access.CAFile == "" {
					s.options.Access.CAFile = "/nowhere/ca.pem"
				} else {
					s.options.Access.CAFile = ""
				}
			}, "ca_file"},
			{"nobody listens", func(s *standIn) {
				s.options.Access.Endpoint, s.options.Access.IdentityEndpoint = "https://127.0.0.1:1", "https://127.0.0.1:1"
			}, "connect: "},
			{"no credential", func(s *standIn) { s.options.Getenv = environment() }, "aren't set"},
			{"credential unnamed", func(s *standIn) { s.options.Access.Credential = "" }, "needs a credential: set it to one of env"},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := vendor(t, kms.ECDSAP256)
				tt.spoil(s)
				signer, err := kms.Open(t.Context(), s.ref, s.options)
				if signer != nil {
					t.Error("there is a signer")
				}
				wantError(t, err, tt.want, s.ref)
			})
		}
	}
}

// TestPrincipalIsLogged, and no secret is.
func TestPrincipalIsLogged(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"aws":   {"access key AKIAEXAMPLE", "principal=arn:aws:iam::111122223333:user/ca"},
		"azure": {"secret of app app", "tenant=" + azureTenant, "object=the-object", "app=app"},
	} {
		var log lockedLog
		s := vendors[name](t, kms.ECDSAP256)
		s.options.Logger = log.logger()
		s.open(t)
		for _, part := range want {
			if !strings.Contains(log.String(), part) {
				t.Errorf("%s: the log lacks %q:\n%s", name, part, log.String())
			}
		}
		if strings.Contains(log.String(), "do-not-log-me") {
			t.Errorf("%s: the log has a secret:\n%s", name, log.String())
		}
	}
}

// TestHealth costs no signature while signatures succeed; after one that failed
// it makes one now and then, until the key is back.
func TestHealth(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vendor(t, kms.ECDSAP256)
			var clock atomic.Int64
			clock.Store(1)
			s.options.Now = func() time.Time { return time.Unix(clock.Load(), 0) }
			signer, ok := s.open(t).(kms.Healthy)
			if !ok {
				t.Fatal("has no Health")
			}
			before := s.count(s.signing)
			for range 10 {
				if err := signer.Health(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.count(s.signing); got != before {
				t.Fatalf("health cost %d signatures", got-before)
			}
			s.always(s.signing, s.codes["denied"])
			if _, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256); err == nil {
				t.Fatal("signed")
			}
			for range 5 {
				wantError(t, signer.Health(t.Context()), "the principal may not")
			}
			if got := s.count(s.signing) - before; got != 2 { // the failed one and one trial
				t.Errorf("%d signatures asked for; want 2", got)
			}
			s.breaks(nil)
			clock.Add(11)
			if err := signer.Health(t.Context()); err != nil {
				t.Errorf("not recovered: %v", err)
			}
			s.change(func() { s.enabled = false })
			wantError(t, signer.Health(t.Context()), "isable")
		})
	}
}

// TestKeyReplaced: a key that is another one suddenly signs nothing that leaves.
func TestKeyReplaced(t *testing.T) {
	t.Parallel()
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vendor(t, kms.RSA2048)
			signer := s.open(t)
			other := testKey(t, kms.RSA3072)
			s.change(func() { s.key = other })
			_, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256)
			wantError(t, err, "doesn't verify under the key that was found at the start")
		})
	}
}

// TestMetricsAreShared by the keys of one process, with outcomes of a closed list.
func TestMetricsAreShared(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	for _, vendor := range vendors {
		s := vendor(t, kms.ECDSAP256)
		s.options.Metrics = registry
		signer := s.open(t)
		s.always(s.signing, s.codes["denied"])
		if _, err := signer.Sign(t.Context(), digestOf(t, crypto.SHA256), crypto.SHA256); err == nil {
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
	for _, want := range []string{"aws sign ok", "aws sign denied", "azure sign ok", "azure sign denied", "azure key ok", "aws identity ok"} {
		parts := strings.Fields(want)
		if got[parts[0]+" "+parts[1]+" "+parts[2]] != 1 && got[parts[0]+" "+parts[2]+" "+parts[1]] != 1 {
			t.Errorf("%s isn't counted once: %v", want, got)
		}
	}
}

// TestNothingIsLeftBehind: a closed key has no goroutine.
func TestNothingIsLeftBehind(t *testing.T) {
	for name, vendor := range vendors {
		t.Run(name, func(t *testing.T) {
			known := goleak.IgnoreCurrent()
			t.Run("use", func(t *testing.T) {
				s := vendor(t, kms.ECDSAP256)
				signer := s.open(t)
				s.always(s.signing, fault{hang: true})
				if _, err := signer.Sign(within(t, 50*time.Millisecond), digestOf(t, crypto.SHA256), crypto.SHA256); err == nil {
					t.Error("signed")
				}
			})
			goleak.VerifyNone(t, known)
		})
	}
}
