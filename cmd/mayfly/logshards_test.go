package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
)

// shardedCA is the folder of a CA that mayfly init made, and the configuration's file.
func shardedCA(t *testing.T) (dir, file string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ca")
	err := createCA(t.Context(), initOptions{
		dir: dir, organization: "Example", publicURL: "http://127.0.0.1:5555", algorithm: "ECDSA-P256",
		issuers: []identity.IssuerConfig{identitytest.New(t).Config()},
	}, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, configName)
}

// rotateAt carries out a rotation at a moment.
func rotateAt(t *testing.T, o rotateOptions, now time.Time) (rotation, error) {
	t.Helper()
	c, err := config.Load(o.file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := planRotation(c, o, now)
	if err != nil {
		return r, err
	}
	return r, r.carryOut(t.Context(), o.file)
}

// TestRotateNames: every log gets names, a key and a time of its own, year by year.
func TestRotateNames(t *testing.T) {
	t.Parallel()
	dir, file := shardedCA(t)
	now := time.Date(2040, 6, 1, 0, 0, 0, 0, time.UTC)
	year := now.Year() + 1
	for n := range 3 {
		o := rotateOptions{file: file, yearly: true}
		if n == 2 { // a second one in a year
			o = rotateOptions{file: file, at: fmt.Sprintf("%d-07-01", year+1)}
		}
		r, err := rotateAt(t, o, now)
		if err != nil {
			t.Fatal(err)
		}
		label := []string{fmt.Sprint(year), fmt.Sprint(year + 1), fmt.Sprintf("%d-2", year+1)}[n]
		for got, want := range map[string]string{
			r.next.URL: "http://127.0.0.1:5555/ctlog/" + label, string(r.next.Directory): filepath.Join(dir, "ctlog-"+label),
			string(r.next.MarkFile): filepath.Join(dir, "ctlog-"+label+".mark"), string(r.next.Key): "file:" + filepath.Join(dir, "ctlog-"+label+".key.pem"),
		} {
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		c, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		if own := c.CTLog.Own(); len(own) != n+2 || !own[n].End.Equal(r.next.Start) || own[n].Key == own[n+1].Key {
			t.Errorf("%d logs, the one before ends %s", len(own), own[n].End)
		}
		if _, err := rotateAt(t, rotateOptions{file: file, yearly: true}, now); err == nil || !strings.Contains(err.Error(), "the next log is there already") {
			t.Errorf("a second rotation at once: %v", err)
		}
		now = r.next.Start.Add(time.Hour)
	}
}

// TestRotateLeavesNothing: a rotation that fails at its end takes away what it made.
func TestRotateLeavesNothing(t *testing.T) {
	t.Parallel()
	dir, file := shardedCA(t)
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := planRotation(c, rotateOptions{file: file, yearly: true}, time.Date(2040, 6, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, "x: 1\n"...), 0o600); err != nil { // somebody writes meanwhile
		t.Fatal(err)
	}
	if err := r.carryOut(t.Context(), file); err == nil || !strings.Contains(err.Error(), "change it by hand") {
		t.Errorf("got %v", err)
	}
	if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
		t.Errorf("%v is left, of %v; %v", after, before, err)
	}
	if err := os.WriteFile(string(r.next.MarkFile), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.carryOut(t.Context(), file); err == nil || !strings.Contains(err.Error(), "file already exists") {
		t.Errorf("a file in the way: %v", err)
	}
	if kept, err := os.ReadFile(string(r.next.MarkFile)); err != nil || string(kept) != "precious" {
		t.Errorf("a file in the way became %q, %v", kept, err)
	}
}

// TestRotateTwice: of two rotations at once one makes the log, and the other takes
// nothing of it away.
func TestRotateTwice(t *testing.T) {
	t.Parallel()
	dir, file := shardedCA(t)
	key := filepath.Join(dir, "given.pem") // as in a KMS: nothing of it is made here
	if _, err := keystore.GenerateFile(key, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := planRotation(c, rotateOptions{file: file, yearly: true, key: "file:" + key}, time.Date(2040, 6, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- r.carryOut(t.Context(), file) }()
		}
		if err, other := <-errs, <-errs; (err == nil) == (other == nil) {
			t.Fatalf("%v and %v, want one error", err, other)
		}
		if _, err := maintain.Verify(t.Context(), string(r.next.Directory), maintain.VerifyOptions{MarkFile: string(r.next.MarkFile)}); err != nil {
			t.Fatalf("the log that was made: %v", err)
		}
		for _, err := range []error{os.RemoveAll(string(r.next.Directory)), os.Remove(string(r.next.MarkFile)), os.WriteFile(file, text, 0o600)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestFreezeWaitsForPromises: a log that owes an entry is not frozen.
func TestFreezeWaitsForPromises(t *testing.T) {
	t.Parallel()
	_, file := shardedCA(t)
	began := time.Now()
	r, err := rotateAt(t, rotateOptions{file: file, force: true, at: began.Add(time.Minute).UTC().Format(time.RFC3339)}, began)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := maintain.KeyOf(string(r.before.Directory))
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"type":"dev.mayfly.certificate.issued","time":%q,"data":{"serial":"5e41a1","log_id":"%x","leaf_hash":"%x","log_index":0,"sct_timestamp":%[1]q}}`+"\n",
		began.Format(time.RFC3339Nano), sha256.Sum256(spki), sha256.Sum256(nil))
	if err := os.WriteFile(string(c.Audit.Path), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	f := freezing{config: c, file: file, now: began}
	if err := f.find(nil); err == nil {
		t.Error("a log in use is chosen")
	}
	f.now = r.next.Start
	if err := f.find(nil); err != nil || f.path != "ctlog.embedded" {
		t.Fatalf("%s, %v", f.path, err)
	}
	quiet := streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}
	if err := f.check(t.Context(), quiet); err == nil || !strings.Contains(err.Error(), "serial number 5e41a1") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(string(c.Audit.Path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.check(t.Context(), quiet); err != nil {
		t.Errorf("a log that owes nothing: %v", err)
	}
}
