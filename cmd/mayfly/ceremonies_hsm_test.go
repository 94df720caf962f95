//go:build pkcs11 && cgo

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCeremoniesDocHSM runs the ceremony with an HSM as it is written down.
func TestCeremoniesDocHSM(t *testing.T) {
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", writeFile(t, filepath.Join(dir, "softhsm2.conf"), "directories.tokendir = "+tokens+"\nlog.level = ERROR\n"))
	work := t.TempDir()
	said := shell(t, work, strings.ReplaceAll(ceremonies(t)["hsm"], "/usr/lib/softhsm/libsofthsm2.so", hsmLibrary(t, "libsofthsm2.so")))
	for _, want := range []string{"made the key pkcs11:", "ok  root: it is that of root.pem", "ok  key: file:issuing.key.pem"} {
		if !strings.Contains(said, want) {
			t.Errorf("it said\n%s\nwant %q", said, want)
		}
	}
	record, err := os.ReadFile(filepath.Join(work, "chain.record.txt"))
	if err != nil {
		t.Fatal(err)
	}
	pin, err := os.ReadFile(filepath.Join(work, "pin"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(record), "signed by             pkcs11:") || strings.Contains(string(record)+said, strings.TrimSpace(string(pin))) {
		t.Errorf("the record, which names the key and not the PIN:\n%s", record)
	}
}
