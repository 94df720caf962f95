// Command kubeschema writes the JSON schemas that the chart's resources are held to, out of
// Kubernetes' own description of its API and the Prometheus operator's of its resources:
//
//	go run ./deploy/kubeschema KUBERNETES OPERATOR deploy/schemas
//
// The first two are the folders of the modules k8s.io/kubernetes and
// github.com/prometheus-operator/prometheus-operator, as `go mod download -json` names them.
// A field that isn't described is refused.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// kinds are those that the chart renders, by the definitions of their versions.
var kinds = []string{
	"io.k8s.api.apps.v1.StatefulSet", "io.k8s.api.core.v1.ConfigMap", "io.k8s.api.core.v1.Service", "io.k8s.api.core.v1.ServiceAccount",
	"io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler", "io.k8s.api.networking.v1.Ingress", "io.k8s.api.networking.v1.NetworkPolicy",
	"io.k8s.api.policy.v1.PodDisruptionBudget",
}

const refPrefix = "#/definitions/"

type schema = map[string]any

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: kubeschema KUBERNETES OPERATOR OUT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubernetes, operator, out string) error {
	text, err := os.ReadFile(filepath.Join(kubernetes, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		return err
	}
	var api struct {
		Definitions map[string]schema `json:"definitions"`
	}
	if err := json.Unmarshal(text, &api); err != nil {
		return err
	}
	for _, kind := range kinds {
		used := schema{}
		if err := collect(api.Definitions, kind, used); err != nil {
			return err
		}
		if err := write(out, kind[strings.LastIndex(kind, ".")+1:], schema{"$ref": refPrefix + kind, "definitions": used}); err != nil {
			return err
		}
	}
	for file, kind := range map[string]string{"servicemonitors": "ServiceMonitor", "prometheusrules": "PrometheusRule"} {
		text, err := os.ReadFile(filepath.Join(operator, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+file+".yaml"))
		if err != nil {
			return err
		}
		var crd struct {
			Spec struct {
				Versions []struct {
					Schema struct {
						V3 schema `yaml:"openAPIV3Schema"`
					} `yaml:"schema"`
				} `yaml:"versions"`
			} `yaml:"spec"`
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return err
		}
		s := crd.Spec.Versions[0].Schema.V3
		closed(s)
		s["properties"].(schema)["metadata"] = schema{"type": "object"}
		if err := write(out, kind, s); err != nil {
			return err
		}
	}
	return nil
}

// collect puts a definition and all that it refers to into used.
func collect(all map[string]schema, name string, used schema) error {
	if used[name] != nil {
		return nil
	}
	d, known := all[name]
	if !known {
		return fmt.Errorf("there is no %s", name)
	}
	used[name] = d
	switch {
	case strings.HasSuffix(name, ".IntOrString"):
		d["type"] = []string{"string", "integer"}
	case strings.HasSuffix(name, ".Quantity"):
		d["type"] = []string{"string", "number"}
	}
	for _, ref := range closed(d) {
		if err := collect(all, ref, used); err != nil {
			return err
		}
	}
	return nil
}

// closed refuses unknown fields at every level of s, drops what only people read, and
// answers with what s refers to.
func closed(v any) (refs []string) {
	s, is := v.(schema)
	if !is {
		if list, is := v.([]any); is {
			for _, e := range list {
				refs = append(refs, closed(e)...)
			}
		}
		return refs
	}
	if ref, is := s["$ref"].(string); is {
		refs = append(refs, strings.TrimPrefix(ref, refPrefix))
	}
	if _, is := s["properties"].(schema); is && s["additionalProperties"] == nil {
		s["additionalProperties"] = false
	}
	for key, value := range s {
		if key == "properties" {
			for _, p := range value.(schema) {
				refs = append(refs, closed(p)...)
			}
			continue
		}
		if _, text := value.(string); key == "description" && text || strings.HasPrefix(key, "x-kubernetes-") || key == "format" {
			delete(s, key)
			continue
		}
		refs = append(refs, closed(value)...)
	}
	return refs
}

func write(out, kind string, s schema) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, strings.ToLower(kind)+".json"), append(text, '\n'), 0o644)
}
