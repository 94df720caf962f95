package timestamp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// OpenSSL makes the queries and verifies the replies, of every kind of key and every
// hash function: the second opinion on all that is built here.
func TestOpenSSLVerifies(t *testing.T) {
	for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.ECDSAP521, kms.RSA2048} {
		t.Run(string(algorithm), func(t *testing.T) {
			m := newAuthority(t, algorithm)
			f, c, _ := force(t, m.load(t))
			message := filepath.Join(m.dir, "message")
			write(t, message, []byte("what was signed"))
			attime := strconv.FormatInt(c.now().Unix(), 10)
			for _, hash := range []string{"-sha256", "-sha384", "-sha512"} {
				for _, more := range [][]string{{"-cert"}, {"-cert", "-no_nonce"}, {}} {
					asked, answered := filepath.Join(m.dir, "asked.tsq"), filepath.Join(m.dir, "answered.tsr")
					openssl(t, append([]string{"ts", "-query", "-data", message, hash, "-out", asked}, more...)...)
					query, err := os.ReadFile(asked)
					if err != nil {
						t.Fatal(err)
					}
					reply, refused := f.ReplyDER(t.Context(), query)
					if refused != nil {
						t.Fatal(refused)
					}
					write(t, answered, reply)
					verify := []string{"ts", "-verify", "-in", answered, "-queryfile", asked, "-CAfile", m.root, "-attime", attime}
					if len(more) == 0 { // the reply has no certificate
						if out, err := exec.CommandContext(t.Context(), "openssl", verify...).CombinedOutput(); err == nil {
							t.Fatalf("a reply has a certificate that wasn't asked for:\n%s", out)
						}
						verify = append(verify, "-untrusted", string(m.config.Chain))
					}
					if out := openssl(t, verify...); !strings.Contains(out, "Verification: OK") {
						t.Fatalf("%s %v: %s", hash, more, out)
					}
					openssl(t, append(verify[:4], "-data", message, "-CAfile", m.root, "-attime", attime, "-untrusted", string(m.config.Chain))...)
					read := openssl(t, "ts", "-reply", "-in", answered, "-text")
					for _, want := range []string{
						"Status: Granted.", "Policy OID: 1.3.6.1.4.1.57264.2", "Time stamp: " + c.begins(), "Accuracy: 0x02 seconds", "Ordering: no",
						"TSA: DirName:/O=Example/CN=Example timestamp authority", "Hash Algorithm: " + hash[1:],
					} {
						if !strings.Contains(read, want) {
							t.Fatalf("the reply lacks %q:\n%s", want, read)
						}
					}
				}
			}
		})
	}
}

var serialNumber = regexp.MustCompile(`Serial number: 0x([0-9A-F]+)`)

// No two serial numbers are alike, and nobody can guess the next.
func TestSerialNumbersAreRandom(t *testing.T) {
	m := newAuthority(t, kms.ECDSAP256)
	f, _, _ := force(t, m.load(t))
	seen, longest := map[string]bool{}, 0
	for range 20 {
		reply, refused := f.ReplyDER(t.Context(), newAsk().der())
		if refused != nil {
			t.Fatal(refused)
		}
		path := filepath.Join(m.dir, "reply.tsr")
		write(t, path, reply)
		serial := serialNumber.FindStringSubmatch(openssl(t, "ts", "-reply", "-in", path, "-text"))
		if serial == nil || seen[serial[1]] {
			t.Fatalf("no serial number, or one that was given before: %v", serial)
		}
		seen[serial[1]] = true
		longest = max(longest, len(serial[1]))
	}
	if longest < 36 { // hexadecimal digits of 159 bits, but for 16 that are zero by chance in all of them
		t.Errorf("the longest serial number has %d digits", longest)
	}
}

// A reload that changes nothing keeps the authority, and one whose chain or key is
// another takes it.
func TestReload(t *testing.T) {
	m, next := newAuthority(t, kms.ECDSAP256), newAuthority(t, kms.ECDSAP384)
	at := begin.Add(time.Hour)
	first := m.load(t)
	same, err := Reload(t.Context(), first, m.config, "timestamp", at, kms.Options{})
	if err != nil || same != first {
		t.Fatalf("%v, another authority: %v", err, same != first)
	}
	other, err := Reload(t.Context(), first, next.config, "timestamp", at, kms.Options{})
	if err != nil || other == first {
		t.Fatalf("%v, the same authority: %v", err, other == first)
	}
	f, _, _ := force(t, first)
	f.Use(other)
	if reply, refused := f.ReplyDER(t.Context(), newAsk().der()); refused != nil || len(reply) == 0 {
		t.Errorf("the next authority refuses: %v", refused)
	}
	if !bytes.Equal(f.PEM(), read(t, string(next.config.Chain))) {
		t.Error("the chain that is given out is another's")
	}
	swapped := read(t, string(next.config.Chain))
	write(t, string(m.config.Chain), swapped)
	if _, err := Reload(t.Context(), first, m.config, "timestamp", at, kms.Options{}); err == nil || !strings.Contains(err.Error(), "timestamp.key: isn't the key of the first certificate") {
		t.Errorf("a chain file that was swapped: %v", err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
