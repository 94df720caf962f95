package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// within bounds the start of a program, on a machine that is busy.
const within = time.Minute

// pod is a root folder as the kubelet makes it for a container, and what runs in it.
type pod struct {
	root    string
	group   int
	user    int
	env     []string
	init    [][]string
	args    []string
	seconds int // that it has to end
	port    string
}

// kubelet lays out what a StatefulSet's pod sees. secrets and maps are what the cluster
// has, by name and file; mode of what says no mode is Kubernetes' own.
func kubelet(t *testing.T, all []object, secrets, maps map[string]map[string][]byte, free func(string) string) *pod {
	t.Helper()
	spec := at[map[string]any](one(t, all, "StatefulSet", "mayfly"), "spec", "template", "spec")
	p := &pod{
		root: t.TempDir(), group: at[int](spec, "securityContext", "fsGroup"), user: at[int](spec, "securityContext", "runAsUser"),
		seconds: at[int](spec, "terminationGracePeriodSeconds"),
	}
	for dir := p.root; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) { // the pod's user goes through
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	content := map[string]map[string][]byte{}
	modes := map[string]os.FileMode{}
	for _, v := range at[[]any](spec, "volumes") {
		volume := v.(map[string]any)
		name := volume["name"].(string)
		modes[name] = 0o644
		if secret := at[string](volume, "secret", "secretName"); secret != "" {
			content[name] = secrets[secret]
			if mode := at[int](volume, "secret", "defaultMode"); mode != 0 {
				modes[name] = os.FileMode(mode)
			}
		} else if name == "config" {
			content[name] = map[string][]byte{"mayfly.yaml": []byte(free(configuration(t, all)))}
		} else if named := at[string](volume, "configMap", "name"); named != "" {
			content[name] = maps[named]
		} else {
			continue // an empty folder
		}
		if content[name] == nil {
			t.Fatalf("the cluster has nothing for volume %s", name)
		}
	}
	container := at[[]any](spec, "containers")[0].(map[string]any)
	for _, m := range at[[]any](container, "volumeMounts") {
		mount := m.(map[string]any)
		name, path := mount["name"].(string), filepath.Join(p.root, mount["mountPath"].(string))
		p.mount(t, path, content[name], modes[name])
	}
	for _, e := range at[[]any](container, "env") {
		p.env = append(p.env, fmt.Sprintf("%v=%v", e.(map[string]any)["name"], e.(map[string]any)["value"]))
	}
	for _, c := range at[[]any](spec, "initContainers") {
		p.init = append(p.init, words(at[[]any](c.(map[string]any), "args")))
	}
	p.args = words(at[[]any](container, "args"))
	binary, err := os.ReadFile(program(t, "MAYFLY_BIN"))
	if err == nil {
		err = os.MkdirAll(filepath.Join(p.root, "usr/bin"), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(p.root, "usr/bin/mayfly"), binary, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func words(list []any) (all []string) {
	for _, w := range list {
		all = append(all, w.(string))
	}
	return all
}

// mount makes a volume: files as the kubelet's atomic writer does, with links and a folder
// that is swapped, of root and fsGroup, whose members may read; a claim where there are none.
func (p *pod) mount(t *testing.T, path string, files map[string][]byte, mode os.FileMode) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(path, 0o755))
	must(os.Chown(path, 0, p.group))
	must(os.Chmod(path, 0o775|os.ModeSetgid))
	if files == nil {
		return
	}
	const version = "..2026_11_29"
	must(os.Mkdir(filepath.Join(path, version), 0o755))
	must(os.Symlink(version, filepath.Join(path, "..data")))
	for name, text := range files {
		file := filepath.Join(path, version, name)
		must(os.WriteFile(file, text, 0o600))
		must(os.Chown(file, 0, p.group))
		must(os.Chmod(file, mode|0o440))
		must(os.Symlink(filepath.Join("..data", name), filepath.Join(path, name)))
	}
}

// command is a program in the pod: its user and group, its root, nothing else.
func (p *pod) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "/usr/bin/mayfly", args...)
	c.Dir, c.Env = "/var/lib/mayfly", append([]string{"PATH=/usr/bin"}, p.env...)
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: p.root, Credential: &syscall.Credential{
		Uid: uint32(p.user), Gid: uint32(p.group), Groups: []uint32{uint32(p.group)},
	}}
	return c
}

