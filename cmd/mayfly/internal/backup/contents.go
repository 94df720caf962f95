package backup

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// named is a file or folder that a configuration names.
type named struct{ setting, path string }

// kind is how a backup takes what is named.
type kind int

const (
	secretFile kind = iota // what isn't known to be public
	publicFile
	publicFolder
	apart // logs and the audit trail, which have their own ways
	mark
	index
)

// kinds are those of settings by their last name. A setting that isn't here is a secret,
// so that a new one is never told to everybody who may read a backup.
var kinds = map[string]kind{
	"chain": publicFile, "cert_file": publicFile, "ca_file": publicFile, "jwks_file": publicFile, "state_file": publicFile,
	"history": publicFolder, "mark_file": mark,
	"tuf.directory": publicFolder, "revocation.directory": publicFolder,
	"directory": apart, "audit.path": apart, "store.path": index,
}

// kind is that of one setting, such as `ctlog.frozen[0].key_file`.
func (n named) kind() kind {
	if k, known := kinds[n.setting]; known {
		return k
	}
	last := n.setting[strings.LastIndexByte(n.setting, '.')+1:]
	// The keys of logs and of services beside this CA are public ones.
	if last == "key_file" && (strings.HasPrefix(n.setting, "ctlog.") || strings.HasPrefix(n.setting, "trust.")) {
		return publicFile
	}
	return kinds[last]
}

// namedBy is all that a configuration names, with its state files, in its order.
func namedBy(c *config.Config) (all []named, err error) {
	tell := func(setting, path string) {
		full, failed := filepath.Abs(path)
		err = errors.Join(err, failed)
		if !slices.ContainsFunc(all, func(n named) bool { return n.path == full }) {
			all = append(all, named{setting, full})
		}
	}
	walk("", reflect.ValueOf(c).Elem(), tell)
	walk("ctlog.state_file.frozen", reflect.ValueOf(c.CTLog.FrozenLogs()), tell)
	walk("ctlog.state_file.logs", reflect.ValueOf(c.CTLog.Own()), tell)
	return all, err
}

// walk tells every path in v, and every key in a file.
func walk(at string, v reflect.Value, tell func(setting, path string)) {
	switch x := v.Interface().(type) {
	case setting.Path:
		if x != "" {
			tell(at, string(x))
		}
		return
	case setting.KeyRef:
		if path, isFile := strings.CutPrefix(string(x), "file:"); isFile {
			tell(at, path)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for name, field := range strict.Fields(v) {
			walk(setting.Join(at, name), field, tell)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walk(setting.Index(at, i), v.Index(i), tell)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			walk(setting.Join(at, key.String()), v.MapIndex(key), tell)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			walk(at, v.Elem(), tell)
		}
	}
}
