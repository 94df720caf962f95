package deploy

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/config"
)

// compose is every key that compose.yaml has: decoding is strict.
type compose struct {
	Name     string             `yaml:"name"`
	Services map[string]service `yaml:"services"`
}

type service struct {
	Build struct {
		Context    string `yaml:"context"`
		Dockerfile string `yaml:"dockerfile"`
	} `yaml:"build"`
	Image           string            `yaml:"image"`
	ReadOnly        bool              `yaml:"read_only"`
	CapDrop         []string          `yaml:"cap_drop"`
	SecurityOpt     []string          `yaml:"security_opt"`
	PidsLimit       int               `yaml:"pids_limit"`
	MemLimit        string            `yaml:"mem_limit"`
	Environment     map[string]string `yaml:"environment"`
	Restart         string            `yaml:"restart"`
	StopGracePeriod string            `yaml:"stop_grace_period"`
	Ports           []string          `yaml:"ports"`
	Volumes         []struct {
		Type     string `yaml:"type"`
		Source   string `yaml:"source"`
		Target   string `yaml:"target"`
		ReadOnly bool   `yaml:"read_only"`
	} `yaml:"volumes"`
}

func TestCompose(t *testing.T) {
	t.Parallel()
	file, err := os.Open("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	decoder := yaml.NewDecoder(file)
	decoder.KnownFields(true)
	var c compose
	if err := decoder.Decode(&c); err != nil {
		t.Fatal(err)
	}
	s, ok := c.Services["mayfly"]
	if !ok || len(c.Services) != 1 {
		t.Fatalf("services: %v", c.Services)
	}
	if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
		t.Errorf("what it builds from: %v", err)
	}
	if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("not locked down: read_only %v, cap_drop %v, security_opt %v", s.ReadOnly, s.CapDrop, s.SecurityOpt)
	}
	if s.PidsLimit == 0 || s.MemLimit == "" {
		t.Error("without limits")
	}

	const config = "mayfly.container.yaml"
	settings := load(t, config)
	var published []string
	for _, address := range []string{settings.Server.HTTPAddress, settings.Server.GRPCAddress, settings.Server.MetricsAddress} {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		published = append(published, "127.0.0.1:"+port+":"+port)
	}
	if !slices.Equal(s.Ports, published) {
		t.Errorf("ports %q; %s listens so that on this host's loopback they are %q", s.Ports, config, published)
	}
	writable := map[string]bool{}
	for _, volume := range s.Volumes {
		writable[volume.Target] = !volume.ReadOnly
	}
	if want := map[string]bool{"/etc/mayfly": false, "/var/lib/mayfly": true}; !maps.Equal(writable, want) {
		t.Errorf("writable folders: %v, want %v", writable, want)
	}
	checkPlaces(t, settings, "/etc/mayfly/", "/var/lib/mayfly/")

	patience, err := time.ParseDuration(s.StopGracePeriod)
	if drain := settings.Server.ShutdownDelay + settings.Server.ShutdownGrace; err != nil || patience <= drain {
		t.Errorf("stop_grace_period %v (%v), but draining may take %v", patience, err, drain)
	}
}

// load reads a configuration of this folder as `mayfly serve` would.
func load(t *testing.T, name string) *config.Config {
	t.Helper()
	settings, err := config.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return settings
}

// checkPlaces sees to it that what is only read is below readable, and that
// what the service writes is below one of writable.
func checkPlaces(t *testing.T, c *config.Config, readable string, writable ...string) {
	t.Helper()
	log := c.CTLog.Embedded
	for what, path := range map[string]string{
		"ca.authority.chain": string(c.CA.Authority.Chain),
		"ca.authority.key":   strings.TrimPrefix(string(c.CA.Authority.Key), "file:"),
		"ctlog.embedded.key": strings.TrimPrefix(string(log.Key), "file:"),
	} {
		if !strings.HasPrefix(path, readable) {
			t.Errorf("%s: %s is not below %s", what, path, readable)
		}
	}
	for what, path := range map[string]string{
		"ctlog.embedded.directory": string(log.Directory),
		"ctlog.embedded.mark_file": string(log.MarkFile),
		"audit.path":               string(c.Audit.Path),
	} {
		if !slices.ContainsFunc(writable, func(folder string) bool { return strings.HasPrefix(path, folder) }) {
			t.Errorf("%s: %s is not below any of %q, which alone can be written to", what, path, writable)
		}
	}
}
