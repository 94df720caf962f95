// Package deploy tests the files of this folder, which operators copy: what
// they promise about users, privileges and limits is checked here.
package deploy

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// instruction is one line of a Dockerfile, continuations joined.
type instruction struct{ name, rest string }

// stages splits a Dockerfile at its FROMs.
func stages(t *testing.T, file string) [][]instruction {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(content), "\\\n", " ")
	var all [][]instruction
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		if name == "FROM" {
			all = append(all, nil)
		}
		if len(all) == 0 {
			t.Fatalf("%s begins with %s", file, name)
		}
		last := len(all) - 1
		all[last] = append(all[last], instruction{name, strings.TrimSpace(rest)})
	}
	return all
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	all := stages(t, "Dockerfile")
	build, final := all[0], all[len(all)-1]
	if len(all) != 4 { // the image is the last, which is what a build without --target makes
		t.Fatalf("%d stages, want a build and an image, without and with PKCS #11", len(all))
	}

	t.Run("the build image is pinned and its Go is ours", func(t *testing.T) {
		t.Parallel()
		pinned := regexp.MustCompile(`^golang:1\.\d+\.\d+-[a-z]+(@sha256:[0-9a-f]{64})? AS build$`)
		if !pinned.MatchString(build[0].rest) {
			t.Errorf("FROM %s", build[0].rest)
		}
	})
	t.Run("the binary is static", func(t *testing.T) {
		t.Parallel()
		if !slices.ContainsFunc(build, func(i instruction) bool {
			return i.name == "ENV" && strings.Contains(i.rest, "CGO_ENABLED=0")
		}) {
			t.Error("no CGO_ENABLED=0 in the build")
		}
	})
	t.Run("the image holds nothing but what is copied", func(t *testing.T) {
		t.Parallel()
		if final[0].rest != "scratch" {
			t.Errorf("FROM %s, want scratch", final[0].rest)
		}
		for _, i := range final {
			switch i.name {
			case "RUN", "ADD", "SHELL", "ENV", "ARG":
				t.Errorf("%s %s: the image runs, fetches and sets nothing", i.name, i.rest)
			case "COPY":
				if !strings.Contains(i.rest, "--from=build ") {
					t.Errorf("COPY %s: not from the build", i.rest)
				}
			}
		}
	})
	t.Run("its user is a number, and not root", func(t *testing.T) {
		t.Parallel()
		if user := only(t, final, "USER"); !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user) {
			t.Errorf("USER %s", user)
		}
	})
	t.Run("no shell stands between", func(t *testing.T) {
		t.Parallel()
		health := only(t, final, "HEALTHCHECK")
		_, command, found := strings.Cut(health, "CMD ")
		if !found {
			t.Fatalf("HEALTHCHECK %s", health)
		}
		for what, text := range map[string]string{
			"ENTRYPOINT":  only(t, final, "ENTRYPOINT"),
			"CMD":         only(t, final, "CMD"),
			"HEALTHCHECK": command,
		} {
			var words []string
			if err := json.Unmarshal([]byte(text), &words); err != nil {
				t.Errorf("%s %s: not in exec form: %v", what, text, err)
			}
			if what == "HEALTHCHECK" && !slices.Equal(words, []string{"/usr/bin/mayfly", "healthcheck", "--config", "/etc/mayfly/mayfly.yaml"}) {
				t.Errorf("HEALTHCHECK runs %q", words)
			}
		}
	})
}

// only is the argument of the one instruction of this name.
func only(t *testing.T, stage []instruction, name string) string {
	t.Helper()
	var found []string
	for _, i := range stage {
		if i.name == name {
			found = append(found, i.rest)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d × %s, want one", len(found), name)
	}
	return found[0]
}
