package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestServeAsRootBesideAService: root doesn't serve what belongs to another user, and
// leaves nothing of its own there; that user's service starts before and after.
func TestServeAsRootBesideAService(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root has what it writes belong to another user than the service's")
	}
	const service = 4242
	dir := workshop(t)
	program := filepath.Join(dir, "program", "mayfly") // in reach of the service's user, as testscript's isn't
	shell(t, dir, `mkdir program && cp -L bin/mayfly program/
bin/mayfly init --dir ca --issuer https://accounts.google.com --allow true`)
	file := filepath.Join(dir, "ca", configName)
	if err := useFreePorts(file); err != nil {
		t.Fatal(err)
	}
	give := func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, service, service))
	}
	if err := errors.Join(filepath.WalkDir(dir, give), os.Chown(filepath.Dir(dir), service, service)); err != nil {
		t.Fatal(err)
	}
	asService := func() {
		t.Helper()
		p, err := launch(dir, "service", os.Environ(), "setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", program, "serve", "--config", file)
		if err != nil {
			t.Fatal(err)
		}
		defer p.kill()
		if _, err := p.serving(); err != nil {
			t.Fatal(err)
		}
		if err := p.end(); err != nil {
			t.Error(err)
		}
	}
	asService()
	for _, command := range []string{"serve --config ca/mayfly.yaml", "dev --dir ca"} {
		cmd := exec.CommandContext(t.Context(), program, strings.Fields(command)...) // #nosec G204 -- a test's own program
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(string(out), "belongs to user 4242") || !strings.Contains(string(out), "sudo -u '#4242'") {
			t.Errorf("%s as root: %v\n%s", command, err, out)
		}
	}
	if said := shell(t, dir, "program/mayfly check --config ca/mayfly.yaml"); !strings.Contains(said, "no faults") || !strings.Contains(said, "serve would be refused: this is root") {
		t.Errorf("check as root says\n%s", said)
	}
	err := filepath.WalkDir(filepath.Join(dir, "ca"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if uid, _, _, _ := durable.OwnerOf(info); uid != service {
			t.Errorf("%s belongs to %d", path, uid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	asService()
	// Root's own files are root's to serve.
	if err := asOwner(&config.Config{Audit: audit.Config{Path: setting.Path(filepath.Join(t.TempDir(), "audit.jsonl"))}}, 0); err != nil {
		t.Error(err)
	}
}

// TestContainerSteps runs what deploy/mayfly.container.yaml tells to do on the host, and
// serves from the two folders as the container's user: they have no key but those that the
// service uses, and the root's never was there.
func TestContainerSteps(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root gives the folders to the container's user")
	}
	dir := built(t)
	srv, medium := filepath.Join(dir, "srv"), t.TempDir()
	steps := ""
	for line := range strings.Lines(page(t, "deploy/mayfly.container.yaml")) {
		if step, found := strings.CutPrefix(line, "#   "); found {
			steps += step
		}
	}
	shell(t, dir, strings.NewReplacer("/srv/mayfly", srv, "/media/offline", medium).Replace(steps)+`
mkdir program && cp -L bin/mayfly program/
chmod go+x . ..
year=$(sed -n 's|^    url: .*/ctlog/||p' srv/ca/mayfly.yaml)
sed -i "s|/etc/mayfly|$PWD/srv/config|; s|/var/lib/mayfly|$PWD/srv/data|; s|0\.0\.0\.0:[0-9]*|127.0.0.1:0|; s|ctlog/2026|ctlog/$year|" srv/config/mayfly.yaml`)
	keys := strings.Fields(shell(t, srv, "grep -rl 'PRIVATE KEY' . | sort"))
	if want := []string{"./config/audit.key.pem", "./config/authority/issuing.key.pem", "./config/authority/timestamp.key.pem", "./config/ctlog.key.pem", "./config/revocations.key.pem", "./config/tuf.online.key.pem"}; !slices.Equal(keys, want) {
		t.Errorf("private keys %q, want %q", keys, want)
	}
	p, err := launch(dir, "container", os.Environ(), "setpriv", "--reuid=65532", "--regid=65532", "--clear-groups",
		filepath.Join(dir, "program", "mayfly"), "serve", "--config", filepath.Join(srv, "config", configName))
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	if _, err := p.serving(); err != nil {
		t.Fatal(err)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}
