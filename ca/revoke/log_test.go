package revoke

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestLog: what is appended is there after a restart, under a signed checkpoint, with
// proofs that another implementation of RFC 6962 takes; a certificate is revoked once.
func TestLog(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for n := int64(1); n <= 9; n++ {
		if made, err := r.Log.Append([]Statement{draft(oneID, n), draft(oneID, n)}); err != nil || made[0] != uint64(n-1) || made[1] != made[0] {
			t.Fatalf("%+v, %v", made, err)
		}
	}
	r.now = begin.AddDate(1, 0, 0)
	r.reopen(t)
	again := draft(oneID, 4)
	again.Reason, again.Comment = "superseded", "another wish"
	made, err := r.Log.Append([]Statement{again, draft("00", 4)})
	if err != nil || made[0] != 3 || made[1] != 9 {
		t.Fatalf("%+v, %v", made, err)
	}
	head, err := r.Log.Checkpoint(t.Context())
	if err != nil || head.Size != 10 {
		t.Fatalf("%+v, %v", head, err)
	}
	v, err := checkpoint.NewVerifier("ca.example.com/revocations", r.o.Signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkpoint.Open(head.Raw, v); err != nil {
		t.Error(err)
	}
	for i := range head.Size {
		line, err := r.Log.Line(i)
		if err != nil {
			t.Fatal(err)
		}
		path, err := r.Log.Proof(i, head.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, head.Size, rfc6962.DefaultHasher.HashLeaf(line), path, head.Root); err != nil {
			t.Errorf("statement %d: %v", i, err)
		}
	}
}

// TestCanonical: a statement is JSON of sorted names without spaces, whatever is in it.
func TestCanonical(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	s := draft(oneID, 0xabc)
	s.Comment, s.Reference, s.Fingerprint = `<b>&"ü"`, "https://tickets.example.com/1?a=b&c=d", "ff"
	s.ApprovedBy = &Asker{Issuer: "https://i.example", Right: rightAdmin, Rule: "r", SAN: "b@example.com", SANType: "email"}
	if _, err := r.Log.Append([]Statement{s}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Log.Line(0)
	want := `{"approved_by":{"issuer":"https://i.example","right":"administer","rule":"r","san":"b@example.com","san_type":"email"},"authority":"` + oneID +
		`","by":{"right":"administer","rule":"r"},"certificate_fingerprint":"ff","comment":"<b>&\"ü\"","index":0,"not_before":"2027-01-01T12:00:00Z","reason":"keyCompromise",` +
		`"reference":"https://tickets.example.com/1?a=b&c=d","serial":"abc","time":"2027-01-01T12:00:00Z"}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

// TestOpenRefuses: statements that aren't those that were made, or not all of them, are
// refused with what to do; what a crash left behind is not.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm func(t *testing.T, file, mark string)
		want string // of the error; "" opens
		size uint64
	}{
		"nothing": {func(*testing.T, string, string) {}, "", 3},
		"a line cut short, which nobody was told of": {func(t *testing.T, file, _ string) {
			edit(t, file, func(b []byte) []byte { return append(b, `{"authority":"`...) })
		}, "", 3},
		"the newest is missing": {func(t *testing.T, file, _ string) {
			edit(t, file, func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] })
		}, "older copy", 0},
		"the newest is cut short": {func(t *testing.T, file, _ string) {
			edit(t, file, func(b []byte) []byte { return b[:len(b)-5] })
		}, "older copy", 0},
		"another reason": {func(t *testing.T, file, _ string) {
			edit(t, file, func(b []byte) []byte { return bytes.Replace(b, []byte("keyCompromise"), []byte("superseded"), 1) })
		}, "aren't those that were made", 0},
		"two swapped": {func(t *testing.T, file, _ string) {
			edit(t, file, func(b []byte) []byte {
				l := bytes.SplitAfter(b, []byte("\n"))
				return bytes.Join([][]byte{l[1], l[0], l[2]}, nil)
			})
		}, "statement 0 is damaged", 0},
		"spaces": {func(t *testing.T, file, _ string) {
			edit(t, file, func(b []byte) []byte { return bytes.Replace(b, []byte(`,"index":1`), []byte(`, "index":1`), 1) })
		}, "statement 1 is damaged", 0},
		"no file":   {func(t *testing.T, file, _ string) { remove(t, file) }, "it had 3 statements: restore the directory", 0},
		"no folder": {func(t *testing.T, file, _ string) { remove(t, filepath.Dir(file)) }, "it had 3 statements: restore the directory", 0},
		"no mark":   {func(t *testing.T, _, mark string) { remove(t, mark) }, "restore the file", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			for n := int64(1); n <= 3; n++ {
				if _, err := r.Log.Append([]Statement{draft(oneID, n)}); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			c.harm(t, filepath.Join(string(r.o.Config.Directory), statementsName), string(r.o.Config.MarkFile))
			opened, err := Open(t.Context(), r.o)
			if err == nil {
				defer func() { _ = opened.Close() }()
				if c.want != "" || opened.Log.Size() != c.size {
					t.Errorf("opened with %d statements", opened.Log.Size())
				}
			} else if c.want == "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
}

// TestOneWriter: two processes can't have the statements.
func TestOneWriter(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	o := r.o
	o.Config.MarkFile += "2"
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

// TestDiskFails: what may not be durable is not answered, told of, or followed by
// anything; a restart goes on from what the disk holds.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if _, err := r.Log.Append([]Statement{draft(oneID, 1)}); err != nil {
		t.Fatal(err)
	}
	whole := r.Log.file
	broken, err := os.Open(whole.Name()) // which can't be written
	if err != nil {
		t.Fatal(err)
	}
	r.Log.file = broken
	for range 2 {
		if made, err := r.Log.Append([]Statement{draft(oneID, 2)}); fault.From(err) == nil || fault.From(err).Reason != fault.LogUnavailable {
			t.Fatalf("%v, %v", made, err)
		}
	}
	if r.Log.Size() != 1 {
		t.Error("told of what may not be durable")
	}
	if err := whole.Close(); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	if made, err := r.Log.Append([]Statement{draft(oneID, 2)}); err != nil || made[0] != 1 {
		t.Errorf("%v, %v", made, err)
	}
}

func edit(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseStatement(f *testing.F) {
	s := draft(oneID, 5)
	line, err := s.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		s, err := ParseStatement(line)
		if err != nil {
			return
		}
		if again, err := s.encode(); err != nil || !bytes.Equal(again, line) {
			t.Errorf("%s came back as %s, %v", line, again, err)
		}
	})
}
