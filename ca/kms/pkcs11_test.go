//go:build pkcs11 && cgo

package kms_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const pkcs11PIN = "7351-correct"

// pkcs11Token is a token of one of the libraries under test.
type pkcs11Token struct {
	path    string // of the URI
	library string // its query
	pin     setting.Secret
}

// uri names the key of a label on the token.
func (k pkcs11Token) uri(label string) string {
	return "pkcs11:" + k.path + ";object=" + label + "?" + k.library
}

func (k pkcs11Token) options() kms.Options { return kms.Options{Passphrase: k.pin} }

// generate makes a key and gives the URI of it alone.
func (k pkcs11Token) generate(t *testing.T, label string, a kms.Algorithm) string {
	t.Helper()
	uri, err := keystore.Generate(t.Context(), k.uri(label), a, k.options())
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

// TestPKCS11 runs everything in one test: a library has one state a process.
func TestPKCS11(t *testing.T) {
	dir := t.TempDir()
	pin := setting.Secret{File: setting.Path(write(t, filepath.Join(dir, "pin"), pkcs11PIN+"\n"))}
	soft := softHSM(t, dir, pin)
	nss := nssToken(t, dir, pin)

	for name, token := range map[string]pkcs11Token{"SoftHSM": soft, "NSS": nss} {
		t.Run(name, func(t *testing.T) {
			made := map[kms.Algorithm]string{} // one by one: SoftHSM fails now and then where a process makes several at once
			for _, a := range kms.Algorithms() {
				made[a] = token.generate(t, "conformance-"+string(a), a)
			}
			runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
				s, err := keystore.Open(t.Context(), made[a], token.options())
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
	t.Run("refusals", func(t *testing.T) { pkcs11Refusals(t, soft) })
	t.Run("generating never overwrites", func(t *testing.T) {
		uri := soft.generate(t, "twice", kms.ECDSAP256)
		for _, again := range []string{soft.uri("twice"), uri} {
			if _, err := keystore.Generate(t.Context(), again, kms.ECDSAP256, soft.options()); !errors.Is(err, kms.ErrKeyExists) {
				t.Errorf("%v; want ErrKeyExists", err)
			}
		}
	})
	t.Run("closing ends the sessions", func(t *testing.T) { pkcs11Closes(t, nss) })
	t.Run("keys of other programs", func(t *testing.T) { pkcs11Foreign(t, soft) })
	t.Run("a PIN is tried once", func(t *testing.T) { pkcs11PINs(t, dir, soft) })
	t.Run("no public key on the token", func(t *testing.T) { pkcs11NoPublic(t, soft) })
	t.Run("faults", func(t *testing.T) { pkcs11Faults(t, dir, soft) })
}

// softHSM makes a token, and a second one that must not be taken for it.
func softHSM(t *testing.T, dir string, pin setting.Secret) pkcs11Token {
	tokens := filepath.Join(dir, "softhsm")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", write(t, filepath.Join(dir, "softhsm2.conf"), "directories.tokendir = "+tokens+"\nlog.level = ERROR\n"))
	for _, label := range []string{"ca", "other ca"} {
		run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pkcs11PIN, "--so-pin", "so-"+pkcs11PIN)
	}
	return pkcs11Token{path: "token=ca", library: "module-path=" + library(t, "libsofthsm2.so"), pin: pin}
}

// nssToken makes a database of NSS.
func nssToken(t *testing.T, dir string, pin setting.Secret) pkcs11Token {
	database := filepath.Join(dir, "nss")
	if err := os.Mkdir(database, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "certutil", "-N", "-d", "sql:"+database, "-f", string(pin.File))
	return pkcs11Token{
		path: "token=" + url.PathEscape("NSS Certificate DB"),
		library: "module-path=" + library(t, "libsoftokn3.so") + "&x-init-reserved=" +
			url.PathEscape(fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=", database)),
		pin: pin,
	}
}

// library finds a shared library where Debian and Fedora put it.
func library(t *testing.T, name string) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/softhsm/", "/usr/lib/*-linux-gnu/softhsm/", "/usr/lib/*-linux-gnu/", "/usr/lib/*-linux-gnu/nss/", "/usr/lib64/pkcs11/", "/usr/lib64/"} {
		if found, err := filepath.Glob(pattern + name); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("%s isn't installed: apt-get install softhsm2 opensc libnss3 libnss3-tools", name)
	return ""
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func pkcs11Refusals(t *testing.T, soft pkcs11Token) {
	key := soft.generate(t, "refusals", kms.ECDSAP256)
	wrong := setting.Secret{File: setting.Path(write(t, filepath.Join(t.TempDir(), "pin"), "wrong-pin"))}
	notALibrary := write(t, filepath.Join(t.TempDir(), "x.so"), "not a library")
	for _, tt := range []struct {
		name, uri string
		pin       setting.Secret
		want      string
	}{
		{"no PIN", key, setting.Secret{}, "no PIN: set the passphrase (env or file)"},
		{"no PIN file", key, setting.Secret{File: "/nowhere"}, "PIN: reading the secret"},
		{"no such key", soft.uri("nobody"), soft.pin, "the private key: no such object"},
		{"no such token", strings.Replace(key, "token=ca", "token=cb", 1), soft.pin, `no token matches; the library has ["`},
		{"two tokens", strings.Replace(key, "token=ca", "model=SoftHSM%20v2", 1), soft.pin, "2 tokens match: add token=LABEL or serial=…"},
		{"no library", "pkcs11:object=a?module-path=/nowhere.so", soft.pin, "library: stat /nowhere.so"},
		{"not a library", "pkcs11:object=a?module-path=" + notALibrary, soft.pin, "can't be loaded: is it a PKCS #11 module"},
		// Of a token that nobody is logged in to: a login is the whole process's.
		{"wrong PIN", strings.Replace(key, "token=ca", "token=other%20ca", 1), wrong, "C_Login: the token refuses the PIN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := keystore.Open(t.Context(), tt.uri, kms.Options{Passphrase: tt.pin})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "wrong-pin") || strings.Contains(err.Error(), pkcs11PIN)) {
				t.Errorf("the PIN is in the error: %v", err)
			}
		})
	}
}

// pkcs11Foreign opens keys that pkcs11-tool made.
func pkcs11Foreign(t *testing.T, soft pkcs11Token) {
	t.Setenv("PIN", pkcs11PIN)
	for label, kind := range map[string]string{"tool-ec": "EC:secp384r1", "tool-rsa": "rsa:2048"} {
		run(t, "pkcs11-tool", "--module", strings.TrimPrefix(soft.library, "module-path="), "--token-label", "ca", "--login", "--pin", "env:PIN",
			"--keypairgen", "--key-type", kind, "--label", label, "--id", "a1b2"+fmt.Sprintf("%02x", len(label)))
		if _, err := keystore.Open(t.Context(), soft.uri(label), soft.options()); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// pkcs11Closes: a token has few sessions, so a key that was closed leaves none open.
func pkcs11Closes(t *testing.T, token pkcs11Token) {
	ref := token.generate(t, "closing", kms.ECDSAP256)
	path, _, _ := strings.Cut(strings.TrimPrefix(token.library, "module-path="), "&")
	library := pkcs11.New(path) // the key's has initialized it
	defer library.Destroy()
	sessions := func() (open uint) {
		slots, err := library.GetSlotList(true)
		if err != nil {
			t.Fatal(err)
		}
		for _, slot := range slots {
			info, err := library.GetTokenInfo(slot)
			if err != nil {
				t.Fatal(err)
			}
			open += info.SessionCount
		}
		return open
	}
	before := sessions()
	s, err := keystore.Open(t.Context(), ref, token.options())
	if err != nil {
		t.Fatal(err)
	}
	if sessions() <= before {
		t.Fatal("an open key has no session of its own: this test shows nothing")
	}
	kms.Close(s)
	kms.Close(s)
	for deadline := time.Now().Add(10 * time.Second); sessions() > before; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are open, %d were before", sessions(), before)
		}
	}
}

// faultyLibrary makes a library before the token's, whose faults a file says.
func faultyLibrary(t *testing.T, dir string, soft pkcs11Token) (shim, fault string) {
	shim, fault = filepath.Join(dir, "faulty.so"), filepath.Join(dir, "fault")
	if _, err := os.Stat(shim); err != nil {
		run(t, "gcc", "-shared", "-fPIC", "-O1", "-o", shim, "testdata/faulty.c", "-ldl")
	}
	t.Setenv("REAL_PKCS11", strings.TrimPrefix(soft.library, "module-path="))
	t.Setenv("FAULT_PKCS11", fault)
	return shim, fault
}

// pkcs11PINs: a PIN that the token refused isn't tried again, and the last try
// before a token locks isn't taken.
func pkcs11PINs(t *testing.T, dir string, soft pkcs11Token) {
	shim, fault := faultyLibrary(t, dir, soft)
	logins := filepath.Join(dir, "logins")
	t.Setenv("LOGINS_PKCS11", logins)
	// Of a token that nobody is logged in to: a login is the whole process's.
	key := "pkcs11:token=other%20ca;object=pins?module-path=" + shim
	wrong := setting.Secret{File: setting.Path(write(t, filepath.Join(t.TempDir(), "pin"), "wrong-again"))}
	for _, tt := range []struct {
		name, fault string
		pin         setting.Secret
		want        string
		logins      int // so far
	}{
		{"the last try", "f", soft.pin, "one try is left before it locks, which isn't taken: log in once by hand", 0},
		{"locked", "l", soft.pin, "it is locked after too many wrong ones", 0},
		{"a wrong one", "none", wrong, "C_Login: the token refuses the PIN: pkcs11: 0xA0: CKR_PIN_INCORRECT", 1},
		{"the same again", "none", wrong, "it did before, and tokens lock after a few tries, so it isn't tried again: correct the PIN", 1},
		{"the right one", "none", soft.pin, "the private key: no such object", 2},
	} {
		write(t, fault, tt.fault)
		_, err := keystore.Open(t.Context(), key, kms.Options{Passphrase: tt.pin})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
		if refused := tt.name != "the right one"; errors.Is(err, kms.ErrPINRefused) != refused {
			t.Errorf("%s: ErrPINRefused is %v", tt.name, !refused)
		}
		if tried, err := os.ReadFile(logins); len(tried) != tt.logins {
			t.Errorf("%s: %d logins so far, want %d (%v)", tt.name, len(tried), tt.logins, err)
		}
	}
}

// pkcs11NoPublic: the public half comes from the certificate where the token has none.
func pkcs11NoPublic(t *testing.T, soft pkcs11Token) {
	key, other := soft.generate(t, "lonely", kms.ECDSAP256), soft.generate(t, "other", kms.ECDSAP256)
	public := func(uri string) crypto.PublicKey {
		s, err := keystore.Open(t.Context(), uri, soft.options())
		if err != nil {
			t.Fatal(err)
		}
		defer kms.Close(s)
		return s.Public()
	}
	own, others := public(key), public(other)
	t.Setenv("PIN", pkcs11PIN)
	run(t, "pkcs11-tool", "--module", strings.TrimPrefix(soft.library, "module-path="), "--token-label", "ca", "--login", "--pin", "env:PIN",
		"--delete-object", "--type", "pubkey", "--label", "lonely")
	o := soft.options()
	if _, err := keystore.Open(t.Context(), key, o); err == nil || !strings.Contains(err.Error(), "has no public key that can be read") {
		t.Errorf("without a certificate: %v", err)
	}
	o.Public = own
	s, err := keystore.Open(t.Context(), key, o)
	if err != nil {
		t.Fatal(err)
	}
	kms.Close(s)
	o.Public = others
	if _, err := keystore.Open(t.Context(), key, o); err == nil || !strings.Contains(err.Error(), "a signature that doesn't verify") {
		t.Errorf("another's certificate: %v", err)
	}
}

// pkcs11Faults: a library whose C_Sign fails on demand.
func pkcs11Faults(t *testing.T, dir string, soft pkcs11Token) {
	shim, fault := faultyLibrary(t, dir, soft)
	key := soft.generate(t, "faults", kms.ECDSAP256)
	soft.library = "module-path=" + shim
	s, err := keystore.Open(t.Context(), strings.Replace(key, "module-path="+os.Getenv("REAL_PKCS11"), soft.library, 1), soft.options())
	if err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, 32)
	sign := func(ctx context.Context) error {
		_, err := s.Sign(ctx, digest, crypto.SHA256)
		return err
	}
	for _, tt := range []struct{ name, fault, want string }{
		{"corrupted signature", "c", "the token gave a signature that doesn't verify"},
		{"session gone for good", "s", "attempt 2: C_Sign: pkcs11: 0xB3: CKR_SESSION_HANDLE_INVALID"},
		{"device fails", "d", "attempt 2: C_Sign: pkcs11: 0x30: CKR_DEVICE_ERROR"},
	} {
		write(t, fault, tt.fault)
		if err := sign(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
		write(t, fault, "none")
		if err := sign(t.Context()); err != nil {
			t.Errorf("%s: no recovery: %v", tt.name, err)
		}
	}

	write(t, fault, "hang")
	for i := range 10 { // more than there are workers
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := sign(ctx)
		cancel()
		want := "the library hasn't answered after"
		if i >= 8 {
			want = "all 8 calls into the library are busy"
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
			t.Errorf("hung call %d: %v; want %q", i, err, want)
		}
	}
	write(t, fault, "none")
	if err := sign(t.Context()); err != nil { // waits for a worker to come back
		t.Errorf("hung: no recovery: %v", err)
	}
}
