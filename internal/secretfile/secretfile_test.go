package secretfile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

func TestNobodyBeyondOwnerAndOwnGroups(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{
		0o400: true, 0o600: true, 0o700: true, 0o440: true, 0o640: true, 0o660: true,
		0o604: false, 0o602: false, 0o601: false, 0o444: false, 0o644: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		b, err := secretfile.Read(path)
		if ok != (err == nil) || ok && string(b) != "s3cret" {
			t.Errorf("mode %04o: %q, %v", mode, b, err)
		}
		if want := fmt.Sprintf("everybody may use it (mode %04o): chmod 600 %s", mode, path); !ok && !strings.Contains(err.Error(), want) {
			t.Errorf("mode %04o: %v; want %q", mode, err, want)
		}
	}
}

func TestWhatIsNoFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := secretfile.Read(dir); err == nil || !strings.Contains(err.Error(), "isn't a regular file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := secretfile.Read(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, secretfile.Max+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := secretfile.Read(large); err == nil || !strings.Contains(err.Error(), "larger than 65536 bytes") {
		t.Errorf("a large file: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("from a pipe"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := secretfile.Read(fmt.Sprintf("/dev/fd/%d", r.Fd())); err != nil || string(b) != "from a pipe" {
		t.Errorf("a pipe: %q, %v", b, err)
	}
}

// TestMountedSecrets reads files as processes of other users and groups: what
// Kubernetes mounts for an fsGroup, OpenShift for its random user, and systemd
// with an access list.
func TestMountedSecrets(t *testing.T) {
	if path := os.Getenv("SECRETFILE_TEST_READ"); path != "" { // the process itself
		if _, err := secretfile.Read(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	// The test's own folders are root's alone.
	dir, err := os.MkdirTemp("", "secretfile") //nolint:usetesting // t.TempDir can't be entered by other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "test")
	own, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(program, own, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	const mine, foreign = 65532, 4711
	for name, tt := range map[string]struct {
		owner, group int
		mode         os.FileMode
		groups       []uint32
		credentials  bool
		want         string
	}{
		"an fsGroup Secret":            {0, mine, 0o440, []uint32{mine}, false, ""},
		"OpenShift's group 0":          {0, 0, 0o440, []uint32{0}, false, ""},
		"its owner's group":            {mine, 0, 0o640, nil, false, "group 0, which this process isn't in, may use it (mode 0640): chmod 600"},
		"another's group":              {mine, foreign, 0o440, []uint32{mine}, false, "group 4711, which this process isn't in"},
		"systemd's access list":        {mine, foreign, 0o440, nil, true, ""},
		"everybody's credential":       {mine, foreign, 0o444, nil, true, "everybody may use it"},
		"a Secret of the default mode": {0, mine, 0o644, []uint32{mine}, false, "everybody may use it"},
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chown(file, tt.owner, tt.group), os.Chmod(file, tt.mode)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "-test.run=^TestMountedSecrets$")
		cmd.Env = append(cmd.Environ(), "SECRETFILE_TEST_READ="+file)
		if tt.credentials {
			cmd.Env = append(cmd.Env, "CREDENTIALS_DIRECTORY="+dir)
		}
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mine, Gid: 4712, Groups: tt.groups}}
		out, err := cmd.CombinedOutput()
		if (err == nil) != (tt.want == "") || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s: %v %s; want %q", name, err, out, tt.want)
		}
	}
}
