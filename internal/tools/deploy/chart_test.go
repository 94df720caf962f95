package deploy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write deploy/kubernetes again")

const (
	chart     = "../../../deploy/helm/mayfly"
	manifests = "../../../deploy/kubernetes"
)

// cases are the values that the chart is tried with; each has its manifests.
var cases = []string{"embedded", "replicas", "tls"}

func values(name string) string { return filepath.Join(chart, "ci", name+"-values.yaml") }

// program is the path of a foreign program, which run.sh sets.
func program(t *testing.T, name string) string {
	t.Helper()
	path := os.Getenv(name)
	if path == "" {
		t.Fatalf("%s is not set: run these tests with `make check-deploy`", name)
	}
	return path
}

// run runs a program on an input and answers with all that it says.
func run(t *testing.T, input, name string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Stdin = strings.NewReader(input)
	c.Env = append(os.Environ(), "HOME="+t.TempDir())
	said, err := c.CombinedOutput()
	return string(said), err
}

// render is what `helm template` makes of the chart.
func render(t *testing.T, args ...string) string {
	t.Helper()
	text, err := run(t, "", program(t, "HELM"), append([]string{"template", "mayfly", chart, "--namespace", "mayfly", "--kube-version", "1.34.0"}, args...)...)
	if err != nil {
		t.Fatalf("helm template %q: %v\n%s", args, err, text)
	}
	return text
}

// object is a resource of Kubernetes.
type object map[string]any

func (o object) kind() string { return o["kind"].(string) }
func (o object) name() string { return at[string](o, "metadata", "name") }

// at is the value at a path of keys.
func at[T any](o map[string]any, path ...string) T {
	var v any = o
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	value, _ := v.(T)
	return value
}

func objects(t *testing.T, text string) (all []object) {
	t.Helper()
	for decoder := yaml.NewDecoder(strings.NewReader(text)); ; {
		o := map[string]any{}
		switch err := decoder.Decode(&o); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		case len(o) > 0:
			all = append(all, o)
		}
	}
}

