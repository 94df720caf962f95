package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// movable are the settings, with all below them, that a running service takes.
// What isn't here needs a restart, most of it because the process holds it open:
// listeners, the audit trail, the store of used tokens, connections to external logs.
var movable = []string{
	"issuers", "deny", "access",
	"server.tls.cert_file", "server.tls.key_file",
	"server.rate_limits", "server.trusted_proxies",
	"server.limits.issuances", "server.limits.token_bytes",
	"ctlog.propagation", "ctlog.frozen",
	"ctlog.embedded", "ctlog.shards", // within what ctlog.Config.CheckReload says
	"ca.authorities", "ca.propagation",
	"trust",
	"timestamp", "server.limits.timestamps", "alerts",
}

// CheckReload adds a fault for every setting in which next differs from c, the
// configuration of a running service, and that only a restart can change.
func (c *Config) CheckReload(next *Config, now time.Time, f *setting.Faults) {
	differ("", reflect.ValueOf(c).Elem(), reflect.ValueOf(next).Elem(), func(path string) {
		moves := slices.ContainsFunc(movable, func(m string) bool { return path == m || strings.HasPrefix(path, m+".") })
		f.When(!moves || path == "timestamp.time_sources", path, "can't change while the service runs; restart it, or put the old value back")
	})
	c.CTLog.CheckReload("ctlog", &next.CTLog, now, f)
	f.When(c.Server.TLS.Enabled() != next.Server.TLS.Enabled(), "server.tls", "can't be turned on or off while the service runs; restart it")
}

// differ tells the path of every setting in which a and b, of one type, differ.
// Lists and maps are one setting each.
func differ(path string, a, b reflect.Value, tell func(path string)) {
	if a.Kind() != reflect.Struct || a.Type() == strict.TimeType {
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			tell(path)
		}
		return
	}
	there := maps.Collect(strict.Fields(b))
	for name, field := range strict.Fields(a) {
		differ(setting.Join(path, name), field, there[name], tell)
	}
}

// readOnUse ends settings whose files whoever needs them reads again each time.
const readOnUse = "bearer_token_file"

// Files are the files named by settings that a running service takes: when one
// of them changes, the configuration has to be looked at again.
func (c *Config) Files() []string {
	var all []string
	for _, v := range []any{c.Issuers, c.Server.TLS, c.CA.All(), c.Trust, c.Timestamp, c.Alerts, c.CA.StateFile, c.CTLog.StateFile, c.TUF.StateFile()} {
		paths("", reflect.ValueOf(v), func(at string, what any) {
			if path, isPath := what.(setting.Path); isPath && path != "" && !strings.HasSuffix(at, readOnUse) {
				all = append(all, string(path))
			}
		})
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Paths tells every setting of c and its state files that is a [setting.Path] or a [setting.KeyRef].
func (c *Config) Paths(tell func(at string, what any)) {
	paths("", reflect.ValueOf(c).Elem(), tell)
	paths("ca.state_file.authorities", reflect.ValueOf(c.CA.States), tell)
	paths("ctlog.state_file", reflect.ValueOf(c.CTLog.State), tell)
}

// paths is Paths of a part of a configuration.
func paths(at string, v reflect.Value, tell func(at string, what any)) {
	switch x := v.Interface().(type) {
	case setting.Path, setting.KeyRef:
		tell(at, x)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for name, field := range strict.Fields(v) {
			paths(setting.Join(at, name), field, tell)
		}
	case reflect.Slice:
		for i := range v.Len() {
			paths(setting.Index(at, i), v.Index(i), tell)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			paths(setting.Join(at, key.String()), v.MapIndex(key), tell)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			paths(at, v.Elem(), tell)
		}
	}
}
