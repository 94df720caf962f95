package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
)

// madeCA is the folder of a CA that mayfly init made, and the configuration's file.
func madeCA(t *testing.T) (dir, file string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ca")
	issuer := identitytest.New(t).Config()
	issuer.Audiences = []string{"https://ca.example.com"}
	err := createCA(t.Context(), initOptions{
		dir: dir, organization: "Example", publicURL: "http://127.0.0.1:5555", algorithm: "ECDSA-P256",
		issuers: []identity.IssuerConfig{issuer},
	}, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, configName)
}

// TestAuthorityStoreIsForOneCommand: of two commands on one state file the second is
// refused, as both would write what they make of one reading.
func TestAuthorityStoreIsForOneCommand(t *testing.T) {
	t.Parallel()
	_, file := madeCA(t)
	c, err := namedAuthorities(file)
	if err != nil {
		t.Fatal(err)
	}
	first, err := authority.OpenStore(c.CA.Section)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := authority.OpenStore(c.CA.Section); err == nil {
		second.Close()
		t.Error("two commands change one state file")
	}
	first.Close()
	third, err := authority.OpenStore(c.CA.Section)
	if err != nil {
		t.Fatal(err)
	}
	third.Close()
}

// TestCommandsLeaveConfiguration: authorities and logs follow each other where the
// configuration is a read-only file in a read-only folder behind a link, as in a
// volume that Kubernetes mounts.
func TestCommandsLeaveConfiguration(t *testing.T) {
	t.Parallel()
	dir, file := madeCA(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	mounted := filepath.Join(t.TempDir(), "..data-1")
	linked := filepath.Join(t.TempDir(), "mounted")
	absolute := strings.NewReplacer(": authority/", ": "+dir+"/authority/", ": file:", ": file:"+dir+"/", ": ctlog", ": "+dir+"/ctlog", ": tuf", ": "+dir+"/tuf",
		": authorities.json", ": "+dir+"/authorities.json", ": logs.json", ": "+dir+"/logs.json", "path: audit", "path: "+dir+"/audit",
		": audit.key.pem", ": "+dir+"/audit.key.pem", ": revocations", ": "+dir+"/revocations", ": index.db", ": "+dir+"/index.db").Replace(string(text))
	if err := os.Mkdir(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mounted, configName), []byte(absolute), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(mounted, 0o500); err != nil { // #nosec G302 -- a folder
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(mounted, 0o700) }) // #nosec G302 -- a folder
	if err := os.Symlink(mounted, linked); err != nil {
		t.Fatal(err)
	}
	_, next := madeCA(t)
	next = filepath.Join(filepath.Dir(next), authorityName)
	config := filepath.Join(linked, configName)
	var checked []string // the second time other authorities and logs are published than configured
	for _, args := range [][]string{
		{"check"},
		{"authority", "prepare", "next", "--chain", filepath.Join(next, "chain.pem"), "--key", "file:" + filepath.Join(next, "issuing.key.pem")},
		{"authority", "publish", "next"},
		{"authority", "activate", "next", "--force"},
		{"authority", "list"},
		{"log", "rotate", "--yearly"},
		{"log", "list"},
		{"check"},
	} {
		if code, out, text := mayfly(t, "", append(args, "--config", config)...); code != 0 {
			t.Fatalf("%v: %d %s%s", args, code, out, text)
		} else if args[0] == "check" && strings.Count(out, "remark") != len(checked) {
			t.Errorf("%v remarks on something else than what was published before: %s", args, out)
		} else if args[0] == "check" {
			checked = append(checked, out)
		}
	}
	if now, err := os.ReadFile(config); err != nil || string(now) != absolute {
		t.Errorf("the configuration was changed: %v\n%s", err, now)
	}
	if left, err := os.ReadDir(mounted); err != nil || len(left) != 1 {
		t.Errorf("in the folder are %v, %v", left, err)
	}
}
