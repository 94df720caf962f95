package server

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What clients can make the process hold is below what deploy/ allows it, and is
// the number that the documentation says.
func TestMemoryLaw(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	clients, all := c.ClientBytes()>>20, (c.ClientBytes()+ProcessBytes)>>20
	for file, limit := range map[string]string{
		"../deploy/mayfly.service": `(?m)^MemoryMax=(\d+)M$`,
		"../deploy/compose.yaml":   `(?m)^ +mem_limit: (\d+)m$`,
	} {
		text, err := os.ReadFile(file) // #nosec G304 -- of this tree
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(limit).FindSubmatch(text)
		if m == nil {
			t.Errorf("%s has no limit on memory", file)
			continue
		}
		if n, err := strconv.Atoi(string(m[1])); err != nil || all >= n {
			t.Errorf("%s allows %d MiB, and clients can make the process hold %d", file, n, all)
		}
	}
	page, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{clients, all} {
		if !strings.Contains(string(page), fmt.Sprintf("**%d MiB**", n)) {
			t.Errorf("docs/limits.md doesn't say **%d MiB**", n)
		}
	}
	more := DefaultConfig()
	more.Limits.Connections += 100
	if d := (more.ClientBytes() - c.ClientBytes()) >> 20; !strings.Contains(string(page), fmt.Sprintf("100 more `connections` take %d MiB", d)) {
		t.Errorf("100 more connections take %d MiB", d)
	}
	more = DefaultConfig()
	more.Limits.Issuances += 100
	if d := (more.ClientBytes() - c.ClientBytes()) >> 20; !strings.Contains(string(page), fmt.Sprintf("100 more `issuances` take %d MiB", d)) {
		t.Errorf("100 more issuances take %d MiB", d)
	}
}