// start runs init containers and then the container, until it is ready.
func (p *pod) start(t *testing.T) *exec.Cmd {
	t.Helper()
	for _, args := range p.init {
		if said, err := p.command(t.Context(), args...).CombinedOutput(); err != nil {
			t.Fatalf("init container %q: %v\n%s", args, err, said)
		}
	}
	c := p.command(context.WithoutCancel(t.Context()), p.args...)
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("the container said:\n%s", said.String())
		}
	})
	until(t, "the pod is ready", func() bool { return status(t, "http://127.0.0.1:"+p.port+"/readyz") == http.StatusOK })
	return c
}

// stop is what the kubelet does to a pod that ends.
func (p *pod) stop(t *testing.T, c *exec.Cmd) {
	t.Helper()
	began := time.Now()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || time.Since(began) > time.Duration(p.seconds)*time.Second {
		t.Errorf("it ended after %v: %v", time.Since(began), err)
	}
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	end, tick := time.After(within), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

func status(t *testing.T, url string) int {
	t.Helper()
	code, _ := fetch(t, url)
	return code
}

func fetch(t *testing.T, url string) (int, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

// freePorts takes ports of this machine in the place of a pod's own.
func freePorts(t *testing.T) (rest string, free func(string) string) {
	t.Helper()
	var pairs []string
	for _, fixed := range []string{"5555", "5554", "2112"} {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if rest == "" {
			rest = port
		}
		pairs = append(pairs, "0.0.0.0:"+fixed, "127.0.0.1:"+port)
	}
	return rest, strings.NewReplacer(pairs...).Replace
}

// developer is a running `mayfly dev`, whose issuer and metrics others use.
type developer struct {
	Issuer  string `json:"issuer"`
	Metrics string `json:"metrics"`
	HTTP    string `json:"http"`
}

func startDeveloper(t *testing.T) (d developer) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	args := []string{"dev", "--dir", dir}
	for _, listener := range []string{"http", "grpc", "issuer", "metrics"} {
		args = append(args, "--"+listener+"-address", "127.0.0.1:0")
	}
	c := exec.CommandContext(context.WithoutCancel(t.Context()), program(t, "MAYFLY_BIN"), args...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	})
	until(t, "mayfly dev serves", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "endpoints.json"))
		return err == nil && json.Unmarshal(text, &d) == nil
	})
	return d
}

// authority has `mayfly init` make a CA, and sorts its files as docs/kubernetes.md does.
func authority(t *testing.T) (secrets map[string]map[string][]byte, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ca")
	if said, err := run(t, "", program(t, "MAYFLY_BIN"), "init", "--dir", dir, "--url", "https://ca.example.com"); err != nil {
		t.Fatal(said)
	}
	secrets = map[string]map[string][]byte{"mayfly-authority": {}, "mayfly-ctlog": {}, "mayfly-revocations": {}, "mayfly-alerts": {"webhook": []byte("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz")}}
	for file, secret := range map[string]string{
		"authority/chain.pem": "mayfly-authority", "authority/issuing.key.pem": "mayfly-authority",
		"authority/timestamp.pem": "mayfly-authority", "authority/timestamp.key.pem": "mayfly-authority", "ctlog.key.pem": "mayfly-ctlog",
		"revocations.key.pem": "mayfly-revocations",
	} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		secrets[secret][filepath.Base(file)] = text
	}
	return secrets, dir
}

// The manifests for one machine serve: a pod with nothing but what they give it makes its
// log, becomes ready, issues, drains, and does so again.
func TestPod(t *testing.T) {
	t.Parallel()
	dev := startDeveloper(t)
	secrets, _ := authority(t)
	issuers, err := json.Marshal([]map[string]any{{"url": dev.Issuer, "audiences": []string{"sigstore"}, "type": "email", "allow": "true", "allow_insecure_loopback": true}})
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, render(t, "--values", values("embedded"), "--set", "log.create=true,drain.delaySeconds=0", "--set-json", "config.issuers="+string(issuers)))
	rest, free := freePorts(t)
	p := kubelet(t, all, secrets, nil, free)
	p.port = rest
	for range 2 {
		c := p.start(t)
		_, token := fetch(t, dev.Issuer+"/dev/token?email=alice@example.com")
		_, root := fetch(t, "http://127.0.0.1:"+rest+"/trusted_root.json")
		file := filepath.Join(t.TempDir(), "trusted_root.json")
		if err := os.WriteFile(file, root, 0o600); err != nil {
			t.Fatal(err)
		}
		said, err := run(t, string(token), program(t, "MAYFLY_BIN"), "request", "--ca", "http://127.0.0.1:"+rest, "--token-stdin", "--trusted-root", file,
			"--output-key", filepath.Join(t.TempDir(), "key"), "--output-certificate", filepath.Join(t.TempDir(), "certificate"))
		if err != nil {
			t.Error(said)
		}
		p.stop(t, c)
	}
}

