//go:build pkcs11 && cgo

package main

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

func init() {
	backendKeys["softhsm"], backendKeys["nss"] = softHSMKey, nssKey
}

const hsmPIN = "7351-correct"

// softHSMKey is a key to be made on a token of SoftHSM.
func softHSMKey(t *testing.T, a kms.Algorithm) backendKey {
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	env := "SOFTHSM2_CONF=" + writeFile(t, filepath.Join(dir, "softhsm2.conf"), "directories.tokendir = "+tokens+"\nlog.level = ERROR\n")
	cmd := exec.CommandContext(t.Context(), "softhsm2-util", "--init-token", "--free", "--label", "ca", "--pin", hsmPIN, "--so-pin", "so-"+hsmPIN)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	return hsmKey(t, a, dir, "pkcs11:token=ca;object=issuing?module-path="+hsmLibrary(t, "libsofthsm2.so"), env)
}

// nssKey is a key to be made in a database of NSS.
func nssKey(t *testing.T, a kms.Algorithm) backendKey {
	dir := t.TempDir()
	k := hsmKey(t, a, dir, "")
	database := filepath.Join(dir, "nss")
	if err := os.Mkdir(database, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "certutil", "-N", "-d", "sql:"+database, "-f", filepath.Join(dir, "pin")).CombinedOutput(); err != nil {
		t.Fatalf("certutil: %v\n%s", err, out)
	}
	k.ref = "pkcs11:token=" + url.PathEscape("NSS Certificate DB") + ";object=issuing?module-path=" + hsmLibrary(t, "libsoftokn3.so") +
		"&x-init-reserved=" + url.PathEscape(fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=", database))
	return k
}

func hsmKey(t *testing.T, a kms.Algorithm, dir, ref string, env ...string) backendKey {
	t.Helper()
	pin := writeFile(t, filepath.Join(dir, "pin"), hsmPIN+"\n")
	return backendKey{ref: ref, algo: a, env: env, access: [][2]string{{"passphrase-file", pin}}, secrets: []string{hsmPIN}}
}

// hsmLibrary finds a shared library where Debian and Fedora put it.
func hsmLibrary(t *testing.T, name string) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/softhsm/", "/usr/lib/*-linux-gnu/softhsm/", "/usr/lib/*-linux-gnu/", "/usr/lib/*-linux-gnu/nss/", "/usr/lib64/pkcs11/", "/usr/lib64/"} {
		if found, err := filepath.Glob(pattern + name); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("%s isn't installed: apt-get install softhsm2 libnss3 libnss3-tools", name)
	return ""
}
