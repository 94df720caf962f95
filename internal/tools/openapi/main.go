// Command openapi writes the OpenAPI 3 document of all REST routes: those of the .proto
// files, which protoc-gen-openapiv2 describes, and those of proto/routes.yaml, with the
// refusals and the token that all have in common.
//
//	openapi SWAGGER ROUTES OUT
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: openapi SWAGGER ROUTES OUT")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	routes, err := openapi3.NewLoader().LoadFromFile(args[1])
	if err != nil {
		return err
	}
	doc, err := document(text, routes)
	if err != nil {
		return err
	}
	if err := doc.Validate(ctx); err != nil {
		return err
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(args[2], append(out, '\n'), 0o644)
}

// document puts what swagger describes into routes.
func document(swagger []byte, routes *openapi3.T) (*openapi3.T, error) {
	var old openapi2.T
	if err := json.Unmarshal(swagger, &old); err != nil {
		return nil, err
	}
	api, err := openapi2conv.ToV3(&old)
	if err != nil {
		return nil, err
	}
	routes.Info = api.Info
	refusal := &openapi3.ResponseRef{Ref: "#/components/responses/Refusal", Value: routes.Components.Responses["Refusal"].Value}
	for path, item := range api.Paths.Map() {
		for _, operation := range item.Operations() {
			if item.Post != nil || strings.HasPrefix(path, "/api/v1/mayfly/") { // some are answered without one: by a key's proof, or on loopback
				operation.Security = openapi3.NewSecurityRequirements().With(openapi3.NewSecurityRequirement().Authenticate("token")).With(openapi3.NewSecurityRequirement())
			}
		}
		routes.Paths.Set(path, item)
	}
	for _, item := range routes.Paths.Map() { // none is served beyond the limits, nor while the service ends
		for _, operation := range item.Operations() {
			operation.Responses.Set("default", refusal)
		}
	}
	for name, schema := range api.Components.Schemas {
		if name != "rpcStatus" && name != "protobufAny" { // Refusal says more
			routes.Components.Schemas[name] = schema
		}
	}
	var reasons []any
	for _, reason := range slices.Sorted(slices.Values(fault.Reasons())) {
		reasons = append(reasons, string(reason))
	}
	routes.Components.Schemas["ErrorInfo"].Value.Properties["reason"].Value.Enum = reasons
	return routes, nil
}