// The service refuses keys with the modes that Kubernetes gives where none is asked for, and
// a log that isn't there.
func TestPodRefuses(t *testing.T) {
	t.Parallel()
	secrets, _ := authority(t)
	rest, free := freePorts(t)
	for _, c := range []struct {
		what, old, wrong, said string
	}{
		{"keys that everybody may read", ", defaultMode: 0440", "", "everybody may use it (mode 0644)"},
		{"keys of another group", "fsGroup: 65532", "fsGroup: 1000", "issuing.key.pem: permission denied"},
		{"a log that isn't there", "", "", "is its disk mounted"},
	} {
		text := render(t, "--values", values("embedded"), "--set", "log.create=true")
		if c.old != "" && !strings.Contains(text, c.old) {
			t.Errorf("%s: %q isn't in the manifests", c.what, c.old)
		}
		p := kubelet(t, objects(t, strings.ReplaceAll(text, c.old, c.wrong)), secrets, nil, free)
		p.port = rest
		command := p.command(t.Context(), "check", "--config", "/etc/mayfly/config/mayfly.yaml")
		if c.wrong != "" {
			command.SysProcAttr.Credential = &syscall.Credential{Uid: 65532, Gid: 65532}
		}
		if said, err := command.CombinedOutput(); err == nil || !strings.Contains(string(said), c.said) {
			t.Errorf("%s: %v, without %q in\n%s", c.what, err, c.said, said)
		}
	}
}

// Every case's configuration is one that `mayfly check` reads, but for what isn't here.
func TestConfigurations(t *testing.T) {
	t.Parallel()
	secrets, dir := authority(t)
	chain := secrets["mayfly-authority"]["chain.pem"]
	public, err := run(t, "", program(t, "MAYFLY_BIN"), "kms", "public", "file:"+filepath.Join(dir, "ctlog.key.pem"))
	if err != nil {
		t.Fatal(public)
	}
	secrets["mayfly-tls"] = map[string][]byte{"tls.crt": chain, "tls.key": secrets["mayfly-authority"]["issuing.key.pem"]}
	maps := map[string]map[string][]byte{"mayfly-chain": {"chain.pem": chain}, "mayfly-logs": {"log-2026.pub.pem": []byte(public)}, "example-roots": {"root.pem": chain}}
	for name, faults := range map[string][]string{
		"embedded": {"ctlog.embedded: the directory can't be used"},
		"tls":      {"ctlog.embedded: the directory can't be used"},
		"replicas": {"ca.authority.key"},
	} {
		p := kubelet(t, objects(t, render(t, "--values", values(name), "--set", "podSecurityContext.runAsUser=65532")), secrets, maps, func(s string) string { return s })
		said, _ := p.command(t.Context(), "check", "--config", "/etc/mayfly/config/mayfly.yaml").CombinedOutput()
		for line := range strings.Lines(string(said)) {
			known := false
			for _, fault := range faults {
				known = known || strings.Contains(line, fault)
			}
			if strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, "  remark") && !strings.HasPrefix(line, "  fix") && !known {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

// A scrape has nothing that promtool would have otherwise.
func TestScrape(t *testing.T) {
	t.Parallel()
	dev := startDeveloper(t)
	code, scrape := fetch(t, dev.Metrics+"/metrics")
	if code != http.StatusOK || !strings.Contains(string(scrape), "\nmayfly_build_info{") || !strings.Contains(string(scrape), "\nmayfly_dependency_working{") {
		t.Fatalf("%d\n%s", code, scrape)
	}
	said, err := run(t, string(scrape), program(t, "PROMTOOL"), "check", "metrics")
	if err != nil {
		t.Error(err, said)
	}
}
