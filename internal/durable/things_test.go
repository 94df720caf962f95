package durable_test

import (
	"testing"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

func TestThingsOfTheSystemAreKnown(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"lost+found": true, ".snapshot": true, "..data": true, "..2026_11_29_06_00_00.123": true, ".DS_Store": true, ".nfs0000001": true, "._x": true,
		"checkpoint": false, ".state": false, "root.pem": false, ".tmp-1": false, "notes.txt": false, "": false,
	} {
		if got := durable.OfTheSystem(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
