// Package proto holds the API's contract: the .proto files, what is generated
// from them, and the OpenAPI document of the REST routes.
package proto

import _ "embed"

// OpenAPI is the OpenAPI 2.0 document of the REST routes, as JSON.
//
//go:embed openapi.swagger.json
var OpenAPI []byte
