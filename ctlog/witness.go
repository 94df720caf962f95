package ctlog

import (
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// WitnessMode is what a checkpoint without enough cosignatures is worth.
type WitnessMode string

// The modes.
const (
	WitnessOpen   WitnessMode = "open"   // it is published, and the metrics say so
	WitnessClosed WitnessMode = "closed" // it is not published
)

// WitnessesConfig names the witnesses that cosign an embedded log's checkpoints.
type WitnessesConfig struct {
	// List are the witnesses. Each new checkpoint is offered to all of them, and
	// published with the cosignatures that came.
	List []WitnessConfig `yaml:"list"`
	// Required is how many cosignatures a checkpoint should have; 1 unless configured.
	Required int `yaml:"required,omitempty"`
	// Mode is what becomes of a checkpoint that has fewer: `open` (the default)
	// publishes it all the same; `closed` doesn't, so that nothing newer can be read
	// until enough witnesses are back. SCTs are given in either mode. See docs/ctlog.md
	// before choosing `closed`.
	Mode WitnessMode `yaml:"mode,omitempty"`
	// Timeout is how long a checkpoint waits for cosignatures; 2s unless configured.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// WitnessConfig is a witness (c2sp.org/tlog-witness).
type WitnessConfig struct {
	// URL is the witness's submission prefix; `/add-checkpoint` is appended.
	URL string `yaml:"url"`
	// Key is the witness's verifier key, in one line of the form
	// `name+hash+base64`. The name is how metrics and the log call it.
	Key string `yaml:"key"`
	// AllowHTTP permits an http URL to a host that is not this machine.
	AllowHTTP bool `yaml:"allow_http,omitempty"`
}

// Bounds of how witnesses are asked.
const (
	DefaultWitnessTimeout = 2 * time.Second
	MaxWitnessTimeout     = 10 * time.Second // the last checkpoint has to fit the time that closing has
	maxWitnesses          = 16
)

// Verifier reads the witness's key: Ed25519 or ML-DSA-44 for cosignatures
// (c2sp.org/tlog-cosignature).
func (c *WitnessConfig) Verifier() (note.Verifier, error) {
	return formats.NewVerifierForCosignatureV1(c.Key)
}

// Check adds every fault of the configuration.
func (c *WitnessesConfig) Check(path string, f *setting.Faults) {
	if len(c.List) > maxWitnesses {
		f.Add(setting.Join(path, "list"), "has %d witnesses; at most %d are asked", len(c.List), maxWitnesses)
	}
	if c.Required < 0 || c.Required > len(c.List) {
		f.Add(setting.Join(path, "required"), "is %d, of %d witnesses", c.Required, len(c.List))
	}
	switch c.Mode {
	case "", WitnessOpen, WitnessClosed:
	default:
		f.Add(setting.Join(path, "mode"), "unknown mode %q: open or closed", string(c.Mode))
	}
	if c.Timeout < 0 || c.Timeout > MaxWitnessTimeout {
		f.Add(setting.Join(path, "timeout"), "is %v; at most %v is expected", c.Timeout, MaxWitnessTimeout)
	}
	names := make(map[string]int, len(c.List))
	for i := range c.List {
		w, at := &c.List[i], setting.Index(setting.Join(path, "list"), i)
		setting.CheckURL(setting.Join(at, "url"), w.URL, w.AllowHTTP, f)
		v, err := w.Verifier()
		if err != nil {
			f.Add(setting.Join(at, "key"), "expected a verifier key name+hash+base64 of a witness: Ed25519 or ML-DSA-44")
			continue
		}
		if first, twice := names[v.Name()]; twice {
			f.Add(setting.Join(at, "key"), "the same name as %s", setting.Index(setting.Join(path, "list"), first))
			continue
		}
		names[v.Name()] = i
	}
}
