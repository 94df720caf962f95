package timestamp

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// asked is a reply to a query over message, of an authority with a key of this kind.
func asked(t testing.TB, algorithm kms.Algorithm, message string) (*Authority, []byte, time.Time) {
	t.Helper()
	f, c, _ := force(t, newAuthority(t, algorithm).load(t))
	reply, refused := f.ReplyDER(t.Context(), Ask([]byte(message)))
	if refused != nil {
		t.Fatal(refused)
	}
	return f.current.Load(), reply, c.now().UTC().Truncate(time.Second)
}

// What an authority says is read, with every kind of key, and for nobody else's
// certificate and no other message.
func TestVerify(t *testing.T) {
	for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.ECDSAP521, kms.RSA2048} {
		a, reply, at := asked(t, algorithm, "a signature")
		if got, err := Verify(reply, []byte("a signature"), a.Chain[0]); err != nil || !got.Equal(at) {
			t.Errorf("%s: %v, %v; want %v", algorithm, got, err, at)
		}
		if _, err := Verify(reply, []byte("another"), a.Chain[0]); err == nil || !strings.Contains(err.Error(), "over something else") {
			t.Errorf("%s: another message: %v", algorithm, err)
		}
		other, _, _ := asked(t, algorithm, "a signature")
		if _, err := Verify(reply, []byte("a signature"), other.Chain[0]); err == nil {
			t.Errorf("%s: another authority's certificate is taken", algorithm)
		}
	}
}

// Whatever single byte is another, the reply is refused or says the same.
func TestVerifyDamaged(t *testing.T) {
	a, reply, at := asked(t, kms.ECDSAP256, "a signature")
	refused := 0
	for i := range reply {
		for _, bit := range []byte{1, 0x80} {
			reply[i] ^= bit
			got, err := Verify(reply, []byte("a signature"), a.Chain[0])
			if err == nil && !got.Equal(at) {
				t.Fatalf("with byte %d changed it says %v", i, got)
			}
			if err != nil {
				refused++
			}
			reply[i] ^= bit
		}
		if _, err := Verify(reply[:i], []byte("a signature"), a.Chain[0]); err == nil {
			t.Fatalf("its first %d bytes are taken", i)
		}
	}
	if refused < 500 { // the certificate in it is another's to judge
		t.Errorf("%d changes are refused", refused)
	}
}

// A refusal is one, not a timestamp.
func TestVerifyRefusal(t *testing.T) {
	f, _, _ := force(t, stub(t))
	reply, _ := f.ReplyDER(t.Context(), []byte("nothing"))
	if _, err := Verify(reply, nil, f.current.Load().Chain[0]); err == nil || !strings.Contains(err.Error(), "has no timestamp") {
		t.Errorf("%v", err)
	}
}

// OpenSSL takes the query, and its own replies are read.
func TestVerifyOpenSSL(t *testing.T) {
	m := newAuthority(t, kms.RSA2048)
	a := m.load(t)
	const settings = "[tsa]\ndefault_tsa=t\n[t]\nserial=serial\ncrypto_device=builtin\nsigner_digest=sha384\ndefault_policy=1.2.3.4\ndigests=sha256\naccuracy=secs:1,millisecs:500\nclock_precision_digits=3\n"
	write(t, filepath.Join(m.dir, "tsa.cnf"), []byte(settings))
	write(t, filepath.Join(m.dir, "asked.tsq"), Ask([]byte("a signature")))
	cmd := exec.CommandContext(t.Context(), "openssl", "ts", "-reply", "-config", "tsa.cnf", "-section", "t", "-queryfile", "asked.tsq", "-out", "answered.tsr",
		"-signer", string(m.config.Chain), "-inkey", filepath.Join(m.dir, "key.pem"))
	cmd.Dir = m.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	reply, err := os.ReadFile(filepath.Join(m.dir, "answered.tsr"))
	if err != nil {
		t.Fatal(err)
	}
	at, err := Verify(reply, []byte("a signature"), a.Chain[0])
	if since := time.Since(at); err != nil || since < -time.Second || since > time.Minute {
		t.Errorf("stamped at %v: %v", at, err)
	}
	if _, err := Verify(reply, []byte("another"), a.Chain[0]); err == nil {
		t.Error("it is taken for another message")
	}
}

// FuzzVerify: nothing panics, and no other time comes of what was signed.
func FuzzVerify(f *testing.F) {
	a, reply, at := asked(f, kms.ECDSAP256, "a signature")
	f.Add(reply)
	f.Add(catest.TimestampQuery("a signature"))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if got, err := Verify(reply, []byte("a signature"), a.Chain[0]); err == nil && !got.Equal(at) {
			t.Fatalf("it says %v", got)
		}
	})
}
