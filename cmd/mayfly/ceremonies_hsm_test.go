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
	said := shell(t, work, strings.ReplaceAll(blocks(t, "docs/ceremonies.md")["run with PKCS #11: hsm"], "/usr/lib/softhsm/libsofthsm2.so", hsmLibrary(t, "libsofthsm2.so")))
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

// TestRootWithoutPublicObjectHSM: a token that keeps no public half of the root's key
// serves every command that has the root's certificate beside it.
func TestRootWithoutPublicObjectHSM(t *testing.T) {
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", writeFile(t, filepath.Join(dir, "softhsm2.conf"), "directories.tokendir = "+tokens+"\nlog.level = ERROR\n"))
	t.Setenv("LIBRARY", hsmLibrary(t, "libsofthsm2.so"))
	said := shell(t, t.TempDir(), `
(umask 077; echo 7351 >pin)
softhsm2-util --init-token --free --label ca --pin 7351 --so-pin 9573 >/dev/null
hsm="pkcs11:token=ca;object=root?module-path=$LIBRARY"
mayfly ca init --organization Example --key "$hsm" --generate ECDSA-P384 --passphrase-file pin --out root.pem >/dev/null
mayfly ca init --organization Example --key "pkcs11:token=ca;object=other?module-path=$LIBRARY" --generate ECDSA-P384 --passphrase-file pin --out other.pem >/dev/null
pkcs11-tool --module "$LIBRARY" --token-label ca --login --pin 7351 --delete-object --type pubkey --label root >/dev/null 2>&1
! mayfly kms check "$hsm" --passphrase-file pin
echo == intermediate
mayfly ca intermediate --issuer root.pem --issuer-key "$hsm" --issuer-passphrase-file pin --key file:issuing.key.pem --generate ECDSA-P256 --out chain.pem
echo == sign-csr
mayfly ca csr --key file:next.key.pem --generate ECDSA-P256 --out next.csr.pem
mayfly ca sign-csr next.csr.pem --yes --issuer root.pem --issuer-key "$hsm" --issuer-passphrase-file pin --out next.pem
mayfly ca verify next.pem --root root.pem --key file:next.key.pem
echo == verify
mayfly ca verify root.pem --below 1 --key "$hsm" --passphrase-file pin
echo == another certificate
! mayfly ca verify other.pem --below 1 --key "$hsm" --passphrase-file pin
! mayfly ca intermediate --issuer other.pem --issuer-key "$hsm" --issuer-passphrase-file pin --key file:issuing.key.pem --out wrong.pem
test ! -e wrong.pem
`)
	parts := strings.Split(said, "\n== ")
	if len(parts) != 5 {
		t.Fatalf("it said\n%s", said)
	}
	for i, want := range []string{
		"has no public key that can be read", "written: chain.pem", "ok  root: it is that of root.pem",
		"object=root", "a signature that doesn't verify",
	} {
		if !strings.Contains(parts[i], want) {
			t.Errorf("it said\n%s\nwant %q", parts[i], want)
		}
	}
}
