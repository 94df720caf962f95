package server

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestStatusOfADependencyIsNotTheClients: a status that a KMS answered us with says nothing about our
// client's request, and its words are for our log.
func TestStatusOfADependencyIsNotTheClients(t *testing.T) {
	theirs := status.Error(codes.PermissionDenied, "private words")
	for name, tt := range map[string]struct {
		err     error
		code    codes.Code
		message string
	}{
		"behind a fault":       {fault.New(fault.SignerUnavailable, "try again").Because(fmt.Errorf("signing: %w", theirs)), codes.Unavailable, "try again"},
		"wrapped":              {fmt.Errorf("signing: %w", theirs), codes.Internal, "internal error"},
		"joined":               {errors.Join(theirs, errors.New("x")), codes.Internal, "internal error"},
		"gRPC's own, as it is": {status.Error(codes.Unimplemented, "unknown method"), codes.Unimplemented, "unknown method"},
	} {
		if got := status.Convert(translated(tt.err, "id")); got.Code() != tt.code || got.Message() != tt.message {
			t.Errorf("%s: %v %q; want %v %q", name, got.Code(), got.Message(), tt.code, tt.message)
		}
	}
}