// one is the only object of a kind and of a name that ends so.
func one(t *testing.T, all []object, kind, end string) object {
	t.Helper()
	var found []object
	for _, o := range all {
		if o.kind() == kind && strings.HasSuffix(o.name(), end) {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d × %s …%s, want one", len(found), kind, end)
	}
	return found[0]
}

func TestLint(t *testing.T) {
	t.Parallel()
	for _, name := range cases {
		if said, err := run(t, "", program(t, "HELM"), "lint", "--strict", chart, "--values", values(name)); err != nil {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
	}
}

// The plain manifests are what the chart renders today.
func TestManifests(t *testing.T) {
	t.Parallel()
	for _, name := range cases {
		file := filepath.Join(manifests, name+".yaml")
		text := "# Rendered from deploy/helm/mayfly with its ci/" + name + "-values.yaml by `make check-deploy UPDATE=1`.\n" + render(t, "--values", values(name))
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(old) != text {
			t.Errorf("%s isn't what the chart renders: make check-deploy UPDATE=1", file)
		}
	}
}

// valid holds resources to Kubernetes' own schemas, which know every field.
func valid(t *testing.T, text string) error {
	t.Helper()
	said, err := run(t, text, program(t, "KUBECONFORM"), "-strict", "-summary", "-schema-location", "schemas/{{ .ResourceKind }}.json", "-")
	if err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	if !strings.Contains(said, "Skipped: 0") || strings.Contains(said, " 0 resource found") {
		return errors.New("not all was looked at: " + said)
	}
	return nil
}

// What any values render is what Kubernetes takes: switches in all combinations, on each
// case's values.
func TestValid(t *testing.T) {
	t.Parallel()
	switches := map[string][]string{
		"embedded": {"log.create=true", "networkPolicy.enabled=false", "ingress.enabled=false", "serviceAccount.create=false", "networkPolicy.metricsFrom=null", "secrets=null"},
		"replicas": {"autoscaling.enabled=false", "replicas=1", "networkPolicy.egress=null", "monitoring.rules=false", "monitoring.serviceMonitor=false", "extraCA.configMap="},
		"tls":      {"podSecurityContext.runAsUser=null", "topologySpreadConstraints=null", "affinity=null", "extraVolumes=null,extraVolumeMounts=null", "image.digest=", "persistence.storageClass="},
	}
	for _, name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all strings.Builder
			for which := range 1 << len(switches[name]) {
				args := []string{"--values", values(name)}
				for i, set := range switches[name] {
					if which&(1<<i) != 0 {
						args = append(args, "--set", set)
					}
				}
				all.WriteString(render(t, args...) + "\n---\n")
			}
			if err := valid(t, all.String()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a field that Kubernetes doesn't know", func(t *testing.T) {
		t.Parallel()
		for old, wrong := range map[string]string{
			"runAsNonRoot: true": "runAsNonroot: true", "failureThreshold: 2": "failureThreshold: two", "maxUnavailable: 1": "maxUnavailables: 1",
			"interval: 30s": "interval: often",
		} {
			text := render(t, "--values", values("replicas"))
			mutated := strings.Replace(text, old, wrong, 1)
			if mutated == text || valid(t, mutated) == nil {
				t.Errorf("%s is accepted", wrong)
			}
		}
	})
}

// What kube-score finds beyond these is mended.
var notScored = []string{
	"container-resources",         // a limit on processor time only makes requests wait
	"container-image-pull-policy", // an image with a digest or a version is the same everywhere
	"container-ephemeral-storage-request-and-limit",
	"statefulset-has-host-podantiaffinity", // topologySpreadConstraints does it
}

func TestScore(t *testing.T) {
	t.Parallel()
	args := []string{"score", "--kubernetes-version", "v1.34", "--output-format", "ci", "-"}
	for _, test := range notScored {
		args = append(args, "--ignore-test", test)
	}
	for _, name := range cases {
		said, err := run(t, render(t, "--values", values(name)), program(t, "KUBE_SCORE"), args...)
		if err != nil || strings.Contains(said, "[WARNING]") || !strings.Contains(said, "[OK]") {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
	}
}

// Values that can't work, or would do harm, are refused with their place.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ values, set, place string }{
		{"", "", "/config"},
		{"embedded", "replicas=2", "/replicas"},
		{"embedded", "autoscaling.enabled=true", "/autoscaling/enabled"},
		{"embedded", "replica=1", "replica"},
		{"embedded", "image.tag=latest", "/image/tag"},
		{"embedded", "image.digest=sha256:12", "/image/digest"},
		{"embedded", "config.ctlog.mode=shared", "/config/ctlog/mode"},
		{"embedded", "config.issuers=null", "/config/issuers"},
		{"embedded", "config.server.http_address=:80", "/config/server/http_address"},
		{"embedded", "config.server.shutdown_grace=5m", "/config/server/shutdown_grace"},
		{"embedded", "config.audit.path=/tmp/audit.jsonl", "/config/audit/path"},
		{"embedded", "config.store.path=index.db", "/config/store/path"},
		{"embedded", "config.revocation.directory=/tmp/revocations", "/config/revocation/directory"},
		{"embedded", "config.revocation.mark_file=/var/lib/mayfly/revocations.mark", "/config/revocation/mark_file"},
		{"embedded", "config.page.login.key_file=page.key", "/config/page/login/key_file"},
		{"embedded", "secrets.config=mine", "/secrets/config"},
		{"embedded", "secrets.Upper=mine", "/secrets"},
		{"embedded", "secrets.inline.key=PEM", "/secrets/inline"},
		{"embedded", "podSecurityContext.runAsUser=0", "/podSecurityContext/runAsUser"},
		{"embedded", "podSecurityContext.runAsNonRoot=false", "/podSecurityContext/runAsNonRoot"},
		{"embedded", "resources.limits.memory=null", "/resources/limits"},
		{"embedded", "persistence.size=20", "/persistence/size"},
		{"embedded", "drain.graceSeconds=-1", "/drain/graceSeconds"},
		{"embedded", "ingress.host=", "/ingress/host"},
		{"embedded", "ingress.tlsSecret=", "/ingress/tlsSecret"},
		{"embedded", "monitoring.interval=often", "/monitoring/interval"},
		{"embedded", "service.type=ExternalName", "/service/type"},
		{"replicas", "replicas=0", "/replicas"},
		{"replicas", "config.store.path=/var/lib/mayfly/index.db", "/autoscaling/enabled"},
		{"replicas", "config.revocation.self_service=true", "/autoscaling/enabled"},
		{"replicas", "autoscaling.minReplicas=1", "/autoscaling/minReplicas"},
		{"replicas", "autoscaling.cpuPercent=400", "/autoscaling/cpuPercent"},
	} {
		args := []string{"template", "mayfly", chart}
		if c.values != "" {
			args = append(args, "--values", values(c.values), "--set", c.set)
		}
		said, err := run(t, "", program(t, "HELM"), args...)
		if err == nil || !strings.Contains(said, "'"+c.place+"'") && !strings.Contains(said, "'"+strings.TrimPrefix(c.place, "/")+"'") {
			t.Errorf("--set %s: %v, without %s in\n%s", c.set, err, c.place, said)
		}
	}
}

// What no schema says: that the parts fit each other.
func TestParts(t *testing.T) {
	t.Parallel()
	for _, name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := objects(t, render(t, "--values", values(name)))
			for _, o := range all {
				if o.kind() == "Secret" {
					t.Error("a Secret is made: values would hold keys")
				}
				if at[string](o, "metadata", "namespace") != "mayfly" {
					t.Errorf("%s %s is in no namespace", o.kind(), o.name())
				}
			}
			set := one(t, all, "StatefulSet", "mayfly")
			pod := at[map[string]any](set, "spec", "template", "spec")
			labels := at[map[string]any](set, "spec", "template", "metadata", "labels")
			for _, o := range all {
				for _, path := range [][]string{{"spec", "selector", "matchLabels"}, {"spec", "podSelector", "matchLabels"}, {"spec", "selector"}} {
					for key, want := range at[map[string]any](o, path...) {
						if o.kind() == "ServiceMonitor" {
							labels := at[map[string]any](one(t, all, "Service", "-pods"), "metadata", "labels")
							if key != "matchLabels" && labels[key] != want {
								t.Errorf("%s selects no service: %s", o.name(), key)
							}
						} else if key != "matchLabels" && labels[key] != want {
							t.Errorf("%s %s selects %s=%v; the pods have %v", o.kind(), o.name(), key, want, labels[key])
						}
					}
				}
			}
			checkPod(t, pod, all)
		})
	}
}

