// Package commandline says in our words what cobra finds wrong with a command line.
package commandline

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// texts are cobra's, which has no types for them. What is in parentheses are the names of flags.
var texts = []struct {
	cobra           *regexp.Regexp
	says, last, fix string // last joins the last two flags
}{
	{regexp.MustCompile(`^required flag\(s\) (.+) not set$`), "%s needs %s", " and ", "add "},
	{regexp.MustCompile(`^if any .+ missing \[(.+)\]$`), "%s needs %s as well", " and ", "add "},
	{regexp.MustCompile(`^at least one of the flags in the group \[(.+)\] is required$`), "%s needs %s", " or ", "add "},
	{regexp.MustCompile(`^if any .+; \[(.+)\] were all set$`), "%s takes %s, and only one of them", " or ", "keep "},
	{regexp.MustCompile(`^flag needs an argument: --(.+)$`), "%s needs a value for %s", "", "give "},
}

var amount = regexp.MustCompile(`^accepts (\d+) arg\(s\), received (\d+)$`)

// Explain gives what to type next, and err in our words; "" and err itself where they are
// good enough.
func Explain(cmd *cobra.Command, err error) (fix string, _ error) {
	for _, t := range texts {
		found := t.cobra.FindStringSubmatch(err.Error())
		if found == nil {
			continue
		}
		names := strings.FieldsFunc(found[1], func(r rune) bool { return strings.ContainsRune(`", `, r) })
		meant := make([]string, len(names))
		for i, name := range names {
			names[i] = "--" + name
			if f := cmd.Flags().Lookup(name); f != nil {
				_, usage := pflag.UnquoteUsage(f)
				meant[i] = names[i] + " (" + strings.TrimSuffix(usage, " (required)") + ")"
			}
		}
		return t.fix + list(meant, t.last) + "; `" + cmd.CommandPath() + " --help` has the flags", fmt.Errorf(t.says, cmd.CommandPath(), list(names, t.last))
	}
	if n := amount.FindStringSubmatch(err.Error()); n != nil {
		return "write `" + cmd.UseLine() + "`", fmt.Errorf("%s takes %s argument, and %s are given", cmd.CommandPath(), n[1], n[2])
	}
	return "", err
}

func list(words []string, last string) string {
	if n := len(words) - 1; n > 0 {
		return strings.Join(words[:n], ", ") + last + words[n]
	}
	return words[0]
}
