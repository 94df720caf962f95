package oidc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
)

func TestCategory(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"":                nil,
		"timeout":         fmt.Errorf("keys: %w", context.DeadlineExceeded),
		"name not found":  &net.OpError{Err: &net.DNSError{}},
		"no connection":   &net.OpError{Err: errors.New("refused")},
		"address refused": &net.OpError{Err: errAddress},
		"bad answer":      errors.New("keys: the issuer answered 500"),
	} {
		if got := (Status{Err: err}).Category(); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
