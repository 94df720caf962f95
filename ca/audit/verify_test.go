package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// signedConfig is a configuration with a key for heads.
func signedConfig(t testing.TB) (Config, *ecdsa.PublicKey) {
	t.Helper()
	c := testConfig(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c.KeyFile = setting.Path(filepath.Join(t.TempDir(), "key.pem"))
	if err := os.WriteFile(string(c.KeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return c, &key.PublicKey
}

// run opens the trail, records certificates, and closes it.
func run(t testing.TB, c Config, serials ...string) {
	t.Helper()
	f := openTest(t, c)
	for _, serial := range serials {
		for _, kind := range []Type{Intent, Issued} {
			if err := f.Record(t.Context(), Event{Type: kind, Serial: serial}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// verified gives the report of a file of the trail, and what is wrong with it.
func verified(t testing.TB, c Config, name string, key *ecdsa.PublicKey, kept ...Head) (r Report, faults []string) {
	t.Helper()
	for _, file := range Files(string(c.Path)) {
		if file.Name == name {
			var err error
			if r, err = Verify(file, key, kept, func(err error) { faults = append(faults, err.Error()) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r, faults
}

// TestATrailVerifies: through rotations, compressed parts, restarts, cut lines and failed
// writes every record is chained to the one before it, and heads vouch for all.
func TestATrailVerifies(t *testing.T) {
	t.Parallel()
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprint("compress ", compress), func(t *testing.T) {
			t.Parallel()
			c, key := signedConfig(t)
			c.Rotation = Rotation{MaxSizeMB: 1, Compress: compress}
			run(t, c, "01", "02")
			run(t, c, "03")
			if f, err := os.OpenFile(string(c.Path), os.O_APPEND|os.O_WRONLY, 0); err != nil {
				t.Fatal(err)
			} else if _, err := f.WriteString(begin + "cut"); err != nil || f.Close() != nil {
				t.Fatal(err)
			}
			f := openTest(t, c)
			long := strings.Repeat("x", maxLong)
			many(t, f, 16, 100, func(id string) Event { return Event{Type: Intent, Serial: id, SAN: long} })
			many(t, f, 2, 10, func(id string) Event { return Event{Type: Denied, Message: id} })
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			run(t, c, "04") // after a rotation, perhaps into an empty file
			r, faults := verified(t, c, "trail", key)
			if len(faults) > 0 || r.Records != 1608+1+4 || r.Heads != 4 || r.Unsigned != 0 || r.Unchained != 0 || r.Later {
				t.Errorf("%+v, faults %q", r, faults)
			}
			if files, _ := Parts(string(c.Path)); len(files) < 3 {
				t.Errorf("%d parts; the test must rotate", len(files))
			}
			if r, faults := verified(t, c, "refused", key); len(faults) > 0 || r.Records != 22 || r.Heads != 2 {
				t.Errorf("refusals: %+v, faults %q", r, faults)
			}
		})
	}
}

// TestAnEmptyFileFollowsItsParts: a crash between a rotation and the first write leaves the
// chain whole.
func TestAnEmptyFileFollowsItsParts(t *testing.T) {
	t.Parallel()
	for _, packed := range []bool{false, true} {
		c, key := signedConfig(t)
		run(t, c, "01")
		part := (&trailOf{path: string(c.Path)}).part(1)
		b, err := os.ReadFile(string(c.Path))
		if err != nil {
			t.Fatal(err)
		}
		if packed {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			if _, err := w.Write(b); err != nil || w.Close() != nil {
				t.Fatal(err)
			}
			b, part = z.Bytes(), part+compressed
		}
		if err := errors.Join(os.WriteFile(part, b, 0o600), os.Truncate(string(c.Path), 0)); err != nil {
			t.Fatal(err)
		}
		run(t, c, "02")
		if r, faults := verified(t, c, "trail", key); len(faults) > 0 || r.Records != 6 || r.Heads != 2 {
			t.Errorf("packed %v: %+v, faults %q", packed, r, faults)
		}
	}
}

// TestVerifyNamesWhatWasDone: whatever is done to a line or a part is named by its place.
func TestVerifyNamesWhatWasDone(t *testing.T) {
	t.Parallel()
	stranger, _ := signedConfig(t)
	edit := func(how func(lines []string) []string) func(*testing.T, Config) {
		return func(t *testing.T, c Config) {
			t.Helper()
			b, err := os.ReadFile(string(c.Path))
			if err != nil {
				t.Fatal(err)
			}
			lines := how(strings.SplitAfter(strings.TrimSuffix(string(b), "\n"), "\n"))
			if err := os.WriteFile(string(c.Path), []byte(strings.Join(lines, "")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		harm func(*testing.T, Config)
		want string // of the first fault
	}{
		"nothing": {func(*testing.T, Config) {}, ""},
		"altered": {edit(func(l []string) []string { l[1] = strings.Replace(l[1], `"01"`, `"ff"`, 1); return l }), "line 3, can't be read: the line before it isn't the one"},
		"altered and chained anew, with what the head signed beside": {edit(func(l []string) []string {
			l[1] = strings.Replace(l[1], `"01"`, `"ff"`, 1)
			for i := 2; i < len(l); i++ {
				sum, signed := hashOf([]byte(strings.TrimSuffix(l[i-1], "\n"))), l[i][prevAt:prevAt+len(noPrev)]
				line, end := strings.CutSuffix(l[i], "\n")
				l[i] = line[:prevAt] + hex.EncodeToString(sum[:]) + strings.TrimSuffix(line[prevAt+len(noPrev):], "}") + `,"prev":"` + signed + `"}`
				if end {
					l[i] += "\n"
				}
			}
			return l
		}), "can't be read: it is a head whose signature"},
		"deleted":       {edit(func(l []string) []string { return append(l[:1:1], l[2:]...) }), "line 2, can't be read: the line before"},
		"swapped":       {edit(func(l []string) []string { l[1], l[2] = l[2], l[1]; return l }), "line 2, "},
		"added":         {edit(func(l []string) []string { return append(l[:2:2], l[1:]...) }), "line 3, "},
		"bare":          {edit(func(l []string) []string { l[2] = `{"specversion":"1.0"}` + "\n"; return l }), "line 3, can't be read: it has no hash"},
		"cut line":      {edit(func(l []string) []string { l[1] = l[1][:40] + "\n"; return l }), "line 2, "},
		"end cut":       {edit(func(l []string) []string { l[1] = strings.TrimSuffix(l[1], "\n"); return l[:2] }), "the head that went out"},
		"beginning cut": {edit(func(l []string) []string { return l[2:] }), ""}, // Report.Later tells
		"written anew": {func(t *testing.T, c Config) {
			t.Helper()
			if err := os.Remove(string(c.Path)); err != nil {
				t.Fatal(err)
			}
			c.KeyFile = stranger.KeyFile
			run(t, c, "01", "03", "02")
		}, "line 7, can't be read: it is a head whose signature"},
		"written anew, with the key": {func(t *testing.T, c Config) {
			t.Helper()
			if err := os.Remove(string(c.Path)); err != nil {
				t.Fatal(err)
			}
			run(t, c, "01", "03", "02")
		}, "the head that went out"},
		"another file's": {func(t *testing.T, c Config) {
			t.Helper()
			f := openTest(t, c)
			if err := errors.Join(f.Record(t.Context(), Event{Type: Denied}), f.Close(), os.Rename(Files(string(c.Path))[1].Path, string(c.Path))); err != nil {
				t.Fatal(err)
			}
		}, "line 2, can't be read: it is a head"},
		"a part gone": {func(t *testing.T, c Config) {
			t.Helper()
			r := &trailOf{path: string(c.Path)}
			for n := range 3 {
				if err := os.Rename(string(c.Path), r.part(n)); err != nil {
					t.Fatal(err)
				}
				run(t, c, fmt.Sprint("1", n))
			}
			if err := os.Remove(r.part(1)); err != nil {
				t.Fatal(err)
			}
		}, "02.000-size.jsonl, line 1, can't be read: the line before"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, key := signedConfig(t)
			run(t, c, "01", "02", "03")
			whole, err := os.ReadFile(string(c.Path))
			if err != nil {
				t.Fatal(err)
			}
			kept := Heads(append([]byte("<86>1 collector mayfly - "), whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:]...))
			if len(kept) != 1 {
				t.Fatal("the last line is no head")
			}
			tt.harm(t, c)
			r, faults := verified(t, c, "trail", key, kept...)
			switch {
			case tt.want == "" && len(faults) > 0:
				t.Errorf("faults %q", faults)
			case tt.want != "" && (len(faults) == 0 || !strings.Contains(faults[0], tt.want)):
				t.Errorf("faults %q, want %q", faults, tt.want)
			}
			if r.Later != (name == "beginning cut") {
				t.Errorf("Later is %v", r.Later)
			}
		})
	}
}

// TestATrailFromBeforeGoesOn: records without a hash are counted, and the chain begins
// with the last of them.
func TestATrailFromBeforeGoesOn(t *testing.T) {
	t.Parallel()
	c, key := signedConfig(t)
	old := `{"specversion":"1.0","id":"x-1","source":"s","type":"dev.mayfly.certificate.intent","time":"2026-11-22T12:00:00Z","datacontenttype":"application/json","data":{"serial":"01"}}` + "\n"
	if err := os.WriteFile(string(c.Path), []byte(old+strings.ReplaceAll(old, "01", "02")), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, c, "03")
	if r, faults := verified(t, c, "trail", key); len(faults) > 0 || r.Unchained != 2 || r.Records != 5 || r.Heads != 1 {
		t.Errorf("%+v, faults %q", r, faults)
	}
	b, err := os.ReadFile(string(c.Path))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(string(c.Path), bytes.Replace(b, []byte(`"02"`), []byte(`"ff"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, faults := verified(t, c, "trail", key); len(faults) != 1 || !strings.Contains(faults[0], "line 3, ") {
		t.Errorf("faults %q", faults)
	}
}

// TestHeadsByTheMinute: what is recorded gets a head within a minute, and quiet times none.
func TestHeadsByTheMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, key := signedConfig(t)
		f := openTest(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = f.Run(ctx) })
		defer running.Wait()
		defer cancel()
		for want := range 3 {
			if err := f.Record(t.Context(), Event{Type: Issued, Serial: fmt.Sprint(want)}); err != nil {
				t.Fatal(err)
			}
			<-time.After(3 * headEvery) // by the bubble's clock
			synctest.Wait()
			if r, faults := verified(t, c, "trail", key); len(faults) > 0 || r.Heads != want+1 || r.Unsigned != 0 {
				t.Errorf("%+v, faults %q", r, faults)
			}
		}
	})
}

// TestAppend: acts of administrators are recorded one after the other beside a service
// that holds the trail.
func TestAppend(t *testing.T) {
	t.Parallel()
	c, key := signedConfig(t)
	_ = openTest(t, c)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if err := Append(t.Context(), c, Event{Act: "log rotate", By: "root", What: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if r, faults := verified(t, c, "admin", key); len(faults) > 0 || r.Records != 8 || r.Heads != 4 {
		t.Errorf("%+v, faults %q", r, faults)
	}
	for i, r := range readFile(t, Files(string(c.Path))[2].Path) {
		if i%2 == 0 && (r.Type != "dev.mayfly.audit.admin" || r.Data["act"] != "log rotate" || r.Data["by"] != "root") {
			t.Errorf("%+v", r)
		}
	}
}

// FuzzVerify: no byte of a signed trail before its last head can be another unseen.
func FuzzVerify(f *testing.F) {
	c, key := signedConfig(f)
	run(f, c, "01", "02", "03")
	whole, err := os.ReadFile(string(c.Path))
	if err != nil {
		f.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n')
	f.Add(uint(0), byte('x'))
	f.Add(uint(prevAt+3), byte('0'))
	f.Add(uint(last), byte(' '))
	f.Fuzz(func(t *testing.T, at uint, to byte) {
		b := bytes.Clone(whole)
		at %= uint(last + 1)
		if b[at] == to {
			return
		}
		b[at] = to
		c := testConfig(t)
		if err := os.WriteFile(string(c.Path), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, faults := verified(t, c, "trail", key); len(faults) == 0 && !r.Later {
			t.Errorf("byte %d as %q isn't seen: %+v", at, to, r)
		}
	})
}
