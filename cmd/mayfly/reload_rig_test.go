package main

import "strings"

// deciding is /readyz?verbose without what only informs: the details, and the
// line about the configuration.
func deciding(page string) string {
	var kept strings.Builder
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "configuration: ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
