package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/server"
)

// compose is every key that compose.yaml may have: decoding is strict.
type compose struct {
	Name     string             `yaml:"name"`
	Services map[string]service `yaml:"services"`
	Volumes  map[string]struct {
	} `yaml:"volumes"`
}

type service struct {
	Build struct {
		Context    string `yaml:"context"`
		Dockerfile string `yaml:"dockerfile"`
	} `yaml:"build"`
	Image           string   `yaml:"image"`
	ReadOnly        bool     `yaml:"read_only"`
	CapDrop         []string `yaml:"cap_drop"`
	SecurityOpt     []string `yaml:"security_opt"`
	PidsLimit       int      `yaml:"pids_limit"`
	MemLimit        string   `yaml:"mem_limit"`
	Restart         string   `yaml:"restart"`
	StopGracePeriod string   `yaml:"stop_grace_period"`
	Ports           []string `yaml:"ports"`
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
	for _, port := range s.Ports {
		if !strings.HasPrefix(port, "127.0.0.1:") {
			t.Errorf("port %s is open to the network", port)
		}
	}
	for _, volume := range s.Volumes {
		switch {
		case volume.Type == "bind" && !volume.ReadOnly:
			t.Errorf("%s can be written to", volume.Target)
		case volume.Type == "volume":
			if _, declared := c.Volumes[volume.Source]; !declared {
				t.Errorf("volume %s is not declared", volume.Source)
			}
		}
	}
	patience, err := time.ParseDuration(s.StopGracePeriod)
	defaults := server.DefaultConfig()
	if drain := defaults.ShutdownDelay + defaults.ShutdownGrace; err != nil || patience <= drain {
		t.Errorf("stop_grace_period %v (%v), but draining may take %v", patience, err, drain)
	}
}
