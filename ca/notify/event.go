package notify

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// event is a CloudEvent (version 1.0.2) in its JSON format.
type event struct {
	SpecVersion     string            `json:"specversion"`
	ID              string            `json:"id"`
	Source          string            `json:"source"`
	Type            string            `json:"type"`
	Subject         string            `json:"subject,omitempty"`
	Time            time.Time         `json:"time"`
	DataContentType string            `json:"datacontenttype"`
	Data            map[string]string `json:"data"`
}

// typePrefix begins the type of every event.
const typePrefix = "dev.mayfly.alert."

// encode makes an event of what has a value in data.
func encode(source string, on On, at time.Time, data map[string]string) (string, error) {
	maps.DeleteFunc(data, func(_, value string) bool { return value == "" })
	text, err := json.Marshal(event{"1.0", rand.Text(), source, typePrefix + string(on), data["serial"], at.UTC(), "application/json", data})
	return string(text), err
}

// words are the fields with these names that have a value, safe to show.
func (e *event) words(names []string, before, after string) string {
	var b strings.Builder
	for _, name := range names {
		if value := e.Data[name]; value != "" {
			fmt.Fprintf(&b, "%s%s: %s%s", before, name, terminal.Escape(value), after)
		}
	}
	return b.String()
}

// headline says in one line what happened.
func (e *event) headline() string {
	return strings.TrimPrefix(e.Type, typePrefix) + e.words([]string{"rule", "san", "identity", "kind", "value", "reason", "last", "issuer", "serial"}, "  ", "")
}

// describe is the event for a person: what happened, and all that is known of it.
func (e *event) describe() string {
	return e.Time.Format(time.RFC3339) + "  " + strings.TrimPrefix(e.Type, typePrefix) + "\n" + e.words(slices.Sorted(maps.Keys(e.Data)), "    ", "\n")
}
