package embedded

import (
	"strconv"
	"strings"

	"github.com/transparency-dev/tessera/api/layout"
)

// dataLevel stands for `data` where a hash tile has its level.
const dataLevel = -1

// maxLevel is the highest level of hash tiles in a path (c2sp.org/static-ct-api).
const maxLevel = 5

// tilePath is a path of the tile grammar: tile/<level>/<index>[.p/<width>].
type tilePath struct {
	level int    // 0 … 5, or dataLevel
	index uint64 // which tile of the level
	width uint8  // entries of a partial tile; 0: a full one
}

// parseTilePath reads a path. Each tile has exactly one: no leading zeros, no
// empty or dot parts, no width of a full tile.
func parseTilePath(path string) (tilePath, bool) {
	var t tilePath
	rest, ok := strings.CutPrefix(path, tileDir+"/")
	if !ok {
		return t, false
	}
	level, rest, ok := strings.Cut(rest, "/")
	switch {
	case !ok:
		return t, false
	case level == "data":
		t.level = dataLevel
	case len(level) == 1 && level[0] >= '0' && level[0] <= '0'+maxLevel:
		t.level = int(level[0] - '0')
	default:
		return t, false
	}
	number, width, partial := strings.Cut(rest, ".p/")
	if partial {
		w, err := strconv.ParseUint(width, 10, 8)
		if err != nil || w == 0 || width[0] == '0' || width[0] == '+' {
			return t, false
		}
		t.width = uint8(w)
	}
	index, ok := parseTileIndex(number)
	t.index = index
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

// within reports whether all of the tile is in a log of the size given.
func (t tilePath) within(size uint64) bool {
	level := uint64(max(t.level, 0))
	have := size >> (layout.TileHeight * level)
	width := uint64(t.width)
	if width == 0 {
		width = layout.TileWidth
	}
	return t.index <= have/layout.TileWidth && t.index*layout.TileWidth+width <= have
}
