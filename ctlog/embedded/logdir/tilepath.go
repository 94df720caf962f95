package logdir

import (
	"cmp"
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/transparency-dev/tessera/api/layout"
)

// DataLevel stands for `data` where a hash tile has its level.
const DataLevel = -1

// MaxLevel is the highest level of hash tiles in a path (c2sp.org/static-ct-api).
const MaxLevel = 5

// TilePath is a path of the tile grammar: tile/<level>/<index>[.p/<width>].
type TilePath struct {
	Level int    // 0 … 5, or DataLevel
	Index uint64 // which tile of the level
	Width uint8  // entries of a partial tile; 0: a full one
}

// ParseTilePath reads a path. Each tile has exactly one: no leading zeros, no
// empty or dot parts, no width of a full tile.
func ParseTilePath(path string) (TilePath, bool) {
	rest, below := strings.CutPrefix(path, TileDir+"/")
	level, number, found := strings.Cut(rest, "/")
	if !below || !found {
		return TilePath{}, false
	}
	var t TilePath
	var err error
	if level == "data" {
		t.Level = DataLevel
		t.Index, t.Width, err = layout.ParseTileIndexPartial(number)
	} else {
		var l uint64
		l, t.Index, t.Width, err = layout.ParseTileLevelIndexPartial(level, number)
		t.Level = int(l)
	}
	return t, err == nil && t.Level <= MaxLevel && t.Name() == path
}

// Within reports whether all of the tile is in a log of the size given.
func (t TilePath) Within(size uint64) bool {
	level := uint64(max(t.Level, 0))
	have := size >> (layout.TileHeight * level)
	width := cmp.Or(uint64(t.Width), layout.TileWidth)
	return t.Index <= have/layout.TileWidth && t.Index*layout.TileWidth+width <= have
}

// Name is the path below the log's directory and its URL.
func (t TilePath) Name() string {
	if t.Level == DataLevel {
		return TileDir + "/data/" + layout.NWithSuffix(0, t.Index, t.Width)
	}
	return layout.TilePath(uint64(t.Level), t.Index, t.Width)
}

// Unfinished reports whether a file is one that its writer would have renamed or
// removed: a known name with digits after it (Tessera's), or our own prefix.
func Unfinished(name string) bool {
	dir, base := filepath.Split(name)
	if strings.HasPrefix(base, durable.TempPrefix) {
		return true
	}
	for _, known := range []string{
		CheckpointName, StateDir + "/" + TreeStateName, StateDir + "/gcState", StateDir + "/version",
	} {
		if rest, ok := strings.CutPrefix(name, known); ok && digits(rest) {
			return true
		}
	}
	if !strings.HasPrefix(dir, TileDir+"/") || !digits(base) {
		return false
	}
	_, ok := ParseTilePath(name)
	return !ok
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
