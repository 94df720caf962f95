package logdir

import (
	"path/filepath"
	"strconv"
	"strings"

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
	var t TilePath
	rest, ok := strings.CutPrefix(path, TileDir+"/")
	if !ok {
		return t, false
	}
	level, rest, ok := strings.Cut(rest, "/")
	switch {
	case !ok:
		return t, false
	case level == "data":
		t.Level = DataLevel
	case len(level) == 1 && level[0] >= '0' && level[0] <= '0'+MaxLevel:
		t.Level = int(level[0] - '0')
	default:
		return t, false
	}
	number, width, partial := strings.Cut(rest, ".p/")
	if partial {
		w, err := strconv.ParseUint(width, 10, 8)
		if err != nil || w == 0 || width[0] == '0' || width[0] == '+' {
			return t, false
		}
		t.Width = uint8(w)
	}
	index, ok := parseTileIndex(number)
	t.Index = index
	return t, ok
}

// parseTileIndex reads groups of three digits, each but the last with an x
// before it: x001/x234/067.
func parseTileIndex(s string) (uint64, bool) {
	groups := strings.Split(s, "/")
	if len(groups) > 5 { // 2^40 entries need no more
		return 0, false
	}
	var index uint64
	for i, g := range groups {
		last := i == len(groups)-1
		if !last {
			var marked bool
			if g, marked = strings.CutPrefix(g, "x"); !marked {
				return 0, false
			}
		}
		if len(g) != 3 || !digits(g) || (i == 0 && !last && g == "000") {
			return 0, false
		}
		n, err := strconv.ParseUint(g, 10, 16)
		if err != nil {
			return 0, false
		}
		index = index*1000 + n
	}
	return index, true
}

// Within reports whether all of the tile is in a log of the size given.
func (t TilePath) Within(size uint64) bool {
	level := uint64(max(t.Level, 0))
	have := size >> (layout.TileHeight * level)
	width := uint64(t.Width)
	if width == 0 {
		width = layout.TileWidth
	}
	return t.Index <= have/layout.TileWidth && t.Index*layout.TileWidth+width <= have
}

// Name is the path below the log's directory and its URL.
func (t TilePath) Name() string {
	if t.Level == DataLevel {
		return dataTilePath(t.Index, t.Width)
	}
	return layout.TilePath(uint64(t.Level), t.Index, t.Width)
}

func dataTilePath(index uint64, partial uint8) string {
	return TileDir + "/data/" + layout.NWithSuffix(0, index, partial)
}

// Unfinished reports whether a file is one that its writer would have renamed or
// removed: a known name with digits after it (Tessera's), or our own prefix.
func Unfinished(name string) bool {
	dir, base := filepath.Split(name)
	if strings.HasPrefix(base, tempPrefix) {
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
