package main

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	site "github.com/mayfly-ca/mayfly/server/page"
)

// TestOpenAPI: the document has the routes that are served, neither more nor fewer,
// and what they answer.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	_, _, e := issuing(t, "described")
	_, text, err := get(context.Background(), e.HTTP+"/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	type response struct {
		Ref     string `json:"$ref"`
		Content map[string]any
	}
	var document struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			Responses map[string]response
		}
		Components struct {
			SecuritySchemes map[string]any
			Responses       map[string]response
		}
	}
	if err := json.Unmarshal(text, &document); err != nil || !strings.HasPrefix(document.OpenAPI, "3.") || len(document.Components.SecuritySchemes) == 0 {
		t.Fatalf("%v; OpenAPI %q, %d security schemes", err, document.OpenAPI, len(document.Components.SecuritySchemes))
	}
	described := map[string]bool{} // prefixes of what has several files, with the last slash
	for path, methods := range document.Paths {
		for method := range methods {
			path, _, _ := strings.Cut(path, "{")
			if strings.HasPrefix(path, "/revocations/") {
				path = "/revocations/"
			}
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	for path, methods := range document.Paths {
		described := methods["get"].Responses
		if described == nil || strings.Contains(path, "{") {
			continue
		}
		answer, err := http.Get(e.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		said := described[strconv.Itoa(answer.StatusCode)]
		if name, ok := strings.CutPrefix(said.Ref, "#/components/responses/"); ok {
			said = document.Components.Responses[name]
		}
		media := strings.TrimSuffix(answer.Header.Get("Content-Type"), "; charset=utf-8")
		if said.Content[media] == nil || described["default"].Ref != "#/components/responses/Refusal" {
			t.Errorf("GET %s: %d %s, described as %v", path, answer.StatusCode, media, described)
		}
	}
	_, index, err := get(context.Background(), e.HTTP+"/")
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(GET|POST) +(/[^ …\n]*)`).FindAllStringSubmatch(string(index), -1) {
		path := m[2]
		if strings.HasPrefix(path, "/ctlog/") {
			path = "/ctlog/"
		}
		served[m[1]+" "+path] = true
	}
	for path, verb := range site.New(site.Options{}).Paths() { // which is for people
		delete(served, verb+" "+path)
	}
	if !maps.Equal(described, served) {
		t.Errorf("described:\n%s\n\nserved:\n%s", strings.Join(slices.Sorted(maps.Keys(described)), "\n"), strings.Join(slices.Sorted(maps.Keys(served)), "\n"))
	}
}
