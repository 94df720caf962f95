package setting_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestSecretWithoutItsEndOfLine: a secret is the same from a file and from a
// variable, and what a final end of line leaves empty is none.
func TestSecretWithoutItsEndOfLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for text, want := range map[string]string{
		"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", "hunter2\n\n": "hunter2\n", " hunter2 ": " hunter2 ",
		"": "", "\n": "", "\r\n": "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("SETTING_TEST_SECRET", text)
		for name, s := range map[string]setting.Secret{"file": {File: setting.Path(file)}, "variable": {Env: "SETTING_TEST_SECRET"}} {
			got, err := s.Read()
			if string(got) != want || (err == nil) != (want != "") {
				t.Errorf("%q in a %s: %q, %v; want %q", text, name, got, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error has the secret: %v", err)
			}
		}
	}
}

func TestSecretOfEverybodyIsRefused(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (setting.Secret{File: setting.Path(file)}).Read(); err == nil || !strings.Contains(err.Error(), "chmod 600 "+file) {
		t.Errorf("%v; want the chmod that helps", err)
	}
}
