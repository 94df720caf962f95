package audit

import (
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the `audit` section.
type Config struct {
	// Path is the file of the audit trail: one CloudEvents JSON line for every
	// intent, every issued certificate and every failure after an intent.
	// Required; its folder must exist. Refusals go to a second file beside it:
	// `audit.jsonl` has `audit.refused.jsonl`.
	Path setting.Path `yaml:"path"`
	// Rotation says when the audit trail is rotated and how much is kept. By
	// default nothing is ever deleted.
	Rotation Rotation `yaml:"rotation"`
	// RefusedRotation is the same for the file of refusals. Anybody can cause
	// refusals, so by default this file is bounded.
	RefusedRotation Rotation `yaml:"refused_rotation"`
}

// Rotation says when a file is rotated and how much of the past is kept.
type Rotation struct {
	// MaxSizeMB is the size at which the file is rotated, in MiB: 1 to 10240.
	MaxSizeMB int `yaml:"max_size_mb"`
	// MaxBackups is how many rotated files are kept; 0 keeps all.
	MaxBackups int `yaml:"max_backups"`
	// MaxAgeDays is how long a rotated file is kept, in days; 0 keeps it for ever.
	MaxAgeDays int `yaml:"max_age_days"`
	// Compress packs rotated files with gzip. The packed copy isn't flushed to
	// the disk before the original is removed: a power cut in the seconds after
	// a rotation can lose that file. Leave it off where that matters.
	Compress bool `yaml:"compress"`
}

// maxSizeMB bounds MaxSizeMB, so that the size in bytes can't overflow.
const maxSizeMB = 10240

// DefaultConfig keeps the whole trail in files of 100 MiB, and of the refusals
// the last eleven files of 50 MiB, for 90 days at most. The path has no default.
func DefaultConfig() Config {
	return Config{
		Rotation:        Rotation{MaxSizeMB: 100},
		RefusedRotation: Rotation{MaxSizeMB: 50, MaxBackups: 10, MaxAgeDays: 90},
	}
}

// Check adds every fault of c to f; path is where c is in the document.
func (c *Config) Check(path string, f *setting.Faults) {
	switch {
	case c.Path == "":
		f.Add(setting.Join(path, "path"), "required: the file that the audit trail is written to")
	case strings.HasSuffix(string(c.Path), string(filepath.Separator)):
		f.Add(setting.Join(path, "path"), "names a folder; a file is expected, for example audit.jsonl")
	}
	c.Rotation.check(setting.Join(path, "rotation"), f)
	c.RefusedRotation.check(setting.Join(path, "refused_rotation"), f)
}

func (r *Rotation) check(path string, f *setting.Faults) {
	if r.MaxSizeMB < 1 || r.MaxSizeMB > maxSizeMB {
		f.Add(setting.Join(path, "max_size_mb"), "is %d; 1 to %d (MiB) is expected", r.MaxSizeMB, maxSizeMB)
	}
	if r.MaxBackups < 0 {
		f.Add(setting.Join(path, "max_backups"), "is negative; a number of files is expected, 0 keeps all")
	}
	if r.MaxAgeDays < 0 {
		f.Add(setting.Join(path, "max_age_days"), "is negative; a number of days is expected, 0 keeps all")
	}
}

// refusedPath is the file of refusals beside the trail at path. The part before
// the last extension must not be "<trail>-", the prefix of rotated trails.
func refusedPath(path string) string {
	ext := filepath.Ext(path)
	return strings.TrimSuffix(path, ext) + ".refused" + ext
}
