package requestid

import (
	"strings"
	"testing"
)

func TestOnlyHarmlessIDsAreKept(t *testing.T) {
	t.Parallel()
	for sent, kept := range map[string]bool{
		"a": true, "Az09-_.": true, strings.Repeat("x", maxLength): true,
		"": false, strings.Repeat("x", maxLength+1): false, "a b": false, "a\nb": false, `"`: false, "é": false, "a\x00": false, "a/b": false, "a\xff": false,
	} {
		if got := Choose(sent); (got == sent) != kept || len(got) > maxLength || got == "" {
			t.Errorf("%q became %q", sent, got)
		}
	}
}
