package deploy

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const unit = "mayfly.service"

// units are all that systemd starts.
var units = []string{unit, "mayfly-backup.service"}

// maxExposure is the most that systemd-analyze may count against the unit, on
// its scale from 0 (nothing exposed) to 10.
const maxExposure = 1.5

// systemd runs systemd-analyze, which `make test` installs where it is missing.
func systemd(t *testing.T, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze %s: %v (run `make test`, or install systemd)\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

func TestUnitIsSandboxed(t *testing.T) {
	t.Parallel()
	for _, unit := range units {
		said := systemd(t, "security", "--offline=true", "--no-pager", unit)
		found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(said)
		if found == nil {
			t.Fatalf("no exposure level in:\n%s", said)
		}
		exposure, err := strconv.ParseFloat(found[1], 64)
		if err != nil || exposure > maxExposure {
			t.Errorf("exposure %s, want at most %v (%v):\n%s", found[1], maxExposure, err, said)
		}
	}
}

// systemd reads every line of the unit without a complaint.
func TestUnitIsUnderstood(t *testing.T) {
	t.Parallel()
	// The binary, which is not installed here, gives way to one that is.
	mayfly, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	dir, args := t.TempDir(), []string{"verify", "--man=no"}
	for _, unit := range append([]string{"mayfly-backup.timer"}, units...) {
		content, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, filepath.Join(dir, unit))
		if err := os.WriteFile(filepath.Join(dir, unit), []byte(strings.ReplaceAll(string(content), "/usr/bin/mayfly", mayfly)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(systemd(t, args...)) {
		if strings.Contains(line, "mayfly") {
			t.Error(line)
		}
	}
}

// The unit and the annotated configuration fit together: ports, folders, and
// the time that systemd waits for the service to drain.
func TestUnitFitsTheExample(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	settings := load(t, "mayfly.example.yaml")
	server := settings.Server
	for _, address := range []string{server.HTTPAddress, server.GRPCAddress, server.MetricsAddress} {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), "\nSocketBindAllow=tcp:"+port+"\n") {
			t.Errorf("the unit does not let the service listen on port %s", port)
		}
	}
	checkPlaces(t, settings, "/etc/mayfly/", "/var/lib/mayfly/", "/var/log/mayfly/")

	found := regexp.MustCompile(`(?m)^TimeoutStopSec=(\S+)$`).FindSubmatch(content)
	if found == nil {
		t.Fatal("no TimeoutStopSec")
	}
	patience, err := time.ParseDuration(string(found[1]))
	if drain := server.ShutdownDelay + server.ShutdownGrace; err != nil || patience <= drain {
		t.Errorf("TimeoutStopSec=%v (%v), but draining may take %v", patience, err, drain)
	}
}
