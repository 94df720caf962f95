package presets

// Preset is the rules of one CI vendor, as data.
type Preset struct{}
