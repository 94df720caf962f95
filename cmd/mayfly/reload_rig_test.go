package main

import "strings"

// deciding is /readyz?verbose without what only informs: the details, and the
// lines about the configuration and the log to come.
func deciding(page string) string {
	var kept strings.Builder
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "configuration: ") && !strings.HasPrefix(line, "next log: ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
