package main

import (
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// dist is a release that check.sh built; without it there is nothing to look at.
func dist(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("RELEASE_DIST")
	if dir == "" {
		t.Fatal("RELEASE_DIST is not set: run these tests with internal/tools/release/check.sh")
	}
	return dir
}

// copied is a copy of the release, to be changed.
func copied(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if said, err := exec.CommandContext(t.Context(), "cp", "-r", dist(t)+"/.", dir).CombinedOutput(); err != nil {
		t.Fatal(err, string(said))
	}
	return dir
}

func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q %v", pattern, found, err)
	}
	return found[0]
}

// block is one of docs/releases.md's, as a first-time user would type it.
func block(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile("../../../docs/releases.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)<!-- run in conformance: " + name + " -->\n```sh\n(.*?)```\n").FindSubmatch(page)
	if found == nil {
		t.Fatalf("docs/releases.md has no block %s", name)
	}
	return string(found[1])
}

// typed runs a block in a folder.
func typed(t *testing.T, dir, name, identity string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "sh", "-euc", block(t, name))
	c.Dir = dir
	c.Env = append(os.Environ(), "identity="+identity, "issuer="+os.Getenv("RELEASE_ISSUER"), "HOME="+t.TempDir(), "file="+filepath.Base(one(t, dir, "mayfly-v[0-9]*-linux-amd64")))
	said, err := c.CombinedOutput()
	return string(said), err
}

const signer = "release@mayfly-ca.example"

// What the page says verifies a release, does; and it refuses one where anything was changed.
func TestVerify(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"cosign": "Verified OK", "mayfly": "good     SHA256SUMS", "openssl": "email:" + signer, "provenance": "Verified OK"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if said, err := typed(t, copied(t), name, signer); err != nil || !strings.Contains(said, want) {
				t.Fatalf("%v\n%s", err, said)
			}
			changed := copied(t)
			binary := one(t, changed, "mayfly-v[0-9]*-linux-amd64")
			if err := os.Truncate(binary, 1000); err != nil {
				t.Fatal(err)
			}
			if said, err := typed(t, changed, name, signer); err == nil {
				t.Errorf("another binary is accepted:\n%s", said)
			}
			changed = copied(t)
			for _, file := range []string{"SHA256SUMS", "provenance.sigstore.json"} {
				text, err := os.ReadFile(filepath.Join(changed, file))
				if err == nil {
					err = os.WriteFile(filepath.Join(changed, file), []byte(strings.Replace(string(text), "a", "b", 1)), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if said, err := typed(t, changed, name, signer); err == nil {
				t.Errorf("other signed bytes are accepted:\n%s", said)
			}
			if name == "openssl" {
				return // it prints the name; who types it compares
			}
			if said, err := typed(t, copied(t), name, "mallory@example.com"); err == nil {
				t.Errorf("another signer is accepted:\n%s", said)
			}
		})
	}
}

// The statement is about every file that was built, and says from what.
func TestProvenance(t *testing.T) {
	t.Parallel()
	var statement struct {
		Subject []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		Predicate struct {
			BuildDefinition struct {
				ResolvedDependencies []struct {
					Digest map[string]string `json:"digest"`
				} `json:"resolvedDependencies"`
			} `json:"buildDefinition"`
			RunDetails struct {
				Builder struct {
					ID string `json:"id"`
				} `json:"builder"`
			} `json:"runDetails"`
		} `json:"predicate"`
	}
	read(t, filepath.Join(dist(t), "provenance.json"), &statement)
	list, err := os.ReadFile(filepath.Join(dist(t), "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statement.Subject {
		if !strings.Contains(string(list), s.Digest["sha256"]+"  "+s.Name+"\n") {
			t.Errorf("%s isn't in SHA256SUMS", s.Name)
		}
	}
	if lines := strings.Count(string(list), "\n"); lines != len(statement.Subject) || lines < 5 {
		t.Errorf("%d files, and the statement is about %d", lines, len(statement.Subject))
	}
	commit := statement.Predicate.BuildDefinition.ResolvedDependencies[0].Digest["gitCommit"]
	if !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(commit) || statement.Predicate.RunDetails.Builder.ID == "" {
		t.Errorf("commit %q, builder %q", commit, statement.Predicate.RunDetails.Builder.ID)
	}
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(file, err)
	}
}