// checkPod holds the container to what its probes, services and drain rest on.
func checkPod(t *testing.T, pod map[string]any, all []object) {
	t.Helper()
	container := pod["containers"].([]any)[0].(map[string]any)
	ports := map[string]int{}
	for _, p := range container["ports"].([]any) {
		port := p.(map[string]any)
		ports[port["name"].(string)] = port["containerPort"].(int)
	}
	for _, o := range all {
		if o.kind() != "Service" {
			continue
		}
		for _, p := range at[[]any](o, "spec", "ports") {
			if target := p.(map[string]any)["targetPort"].(string); ports[target] == 0 {
				t.Errorf("service %s leads to %s, which is no port", o.name(), target)
			}
		}
	}
	paths := []string{}
	for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
		paths = append(paths, at[string](container, probe, "httpGet", "path"))
	}
	if !slices.Equal(paths, []string{"/healthz", "/healthz", "/readyz"}) {
		t.Errorf("probes: %q", paths)
	}
	var c struct {
		Server struct {
			HTTP    string `yaml:"http_address"`
			GRPC    string `yaml:"grpc_address"`
			Metrics string `yaml:"metrics_address"`
			Delay   string `yaml:"shutdown_delay"`
			Grace   string `yaml:"shutdown_grace"`
		} `yaml:"server"`
	}
	if err := yaml.Unmarshal([]byte(configuration(t, all)), &c); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{"rest": c.Server.HTTP, "grpc": c.Server.GRPC, "metrics": c.Server.Metrics} {
		if want := fmt.Sprintf("0.0.0.0:%d", ports[name]); address != want {
			t.Errorf("%s: the configuration has %s, the pod %s", name, address, want)
		}
	}
	var delay, grace int
	if _, err := fmt.Sscanf(c.Server.Delay+" "+c.Server.Grace, "%ds %ds", &delay, &grace); err != nil {
		t.Fatal(err)
	}
	if patience := pod["terminationGracePeriodSeconds"].(int); patience < delay+grace+10 {
		t.Errorf("a pod that ends has %d s, and draining takes %d", patience, delay+grace)
	}
	for _, v := range pod["volumes"].([]any) {
		if secret := at[map[string]any](v.(map[string]any), "secret"); secret != nil && secret["defaultMode"] != 0o440 {
			t.Errorf("secret %v has mode %v", secret["secretName"], secret["defaultMode"])
		}
	}
}

// configuration is mayfly.yaml as the pod has it.
func configuration(t *testing.T, all []object) string {
	t.Helper()
	for _, o := range all {
		if text := at[string](o, "data", "mayfly.yaml"); text != "" {
			return text
		}
	}
	t.Fatal("no mayfly.yaml")
	return ""
}

// A pod starts anew when its configuration changes beyond what a running service takes up.
func TestChecksum(t *testing.T) {
	t.Parallel()
	sum := func(set string) string {
		all := objects(t, render(t, "--values", values("embedded"), "--set", set))
		return at[string](one(t, all, "StatefulSet", "mayfly"), "spec", "template", "metadata", "annotations", "checksum/config")
	}
	before := sum("replicas=1")
	if before == "" {
		t.Fatal("no checksum")
	}
	for _, set := range []string{"config.issuers[0].audiences[0]=other", "config.access.admins[0].name=others", "config.alerts.rules[0].name=others"} {
		if sum(set) != before {
			t.Errorf("%s restarts the pod", set)
		}
	}
	if sum("config.ca.lifetime=5m") == before || sum("drain.delaySeconds=6") == before {
		t.Error("a change that needs a restart doesn't restart the pod")
	}
}

// A package of the chart has all that it renders with.
func TestPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if said, err := run(t, "", program(t, "HELM"), "package", chart, "--destination", dir); err != nil {
		t.Fatal(err, said)
	}
	packed, err := filepath.Glob(filepath.Join(dir, "mayfly-*.tgz"))
	if err != nil || len(packed) != 1 {
		t.Fatal(packed, err)
	}
	args := []string{"template", "mayfly", packed[0], "--namespace", "mayfly", "--kube-version", "1.34.0", "--values", values("replicas")}
	text, err := run(t, "", program(t, "HELM"), args...)
	if err != nil || !bytes.Equal([]byte(text), []byte(render(t, "--values", values("replicas")))) {
		t.Errorf("the package renders otherwise than the folder: %v", err)
	}
}
