// Package proto holds the API's contract: the .proto files, what is generated
// from them, and the OpenAPI document of the REST routes.
package proto

import _ "embed"

//go:generate go run -C ../internal/tools ./openapi ../../bin/openapi.swagger.json ../../proto/routes.yaml ../../proto/openapi.json

// OpenAPI is the OpenAPI 3 document of all REST routes, as JSON.
//
//go:embed openapi.json
var OpenAPI []byte
