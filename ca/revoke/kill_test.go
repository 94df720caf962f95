package revoke

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// workerEnv turns this test binary into a process that revokes until it is killed, and
// prints every statement and every list's number once it has told of them.
const workerEnv = "MAYFLY_TEST_REVOKER"

func TestMain(m *testing.M) {
	if text := os.Getenv(workerEnv); text != "" {
		fmt.Fprintln(os.Stderr, work(text))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// job is what the parent tells a worker. Its keys are in SEC 1.
type job struct {
	Config      Config
	Log, Issuer []byte
	Certificate []byte
	First       int64
}

func work(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	key, err := x509.ParseECPrivateKey(j.Log)
	if err != nil {
		return err
	}
	issuer, err := x509.ParseECPrivateKey(j.Issuer)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(j.Certificate)
	if err != nil {
		return err
	}
	ctx := context.Background()
	r, err := Open(ctx, Options{Config: j.Config, Signer: kms.InMemory(key), URL: "https://ca.example.com", ListOptions: ListOptions{
		Now: time.Now, Logger: slog.New(slog.DiscardHandler), Changed: func(_ context.Context, _ uint64, lists map[string][]byte) {
			for _, der := range lists {
				if l, err := x509.ParseRevocationList(der); err == nil {
					fmt.Printf("list %d\n", l.Number)
				}
			}
		},
	}})
	if err != nil {
		return err
	}
	r.Lists.Use(Signing{Certificate: cert, Key: kms.InMemory(issuer)}, func() {})
	go func() {
		for {
			r.Lists.sign(ctx)
		}
	}()
	for n := j.First; ; n++ {
		at, err := r.Log.Append([]Statement{draft(ID(cert), n)})
		if err != nil {
			return err
		}
		fmt.Printf("statement %d\n", at[0])
	}
}

// kills is how often the test kills: MAYFLY_KILLS, or 10.
func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("MAYFLY_KILLS")
	if text == "" {
		return 10
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MAYFLY_KILLS=%q: want a number above zero", text)
	}
	return n
}

// TestKill: a process that is killed at any moment has lost no statement that it told of,
// and no list has a lower number than one before it, in this life or the last.
func TestKill(t *testing.T) {
	t.Parallel()
	issuerKey := catest.Key(t)
	by, _ := issuing(t, issuerKey)
	r := newRig(t, nil, by)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	logKey := catest.Key(t)
	r.o.Signer = kms.InMemory(logKey)
	r.o.Config.MarkFile += ".2"
	r.o.Config.Directory += ".2"
	j := job{Config: r.o.Config, Certificate: by.Certificate.Raw, First: 1}
	var err, err2 error
	j.Log, err = x509.MarshalECPrivateKey(logKey)
	j.Issuer, err2 = x509.MarshalECPrivateKey(issuerKey)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	statements, number := int64(-1), int64(-1)
	for range kills(t) {
		text, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0]) // #nosec G204 -- this binary
		cmd.Env = append(os.Environ(), workerEnv+"="+string(text))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, most := 0, 1+rand.IntN(60)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			var kind string
			var n int64
			if _, err := fmt.Sscan(scanner.Text(), &kind, &n); err != nil {
				break // a line that was cut
			}
			if kind == "statement" && n <= statements || kind == "list" && n < number {
				t.Fatalf("%s %d, after statement %d and list %d", kind, n, statements, number)
			}
			if kind == "statement" {
				statements = n
			} else {
				number = n
			}
			if lines++; lines == most {
				_ = cmd.Process.Kill() // it may be over
			}
		}
		_ = cmd.Wait() // it was killed
		if lines < most {
			t.Fatalf("the worker ended by itself after %d lines", lines)
		}
		j.First = statements + 2
	}
	r.open(t)
	if n := int64(r.Log.Size()); n <= statements || int64(len(r.served(t, by).RevokedCertificateEntries)) < number {
		t.Errorf("%d statements after %d, a list of %d after %d", n, statements, len(r.served(t, by).RevokedCertificateEntries), number)
	}
}