// The lists name the modules that are in the binary, and nothing else.
func TestSBOM(t *testing.T) {
	t.Parallel()
	binary := one(t, dist(t), "mayfly-v[0-9]*-linux-amd64")
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{purlOf("stdlib", info.GoVersion): true}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		want[purlOf(m.Path, m.Version)] = true
	}
	var cyclone struct {
		Components []struct {
			PURL string `json:"purl"`
		} `json:"components"`
	}
	var spdx struct {
		Packages []struct {
			Refs []struct {
				PURL string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
	}
	read(t, binary+".cdx.json", &cyclone)
	read(t, binary+".spdx.json", &spdx)
	if len(cyclone.Components) != len(want) || len(spdx.Packages) != len(want)+1 {
		t.Errorf("%d and %d, want %d modules", len(cyclone.Components), len(spdx.Packages)-1, len(want))
	}
	for _, c := range cyclone.Components {
		if !want[c.PURL] {
			t.Errorf("CycloneDX: %s isn't in the binary", c.PURL)
		}
	}
	for _, p := range spdx.Packages[1:] {
		if !want[p.Refs[0].PURL] {
			t.Errorf("SPDX: %s isn't in the binary", p.Refs[0].PURL)
		}
	}
}

func purlOf(path, version string) string { return "pkg:golang/" + path + "@" + version }

// The image's every hash and size holds, and it is what the Dockerfile's is.
func TestImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if said, err := exec.CommandContext(t.Context(), "tar", "-xf", one(t, dist(t), "*-image.tar"), "-C", dir).CombinedOutput(); err != nil {
		t.Fatal(err, string(said))
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(outer); err != nil {
		t.Fatal(err)
	}
	manifest, err := outer.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := outer.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	images, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile("../../../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	last := string(dockerfile)[strings.LastIndex(string(dockerfile), "\nFROM "):]
	for _, m := range images.Manifests {
		image, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		file, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		c := file.Config
		arguments := func(list []string) string {
			text, _ := json.Marshal(list)
			return strings.ReplaceAll(string(text), ",", ", ")
		}
		for _, line := range []string{
			"USER " + c.User, "WORKDIR " + c.WorkingDir, "STOPSIGNAL " + c.StopSignal, "ENTRYPOINT " + arguments(c.Entrypoint), "CMD " + arguments(c.Cmd),
			"CMD " + arguments(c.Healthcheck.Test[1:]), "--interval=" + c.Healthcheck.Interval.String(), "--start-period=" + c.Healthcheck.StartPeriod.String(),
		} {
			if !strings.Contains(last, line) {
				t.Errorf("%s: the Dockerfile has no %q", m.Platform.Architecture, line)
			}
		}
		if file.Architecture != m.Platform.Architecture || file.Created.IsZero() || len(c.ExposedPorts) != 3 {
			t.Errorf("%s: architecture %s, created %v, ports %v", m.Platform.Architecture, file.Architecture, file.Created, c.ExposedPorts)
		}
	}
}

// A manual page prints what --help says, whatever characters it has.
func TestPage(t *testing.T) {
	t.Parallel()
	b := build{version: "v1", at: time.Unix(0, 0)}
	page, below := b.page("Does things.\n\nUsage:\n  mayfly x [flags]\n\nAvailable Commands:\n  one   First\n  two   Second\n\nFlags:\n  -h, --help   .help for \\ x\n.dot\n'quote\n", []string{"x"})
	if strings.Join(below, " ") != "one two" {
		t.Errorf("below: %q", below)
	}
	for _, want := range []string{`mayfly\-x \- Does things`, "\n.SH \"OPTIONS\"\n", `\-\-help   .help for \e x`, "\n\\&.dot\n", "\n\\&'quote\n", `"1970-01-01"`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}
