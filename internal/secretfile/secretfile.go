// Package secretfile reads files that hold a secret: private keys, passphrases,
// PINs, tokens and passwords. One rule holds for all of them: nobody may use the
// file but its owner and the groups that this process is in. Kubernetes mounts a
// Secret as root:fsGroup 0440 and OpenShift as group 0, and both are the process's
// own groups; what systemd puts into the folder of a unit's credentials shows an
// access list in the group's bits, and lets nobody else in. What everybody may
// use is never read.
package secretfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Max is the largest file that is read, in bytes; the PEM of an RSA 4096 key
// takes about 3,300.
const Max = 64 << 10

// The permissions of those who aren't the owner (chmod(1)).
const (
	group  = 0o070
	others = 0o007
)

// Read reads the file at path. A pipe, such as a shell's <(command), is read too:
// only who made it has it. The error names the path, never what the file holds.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of the open file: what is checked is what is read
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s: isn't a regular file: name the file itself", path)
	}
	if err := check(path, info, os.Getenv("CREDENTIALS_DIRECTORY")); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, Max+1))
	if err == nil && len(b) > Max {
		err = fmt.Errorf("%s: larger than %d bytes: name the file of one secret", path, Max)
	}
	return b, err
}

// check applies the rule; credentials is the folder of systemd's (systemd.exec(5)).
func check(path string, info os.FileInfo, credentials string) error {
	mode := info.Mode().Perm()
	if !info.Mode().IsRegular() || mode&(group|others) == 0 {
		return nil
	}
	if runtime.GOOS == "windows" {
		return fmt.Errorf("%s: who may use it can't be told on Windows, whose access lists Mayfly doesn't read: use the secret on Linux or macOS", path)
	}
	who := "everybody"
	if mode&others == 0 {
		if within(path, credentials) {
			return nil
		}
		_, gid, _, known := durable.OwnerOf(info)
		if !known {
			return errors.New(path + ": its owner can't be told")
		}
		groups, err := os.Getgroups()
		if err != nil || slices.Contains(append(groups, os.Getegid()), gid) {
			return err
		}
		who = fmt.Sprintf("group %d, which this process isn't in,", gid)
	}
	return fmt.Errorf("%s: %s may use it (mode %04o): chmod 600 %s", path, who, mode, path)
}

// within reports whether the file that path leads to is in the folder dir.
func within(path, dir string) bool {
	file, err := filepath.EvalSymlinks(path)
	folder, err2 := filepath.EvalSymlinks(dir)
	return dir != "" && err == nil && err2 == nil && strings.HasPrefix(file, strings.TrimSuffix(folder, "/")+"/")
}
